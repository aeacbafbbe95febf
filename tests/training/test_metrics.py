import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tensorboardX.proto.event_pb2 import Event

from spvit_jax.state import StateError
from spvit_jax.training.metrics import METRICS_FILE, MetricWriter, read_metrics

ROOT = Path(__file__).resolve().parents[2]


def write(directory, start, steps):
    with MetricWriter(directory, start) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 8, "macs": 2.0})


def events(directory):
    """All TensorBoard events: a record is length (8), checksum (4), data, checksum (4)."""
    found = []
    for path in sorted(Path(directory).glob("events*"), key=lambda p: p.stat().st_ctime_ns):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def test_lines_read_back_in_order_with_array_values(tmp_path):
    with MetricWriter(tmp_path / "new" / "search", 0) as writer:
        writer.write(1, {"loss": jnp.float32(0.5), "macs": 3})
        writer.write(1, {"top1": 0.25})
    assert read_metrics(tmp_path / "new" / "search") == [
        {"step": 1, "loss": 0.5, "macs": 3.0},
        {"step": 1, "top1": 0.25},
    ]


def test_resume_equals_the_uninterrupted_run_byte_for_byte(tmp_path):
    write(tmp_path / "a", 0, range(1, 21))
    write(tmp_path / "b", 0, range(1, 15))
    write(tmp_path / "b", 10, range(11, 21))
    texts = [(tmp_path / x / METRICS_FILE).read_bytes() for x in "ab"]
    assert texts[0] == texts[1]


def test_the_last_line_is_amended_in_its_place(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(1, {"loss": 0.1})
        writer.write(2, {"loss": 0.3, "top1": math.nan, "time": math.inf})
        writer.amend({"top1": 0.25, "top5": 0.75})
        writer.write(3, {"loss": 0.5})
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [line.partition(', "crc": ')[0] for line in lines] == [
        '{"step": 1, "loss": 0.1',
        '{"step": 2, "loss": 0.3, "top1": 0.25, "time": null, "top5": 0.75',
        '{"step": 3, "loss": 0.5',
    ]
    assert len(read_metrics(tmp_path)) == 3


def test_start_at_zero_removes_everything(tmp_path):
    write(tmp_path, 0, range(1, 5))
    MetricWriter(tmp_path, 0).close()
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_scalars_and_the_purge_step(tmp_path):
    write(tmp_path, 0, [1, 2, 3])
    write(tmp_path, 2, [3])
    found = events(tmp_path)
    scalars = [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]
    assert (2, "loss", 0.25) in scalars
    starts = [e.step for e in found if e.HasField("session_log")]
    assert starts == [1, 3]  # step 2 stays, 3 is hidden and comes anew


@pytest.mark.parametrize("rest", [b'{"step": 3, "lo', b'{"step": 3, "loss": "\xc3', b"\0\0\0"])
def test_half_written_last_line_is_ignored_and_removed(tmp_path, rest):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / METRICS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole + rest)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    MetricWriter(tmp_path, 2).close()
    assert path.read_bytes() == whole
    assert not list(tmp_path.glob("*.tmp"))


def test_last_line_without_its_newline_is_kept(tmp_path):
    write(tmp_path, 0, [1])
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    write(tmp_path, 1, [2])
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda lines: [lines[0], b"nonsense\n", lines[2]], 2),
        (lambda lines: [lines[0], b'{"step": 2, "loss": 0.25}\n', lines[2]], 2),
        (lambda lines: [lines[0], lines[1].replace(b"0.25", b"0.26"), lines[2]], 2),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: lines[1:], 1),
        (lambda lines: [*lines[:2], lines[2].replace(b"0.375", b"0.376")], 3),
        (lambda lines: [b"[" * 100_000 + b"\n", *lines], 1),
        (lambda lines: [b"\xff", *lines], 1),
    ],
)
def test_damage_in_the_middle_is_named_and_nothing_is_lost(tmp_path, damage, line):
    write(tmp_path, 0, [1, 2, 3])
    path = tmp_path / METRICS_FILE
    before = b"".join(damage(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(before)
    for call in (lambda: read_metrics(tmp_path), lambda: MetricWriter(tmp_path, 5)):
        with pytest.raises(StateError, match=f"metrics.jsonl is damaged .line {line} is not one"):
            call()
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_named(tmp_path):
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(StateError, match="it is a folder.; put it back"):
        read_metrics(tmp_path)


def test_interrupted_cut_loses_nothing(tmp_path, monkeypatch):
    write(tmp_path, 0, [1, 2, 3])
    before = (tmp_path / METRICS_FILE).read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricWriter(tmp_path, 1)
    assert (tmp_path / METRICS_FILE).read_bytes() == before


def test_not_finite_values_stay_valid_json(tmp_path):
    with MetricWriter(tmp_path, 0) as writer:
        writer.write(1, {"loss": float("nan"), "norm": float("inf")})
    line = (tmp_path / METRICS_FILE).read_text()
    said = json.loads(line, parse_constant=pytest.fail)
    assert (said["loss"], said["norm"]) == (None, None)
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_no_file_reads_as_no_rows(tmp_path):
    assert read_metrics(tmp_path / "missing") == []


def test_a_metric_called_step_is_refused(tmp_path):
    with MetricWriter(tmp_path, 0) as writer, pytest.raises(ValueError, match="called"):
        writer.write(1, {"step": 2.0})


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with MetricWriter(tmp_path / "x", 0) as writer:
        writer.write(1, {"loss": 1.0})
        writer.flush()
    assert not (tmp_path / "x").exists()


def test_lines_survive_kill_9_without_a_flush(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from spvit_jax.training.metrics import MetricWriter\n"
        "writer = MetricWriter(sys.argv[1], 0)\n"
        "writer.write(1, {'loss': 1.0}); writer.write(2, {'loss': 2.0})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


FULL = """
import resource, sys
from spvit_jax.training.metrics import MetricWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
with MetricWriter(sys.argv[1], 0) as writer:
    for step in range(50):
        writer.write(step, {"loss": 1.0})
        writer.flush()
"""


def test_a_full_disk_is_one_error_without_those_of_threads(tmp_path):
    run = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True)
    assert run.stderr.endswith("OSError: [Errno 27] File too large\n"), run.stderr
    assert "Exception in" not in run.stderr and "Exception ignored" not in run.stderr
