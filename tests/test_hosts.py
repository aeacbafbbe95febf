"""What processes say to each other, and what they keep. Run as a program, it is one of two."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from spvit_jax import hosts, workdir
from spvit_jax.config import Config, ConfigError
from spvit_jax.remote import is_transient
from spvit_jax.signals import Signals


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def started(arguments):
    """Two processes of this file with 2 devices each."""
    settings = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    address = f"127.0.0.1:{free_port()}"
    command = [sys.executable, __file__, address]
    return [
        subprocess.Popen(
            [*command, str(number), *arguments],
            env=settings,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]


def pair(arguments):
    """Two processes of this file; what each of them printed last, read."""
    processes = started(arguments)
    ended = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


@pytest.fixture(scope="module")
def talked():
    return pair(["talk"])


def test_what_process_0_says_everyone_has(talked):
    for found in talked:
        assert found["first"] == {"from": 0, "text": "ä" * 100, "nothing": None}


def test_what_everyone_says_everyone_has_in_order(talked):
    for found in talked:
        assert found["all"] == [[0], [1, 1]]


def test_what_differs_is_named_on_every_process(talked):
    for found in talked:
        assert found["same"] == ""
        assert "process 1: search.epochs: 3, now 4" in found["differ"]
        assert "process 1: code: a, now b" in found["differ"]
        assert "lr" not in found["differ"] and "the same command" in found["differ"]


def test_an_error_on_one_process_is_an_error_on_all(talked):
    first, second = talked
    assert first["fails"] == "HostError: not every process can go on:\n  process 1: no images"
    assert second["fails"] == "ValueError: no images"


def test_a_fault_that_may_pass_on_one_process_may_pass_on_all(talked):
    assert all(found["passes"] for found in talked)


def test_what_process_0_reads_everyone_has_and_only_it_writes(talked, tmp_path):
    shared = tmp_path / "shared"
    for found in pair(["keep", str(shared), str(shared)]):
        assert found == {"json": {"top1": 0.5}, "exists": True, "missing": None, "error": ""}
    kept = {file.name: file.read_text() for file in shared.iterdir()}
    assert set(kept) == {"checksums.json", "config.json", "versions.json", "dense.json", "by.txt"}
    assert kept["by.txt"] == "0" and json.loads(kept["versions.json"])["processes"] == 2


def test_two_folders_of_the_same_name_are_refused_everywhere(tmp_path):
    for found in pair(["keep", str(tmp_path / "a"), str(tmp_path / "b")]):
        assert "process 1 cannot see what process 0 writes there" in found["error"]
    assert not list(tmp_path.glob("*/.seen*"))


def test_a_folder_of_another_run_is_refused_everywhere(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.claim(Config(seed=1))
    folder.write_json("dense.json", {})
    for found in pair(["keep", str(tmp_path), str(tmp_path)]):
        assert "another configuration (seed: 1, now 0)" in found["error"]


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_stops_all_at_the_same_call(signalled):
    first, second = pair(["stop", str(signalled)])
    assert first["stopped"] == second["stopped"]
    assert first["sent"] + 1 <= first["stopped"] <= first["sent"] + 3


def at_work():
    """Two processes that are busy for a minute."""
    processes = started(["busy"])
    for process in processes:
        while (line := process.stdout.readline()) != "busy\n":  # where Gloo has its say
            assert line, process.communicate()
    return processes


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_ends_all_in_time_that_are_in_the_midst_of_something(signalled):
    processes = at_work()
    begin = time.monotonic()
    processes[signalled].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], errors
    assert time.monotonic() - begin < 4
    assert all("the same command goes on" in text for text in errors)


def test_a_signal_to_all_is_no_second_one():
    processes = at_work()
    begin = time.monotonic()
    processes[0].send_signal(signal.SIGTERM)
    time.sleep(0.5)
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], errors
    assert time.monotonic() - begin > 1


def test_alone_nothing_is_asked_of_anyone():
    assert hosts.from_first({"a": 1}) == {"a": 1} and hosts.from_all(2) == [2]
    hosts.agree({"a": 1})
    with pytest.raises(KeyError), hosts.together(KeyError):
        raise KeyError
    signals = Signals()
    stop = hosts.Stop(signals)
    assert not stop()
    signals.received.append(signal.SIGTERM)
    assert stop() and stop()


def test_jax_notice_of_a_preemption_stops_as_a_signal_does(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        hosts.multihost_utils, "reached_preemption_sync_point", lambda call: call == 3
    )
    stop = hosts.Stop(Signals())
    assert [stop() for _ in range(6)] == [False, False, False, True, True, True]


@pytest.mark.parametrize(
    "arguments",
    [("h:1", 2, -1), ("", 2, 0), ("h:1", 0, 1), ("h:1", 2, 2), ("h", 2, 1), ("h:x", 2, 1)],
)
def test_arguments_that_cannot_be_are_explained(arguments):
    with pytest.raises(hosts.HostError, match="HOST:PORT"):
        hosts.connect(*arguments)


def test_without_arguments_and_cluster_it_is_alone():
    program = "from spvit_jax import hosts; hosts.connect(); import jax; print(jax.process_count())"
    outside = {name: value for name, value in os.environ.items() if name[:6] != "SLURM_"}
    run = subprocess.run(
        [sys.executable, "-c", program], env=outside, capture_output=True, text=True, check=True
    )
    assert run.stdout == "1\n"


def test_without_arguments_jax_is_asked_to_find_the_others(monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: asked.append(options))
    hosts.connect()
    assert asked == [{"heartbeat_timeout_seconds": hosts.LOST_SECONDS}]


def test_others_that_cannot_be_reached_are_an_error(monkeypatch):
    def fail(**options):
        raise RuntimeError("DEADLINE_EXCEEDED: Barrier timed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(hosts.HostError, match="cannot be joined: DEADLINE_EXCEEDED"):
        hosts.connect("127.0.0.1:1", 2, 1)


def talk(number):
    """Everything that can be said, once."""
    mine = {"from": number, "text": "ä" * (100 + number), "nothing": None}
    found = {"first": hosts.from_first(mine), "all": hosts.from_all([number] * (number + 1))}
    for name, epochs, code in (("same", (3, 3), "aa"), ("differ", (3, 4), "ab")):
        try:
            hosts.agree({"search": {"epochs": epochs[number], "lr": 1}, "code": code[number]})
            found[name] = ""
        except hosts.HostError as error:
            found[name] = str(error)
    try:
        with hosts.together(ValueError):
            if number:
                raise ValueError("no images")
    except (ValueError, hosts.HostError) as error:
        found["fails"] = f"{type(error).__name__}: {error}"
    try:
        with hosts.together(OSError):
            if number:
                raise OSError(errno.EIO, "disk")
    except (OSError, hosts.HostError) as error:
        found["passes"] = is_transient(error)
    return found


def busy(number):
    """Does one thing for a minute, in which it does not look for signals."""
    signals = Signals()
    signals.listen()
    hosts.Stop(signals)
    hosts.from_all(number)
    print("busy", flush=True)
    time.sleep(60)


def stop_at(number, signalled, sent=20):
    """Calls a ``Stop`` until it says so, one process being signalled on the way."""
    signals = Signals()
    signals.listen()
    stop = hosts.Stop(signals)
    signals.patience = 60.0  # on a busy machine a call may take longer than a run is given
    for call in range(1, 200):
        if stop():
            return {"sent": sent, "stopped": call}
        if call == sent and number == int(signalled):
            os.kill(os.getpid(), signal.SIGTERM)
            while not signals.received:  # a thread of its own hears it
                time.sleep(0.001)
    return {"sent": sent, "stopped": None}


def keep(number, *folders):
    """A workdir's files, as this process has them; each may have been given another folder."""
    workdir.SEEN_SECONDS = 1
    folder = workdir.Workdir(folders[number])
    try:
        folder.claim(Config())
    except ConfigError as error:
        return {"error": str(error)}
    folder.write("by.txt", lambda path: path.write_text(str(number)))
    folder.write_json("dense.json", {"top1": 0.5})
    hosts.from_first(None)
    read = [folder.read_json(name, dict[str, float]) for name in ("dense.json", "x.json")]
    found = read[0], folder.exists("dense.json"), read[1]
    return dict(zip(("json", "exists", "missing"), found, strict=True), error="")


if __name__ == "__main__":
    coordinator, process, what, *rest = sys.argv[1:]
    hosts.connect(coordinator, 2, int(process))
    say = {"talk": talk, "stop": stop_at, "keep": keep, "busy": busy}[what]
    print(json.dumps(say(int(process), *rest)))


def test_differences_show_no_secrets():
    old, new = ({"x": f"https://host/a.pth?key=secret{i}"} for i in range(2))
    (difference,) = hosts.differences(old, new)
    assert difference == "x: https://host/a.pth?…, now https://host/a.pth?…"
