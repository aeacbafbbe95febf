"""Files of a run's folder, damaged: flipped, cut, gone, of other types; then the run goes on."""

import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

from spvit_jax.training.metrics import METRICS_FILE
from tests.drills import runs

UNREAD = re.compile(r"\.lock$|events\.out|versions\.json$|/_sharding$|\.(html|png|txt)$")


def flip(data, rng):
    if not data:
        return data
    place = rng.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


def cut(data, rng):
    return data[: rng.randrange(len(data))] if data else b""


def key(data, rng):
    """Takes a key away, or gives it a value of another type; a flip where there is none."""
    try:
        values = json.loads(data)
        name = rng.choice(sorted(values))
    except (ValueError, TypeError, IndexError, UnicodeDecodeError):
        return flip(data, rng)
    if rng.random() < 0.5:
        del values[name]
    else:
        values[name] = rng.choice([None, 3, -1.5, "x", [], {}, [[1]], True, float("nan")])
    return json.dumps(values).encode()


def block(data, rng):
    """Zeroes, as a disk leaves that lost power."""
    start = rng.randrange(len(data)) if data else 0
    return data[:start] + bytes(min(512, len(data) - start)) + data[start + 512 :]


KINDS = {
    "flip": flip,
    "cut": cut,
    "key": key,
    "zeroes": block,
    "empty": lambda data, rng: b"",
    "gone": None,
    "folder": None,
    "list": lambda data, rng: b"[1]",
    "nested": lambda data, rng: b"[" * 100_000,
    "not UTF-8": lambda data, rng: b"\xff\xfe" + data,
    "NaN": lambda data, rng: re.sub(rb"\d+\.\d+", b"NaN", data, count=1) or b"NaN",
    "long": lambda data, rng: data + data,
}


def damage(file, kind, rng):
    """Damages a file; whether that changes it."""
    before = file.read_bytes()
    if kind in ("gone", "folder"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
        return True
    file.write_bytes(KINDS[kind](before, rng))
    return file.read_bytes() != before


def snapshots(config, folder):
    """Folders of one run at different moments, the last one finished."""
    made = []
    for number in range(40):
        into = folder / f"{number:02d}"
        if made:
            shutil.copytree(made[-1], into)
        made.append(into)
        if runs.attempt(config, into, 14)[0] == "finished":
            return made
    raise RuntimeError("it never ends")


def judge(config, damaged, whole, file):
    """What becomes of a folder with a damaged file: a word, and what was said."""
    name = str(file.relative_to(damaged))
    kind, said = runs.attempt(config, damaged)
    if kind == "traceback":
        return "traceback", said
    if kind == "refused":
        places = (str(file), name, str(file.parent), str(damaged / Path(name).parts[0]))
        if "\n" in said.split("no checkpoint in")[0].strip().splitlines()[-1] or not any(
            place in said for place in places
        ):
            return "unnamed", said
        way_out(damaged, file, said)
        again, more = runs.attempt(config, damaged)
        if again != "finished":
            return "no way out", f"{said}\n -> {again}: {more}"
        gone = [name] if file.name == METRICS_FILE else []  # as the message says
        lost = [other for other in runs.differences(damaged, whole) if other not in gone]
        return ("lost", f"{said}\n -> {lost}") if lost else ("named", said)
    if "is gone, and with it" in said:  # lines of the metrics
        return "said", said
    different = runs.differences(damaged, whole)
    if different:
        return "silent", f"{different}\n{said}"
    return "identical", said


def way_out(damaged, file, said):
    """Does what the message says: removes the file, and what says that the run is finished."""
    gone = file
    if match := re.search(r"no checkpoint in (\S+) fits", said):
        gone = Path(match[1])
    for one in (gone, damaged / "result.json"):
        if one.is_dir():
            shutil.rmtree(one)
        else:
            one.unlink(missing_ok=True)


def drill(config, folder, count, seed, tick):
    """Damages ``count`` files; a counter of what came of it, and what went wrong."""
    rng = random.Random(seed)
    stages = snapshots(config, folder / "stages")
    counts, wrong = Counter(), []
    scratch = folder / "scratch"
    for number in range(count):
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(rng.choice([*stages, *stages[-1:] * 4]), scratch)
        files = [f for f in sorted(scratch.rglob("*")) if f.is_file()]
        kinds = [f for f in files if f.suffix in (".json", ".jsonl", ".safetensors")]
        file = rng.choice(kinds if number % 3 else files)
        kind = rng.choice(sorted(KINDS))
        if not damage(file, kind, rng):
            counts["unchanged"] += 1
            tick(counts, wrong)
            continue
        found, said = judge(config, scratch, stages[-1], file)
        if found == "identical" and UNREAD.search(str(file)):
            found = "nobody reads it"
        counts[found] += 1
        if found not in ("identical", "named", "said", "nobody reads it"):
            wrong.append(f"{kind} of {file.relative_to(scratch)}: {found}\n    {said[-600:]}")
        tick(counts, wrong)
    return counts, wrong
