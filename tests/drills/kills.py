"""Runs that are killed and signalled at any moment; what is saved is never lost."""

import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter

from tests.drills import runs

HOW = {  # the signals of an attempt, and how it may end
    "kill": ((signal.SIGKILL,), {-signal.SIGKILL}),
    "TERM": ((signal.SIGTERM,), {143}),
    "INT": ((signal.SIGINT,), {130}),
    "TERM, TERM": ((signal.SIGTERM, signal.SIGTERM), {143}),
    "TERM, kill": ((signal.SIGTERM, signal.SIGKILL), {143, -signal.SIGKILL}),
}
IN_TIME = 2.0  # seconds that a signal may take outside of a training
END = 600.0  # seconds of a run


def forked(arguments, log):
    """Starts the command in a process that has its libraries already; its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        import runpy

        sys.argv = ["spvit_jax.main", *arguments]
        runpy.run_module("spvit_jax.main", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def ended(number, seconds):
    """The exit code of a process, minus its signal; None: it runs after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(number, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.005)


def moment(rng, folder, pace):
    """A condition to send signals at: a time, or something new in the folder."""
    if rng.random() < 0.5:
        until = time.monotonic() + rng.uniform(0, pace)
        return lambda: time.monotonic() >= until
    pattern = rng.choice(
        ["**/*tmp*", "search/[0-9]*", "finetune/[0-9]*", "**/metrics.jsonl", "*.json", "merges/*"]
    )
    before, more = found(folder, pattern), rng.randint(1, 3)
    return lambda: found(folder, pattern) >= before + more


def found(folder, pattern):
    """How many files are of a pattern; 0 where one goes away meanwhile."""
    try:
        return len(list(folder.glob(pattern)))
    except OSError:
        return 0


def newest(folder):
    """The newest checkpoint of each training, and which files are there."""
    steps = {}
    for step in folder.glob("**/[0-9]*"):
        if step.name.isdecimal() and step.parent.name != "shortlist" and step.is_dir():
            stage = str(step.parent.relative_to(folder))
            steps[stage] = max(steps.get(stage, 0), int(step.name))
    return steps | {f.name: 1 for f in folder.glob("*.json")}


def drill(command, folder, count, seed, tick):
    """Sends signals until ``count`` have found a process; counts, what went wrong, seconds."""
    rng = random.Random(seed)
    counts, wrong, waits = Counter(), [], []
    log, work, whole = folder / "log", folder / "work", folder / "whole"
    begin = time.monotonic()
    if ended(forked([*command, f"--workdir={whole}"], log), END) != 0:
        raise RuntimeError(log.read_text())
    pace = time.monotonic() - begin
    while counts["sent"] < count:
        kind = rng.choice(sorted(HOW))
        log.write_text("")
        before = newest(work)
        now = moment(rng, work, pace)
        process = forked([*command, f"--workdir={work}"], log)
        code, end = None, time.monotonic() + END
        while code is None and not now() and time.monotonic() < end:
            code = ended(process, 0.002)  # without a pause this would take a core
        if code is None:
            code, took = sent(process, kind, rng)
            counts["sent"] += 1
            tick(counts, wrong)
            if kind in ("TERM", "INT"):
                waits.append(took)
            if code is None:
                wrong.append(f"{kind}: still there after {took:.0f} s\n{log.read_text()[-600:]}")
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            elif code != 0 and code not in HOW[kind][1]:
                wrong.append(f"{kind}: exit code {code}\n    {log.read_text()[-1500:]}")
            counts[kind] += 1
        elif code != 0:
            wrong.append(f"undisturbed: exit code {code}\n    {log.read_text()[-1500:]}")
            counts["lost"] += 1
            shutil.rmtree(work, ignore_errors=True)
            continue
        if "Traceback" in log.read_text():
            counts["traceback"] += 1
            wrong.append(f"{kind}: traceback\n    {log.read_text()[-1500:]}")
        after = newest(work)
        gone = {name: step for name, step in before.items() if after.get(name, 0) < step}
        if gone:
            counts["lost"] += 1
            wrong.append(f"{kind}: lost {gone}")
        if code == 0:
            counts["ends"] += 1
            different = runs.differences(work, whole)
            counts["identical ends"] += not different
            if different:
                counts["lost"] += 1
                wrong.append(f"ended otherwise: {different}")
            shutil.rmtree(work, ignore_errors=True)
    return counts, wrong, waits


def sent(process, kind, rng):
    """Sends the signals of ``kind``; the exit code and the seconds it took."""
    begin = time.monotonic()
    for number, one in enumerate(HOW[kind][0]):
        if number:
            time.sleep(rng.uniform(0.02, 0.5))
        try:
            os.kill(process, one)
        except ProcessLookupError:
            break
        code = ended(process, 0.0)
        if code is not None:
            return code, time.monotonic() - begin
    return ended(process, 60.0), time.monotonic() - begin


def said(waits):
    """How long signals took."""
    if not waits:
        return ""
    ordered = sorted(waits)
    late = sum(wait > IN_TIME for wait in waits)
    text = f"signals took {ordered[len(ordered) // 2]:.2f} s (median), {ordered[-1]:.2f} s at most"
    return re.sub(r"\s+", " ", f"{text}; {late} of {len(waits)} above {IN_TIME:g} s")
