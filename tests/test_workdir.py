"""A run's folder, local; ``test_hosts`` shares one between processes, ``test_gcs`` is remote."""

import contextlib
import errno
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from spvit_jax import lock, workdir
from spvit_jax.config import Config, ConfigError, Data, Sharding
from spvit_jax.remote import is_transient


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def test_what_is_written_is_there_under_its_name(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.write("report.png", lambda path: path.with_suffix(path.suffix).write_bytes(b"x"))
    folder.write_json("dense.json", {"top1": 0.5})
    assert (tmp_path / "report.png").read_bytes() == b"x"
    assert folder.read_json("dense.json", dict[str, float]) == {"top1": 0.5}
    assert folder.exists("dense.json") and not folder.exists("nothing.json")
    assert folder.read_json("nothing.json", dict[str, float]) is None
    assert names(tmp_path) == ["checksums.json", "dense.json", "report.png"]


def test_a_write_that_fails_leaves_the_file_there_was(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.write("model", lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.write("model", fail)
    assert (tmp_path / "model").read_text() == "old"
    assert names(tmp_path) == ["checksums.json", "model"]


def test_what_is_no_result_may_be_there_when_the_configuration_changes(tmp_path):
    folder = workdir.Workdir(tmp_path / "run")
    folder.claim(Config(seed=1))
    for name in ("compilation_cache", ".left_by_a_kill", ".writing-x"):
        (tmp_path / "run" / name).mkdir()
    folder.claim(Config(seed=2))
    assert not (tmp_path / "run" / ".writing-x").exists()
    folder.write_json("dense.json", {})
    folder.claim(Config(seed=2))
    with pytest.raises(ConfigError, match=r"another configuration \(seed: 2, now 3\)"):
        folder.claim(Config(seed=3))


def test_what_changes_no_result_may_change(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.claim(Config())
    folder.write_json("dense.json", {})
    changed = Config(sharding=Sharding(fsdp=8), data=Data(workers=4))
    folder.claim(changed)
    assert json.loads((tmp_path / "config.json").read_text())["sharding"] == {"fsdp": 8}
    with pytest.raises(ConfigError, match=r"data\.mixup: 0\.0, now 0\.5"):
        folder.claim(Config(data=Data(mixup=0.5)))


@pytest.mark.parametrize("text", [b"{", b"[]", b"", b"\xff", b"[" * 100_000])
def test_a_damaged_configuration_is_named(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.json is damaged .*or remove it"):
        workdir.Workdir(tmp_path).claim(Config())


def test_the_code_has_a_version_that_every_change_changes(tmp_path, monkeypatch):
    package = tmp_path / "spvit_jax"
    (package / "models").mkdir(parents=True)
    monkeypatch.setattr(workdir, "__file__", str(package / "workdir.py"))
    seen = {workdir.code_version()}
    for name, text in (("a.py", "x"), ("b.py", "x"), ("b.py", "y"), ("models/a.py", "")):
        Path(package, name).write_text(text)
        seen.add(workdir.code_version())
    assert len(seen) == 5
    Path(package, "notes.txt").write_text("not code")
    assert workdir.code_version() in seen


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.EIO, OSError, "not now"),
        (errno.ENOSPC, OSError, "not now"),
        (errno.EACCES, ConfigError, r"\(not now\); choose a folder you own"),
    ],
)
@pytest.mark.parametrize("place", ["builtins.open", "tempfile.mkdtemp"])
def test_a_folder_that_takes_no_files_now_may_in_a_while(
    tmp_path, monkeypatch, place, number, kind, said
):
    def refuse(*_, **__):
        raise OSError(number, "not now")

    folder = workdir.Workdir(tmp_path)
    monkeypatch.setattr(place, refuse)
    with pytest.raises(kind, match=said), folder.locked():
        folder.claim(Config())


HOLD = """
import sys, time
from spvit_jax.workdir import Workdir
with Workdir(sys.argv[1]).locked():
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_run_a_folder_also_after_a_kill(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        said = rf"another run is at work.*process {other.pid} on"
        with pytest.raises(ConfigError, match=said), workdir.Workdir(tmp_path).locked():
            pass
        other.kill()
        other.wait()
    with workdir.Workdir(tmp_path).locked(), workdir.Workdir(tmp_path / "else").locked():
        pass
    with workdir.Workdir(tmp_path).locked():
        pass


def no_locks(file, how):
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize("alive", [True, False])
@pytest.mark.parametrize(
    ("where", "instead"),
    [("is_remote", lambda path: True), ("fcntl", None), ("fcntl.flock", no_locks)],
)
def test_where_nobody_keeps_locks_signs_of_life_do(tmp_path, monkeypatch, where, instead, alive):
    monkeypatch.setattr(f"spvit_jax.lock.{where}", instead)
    monkeypatch.setattr(lock, "BEAT", 0.3)
    file = tmp_path / lock.NAME
    with contextlib.ExitStack() as stack:
        if alive:
            assert not stack.enter_context(lock.locked(epath.Path(tmp_path)))
        else:
            file.write_text(json.dumps({"holder": "process 1 on a host", "beat": 3}))
        with lock.locked(epath.Path(tmp_path)) as holder:
            assert bool(holder) == alive
    assert not file.exists()


def test_a_disk_without_locks_is_not_waited_for_where_nobody_was(tmp_path, monkeypatch):
    monkeypatch.setattr("spvit_jax.lock.fcntl.flock", no_locks)
    begin = time.monotonic()
    with lock.locked(epath.Path(tmp_path)) as holder:
        assert not holder and json.loads((tmp_path / lock.NAME).read_text())["beat"] == 0
    assert time.monotonic() - begin < 5


def test_a_lock_that_a_network_disk_does_not_give_now_may_come(tmp_path, monkeypatch):
    def stale(file, how):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr("spvit_jax.lock.fcntl.flock", stale)
    with pytest.raises(OSError, match="Stale") as raised, workdir.Workdir(tmp_path).locked():
        pass
    assert is_transient(raised.value)


def test_what_a_run_began_from_is_compared(tmp_path):
    folder = workdir.Workdir(tmp_path)
    folder.claim(Config())
    folder.began({"data": {"images": 10}, "model.checkpoint": 7})
    folder.began({"data": {"images": 10}, "model.checkpoint": 7})
    folder.began({"data": {"images": 10}, "model.checkpoint": 8})  # nothing is made of 7 yet
    folder.write_json("dense.json", {})
    with pytest.raises(ConfigError, match=r"data\.images: 10, now 11.*checkpoint: 8, now 7.*Put"):
        folder.began({"data": {"images": 11}, "model.checkpoint": 7})
    names = {"class names": {str(label): f"class {label}" for label in range(30)}}
    with pytest.raises(ConfigError, match=r"names\.0: None, now class 0; .*; and 12 more\. Put"):
        folder.began(names)
    (tmp_path / "dense.json").unlink()
    folder.claim(Config(seed=5))  # nothing is finished: another run may begin here
    folder.began({"data": {"images": 11}, "model.checkpoint": 7})


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "io"), True),
        (ConnectionResetError(errno.ECONNRESET, "gone"), True),
        (TimeoutError(), True),
        (OSError(errno.ENOSPC, "full"), False),
        (FileNotFoundError(errno.ENOENT, "none"), False),
        (BrokenPipeError(errno.EPIPE, "closed"), False),
        (ValueError("no"), False),
    ],
)
def test_faults_that_may_pass_are_told_apart(error, passes):
    assert is_transient(error) == passes
