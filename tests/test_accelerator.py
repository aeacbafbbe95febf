"""The accelerator's script on the CPU: small models, missing libraries, contestants that fail."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
NOT_NEEDED = (  # flax brings etils and fsspec; latency alone needs tqdm
    "PIL",
    "gcsfs",
    "grain",
    "importlib_resources",
    "matplotlib",
    "ml_collections",
    "orbax",
    "tensorboardX",
    "tensorflow_datasets",
    "timm",
    "torch",
    "tqdm",
)
OURS = ("training, dense", "training, search", "training, folded")
OURS += ("inference, dense", "inference, folded")
THEIRS = ("training, PyTorch", "inference, PyTorch")
FAKE = """
import os, time

def sleeping(seconds):
    def begin():
        return lambda count: time.sleep(seconds * count), {"compile_seconds": seconds}
    return begin

def no_memory():
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")

def dying():
    calls = []
    def run(count):
        calls.append(count)
        if len(calls) > 3:  # to warm up, to see how long it takes, and a turn
            os._exit(3)
    return run, {}

BEGIN = {"fast": sleeping(0.1), "slow": sleeping(0.2), "big": no_memory, "dying": dying}

def prepare(names, failed):
    return {f"work, {name}": BEGIN[name] for name in names}, failed

def broken():
    os._exit(4)

def endless():
    time.sleep(600)
"""


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """The script, and a module of fake contestants, as processes that they start import them."""
    (tmp_path / "fake_side.py").write_text(FAKE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(BENCHMARKS)
    import accelerator
    import fake_side

    return accelerator, fake_side


def run_script(folder, *options, absent=()):
    for name in absent:
        (folder / f"{name}.py").write_text(f"raise ImportError('no {name} here')\n")
    file = folder / "results.json"
    command = [sys.executable, BENCHMARKS / "accelerator.py", "--tiny", "--json", file, *options]
    paths = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    assert json.loads(done.stdout.splitlines()[-1]) == results
    return done.stdout, results


def check_speed(row):
    assert row["turns"] == 2 and row["images_per_second"] > 0 and row["compile_seconds"] > 0
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    low, middle, high = row["ratio_to_dense"]
    assert 0 < low <= middle <= high


def test_runs_with_jax_alone(tmp_path):
    printed, results = run_script(tmp_path, "--turns", "2", absent=NOT_NEEDED)
    (rows,) = results["groups"].values()
    assert list(rows) == [*OURS, *THEIRS]
    for name in OURS:
        check_speed(rows[name])
        assert rows[name]["peak_memory_mb"] > 0 and "ratio_to_PyTorch" not in rows[name]
    assert rows["training, dense"]["ratio_to_dense"] == [1, 1, 1]
    for name in THEIRS:
        assert rows[name] == {"failed": rows[name]["failed"]}
        assert f"{name}: {rows[name]['failed']}" in printed
    assert "ImportError" in results["no torch"] and results["platform"] == "cpu"
    assert "no tqdm here" in results["latency"]["failed"]
    curve = results["curve"]
    assert curve["score_seconds"] > 0 and "16 images" in printed
    assert [point["budget"] for point in curve["points"]] == [0.7, 0.5, 0.3]


def test_runs_beside_pytorch(tmp_path):
    pytest.importorskip("torch")
    if subprocess.run([sys.executable, "-c", "import timm"], capture_output=True).returncode:
        pytest.skip("no timm, or no torchvision, which it wants in a process of its own")
    _, results = run_script(tmp_path, "--turns", "2", "--axes", "op,ffn")
    (rows,) = results["groups"].values()
    for name in (*OURS, *THEIRS):
        check_speed(rows[name])
        assert rows[name]["ratio_to_PyTorch"][1] > 0
    assert rows["inference, PyTorch"]["ratio_to_PyTorch"] == [1, 1, 1]
    assert results["torch"] and results["timm"]


def test_says_what_there_was_no_time_for(tmp_path):
    printed, results = run_script(tmp_path, "--minutes", "0", "--batches", "2,4")
    assert list(results["groups"]) == ["tiny, batch 2", "tiny, batch 4"]
    for rows in results["groups"].values():
        assert rows == {name: {"failed": "no time left"} for name in (*OURS, *THEIRS)}
    assert results["latency"] == results["curve"] == {"failed": "no time left"}
    assert printed.count("training, search: no time left") == 2


def test_contestants_that_fail_leave_the_others_alone(modules):
    accelerator, fake = modules
    group = accelerator.Group("model", 10)
    three = ("fast", "slow", "big")
    entries = {
        accelerator.Side(fake.prepare, three, {"work, bad": "ValueError: bad"}): (*three, "bad"),
        accelerator.Side(fake.prepare, ("dying",), {}): ("dying",),
        accelerator.Side(fake.broken): ("broken",),
        accelerator.Side(fake.endless): ("endless",),
    }
    try:
        for side, names in entries.items():
            group.enter(side, tuple(f"work, {name}" for name in names))
        group.compiled(time.monotonic() + 10)
        soon = time.monotonic() + 60
        group.run(3, soon, soon)
    finally:
        group.close()
    rows = {name.removeprefix("work, "): row for name, row in group.rows.items()}
    assert rows["big"]["failed"] == "out of memory"
    assert rows["bad"]["failed"] == "ValueError: bad"
    assert rows["broken"]["failed"] == "its process ended with exit code 4"
    assert rows["endless"]["failed"] == "no time left"
    assert rows["dying"]["failed"] == "its process ended with exit code 3"
    assert rows["dying"]["turns"] == 1  # what was measured stays
    fast, slow = rows["fast"], rows["slow"]
    assert fast["turns"] == slow["turns"] == 3 and "failed" not in fast | slow
    assert 0.1 <= fast["seconds"] < slow["seconds"]
    assert fast["images_per_second"] == 10 / fast["seconds"]


def test_ratios_are_taken_turn_by_turn(modules):
    accelerator, _ = modules
    group = accelerator.Group("model", 4)
    dense, folded = "training, dense", "training, folded"
    turns = [{dense: 8.0, folded: 4.0}, {dense: 2.0, folded: 2.0}, {dense: 3.0, folded: 1.0}]
    row = group.speed(folded, turns)
    assert row["ratio_to_dense"] == [1, 2, 3]  # not 3 s / 2 s, of medians
    assert row["seconds"] == 2 and row["images_per_second"] == 2
    assert "ratio_to_PyTorch" not in row


def test_prediction_beside_measurement(modules):
    import jax_side

    _, found = jax_side.predict("tiny", 2, count=2, seconds=0.1)
    assert (found["model"], found["batch"]) == ("tiny", 2) and found["dense_ms"] > 0
    assert len(found["shares"]) == 2
    for row in found["shares"]:
        assert 0 < row["predicted"] < 2 and row["measured"] > 0 and len(row["ffn"]) == 2


def test_unknown_models_are_named(modules):
    accelerator, _ = modules
    with pytest.raises(SystemExit, match=r"resnet50 is none of tiny, deit_tiny"):
        accelerator.main(["--models", "resnet50"])
