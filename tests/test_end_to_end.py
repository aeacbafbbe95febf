"""The pipeline as a process: killed, interrupted and resumed, it ends in the same bytes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from flax import nnx

from spvit_jax.convert import load, save
from spvit_jax.models import Swin, SwinSpec
from spvit_jax.report import Result
from spvit_jax.single_path.prune import form
from spvit_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]


def start(workdir, fields, environment=None, config="quickstart"):
    command = [sys.executable, "-m", "spvit_jax.main", f"--config=configs/{config}.py:tiny"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}"],
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(workdir, fields, **options):
    process = start(workdir, fields, **options)
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    return output


def when(process, true, timeout=500):
    """Waits until ``true()``, or the process has ended; whether it is still running."""
    end = time.monotonic() + timeout
    while process.poll() is None and not true():
        assert time.monotonic() < end
        time.sleep(0.002)
    return process.poll() is None


def lines(file):
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.fixture(scope="module")
def small(small_model):
    """Fields for a model that compiles quickly, two of whose candidates are near each other."""
    return small_model | {"search.axes": "('op','heads','ffn')"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small):
    """The folder of a run that nothing disturbed, and that no cached program took part in."""
    workdir = tmp_path_factory.mktemp("whole")
    output = finish(workdir, small, environment={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    assert "throughput, batch 8" in output and "pruned / dense" in output
    return workdir


def test_a_swin_is_pruned_and_learns_from_a_regnet(tmp_path):
    spec = SwinSpec(16, (2, 2), (2, 4), (32, 64), patch_size=2, window=7, image_size=28, classes=10)
    dense = tmp_path / "dense.safetensors"
    save(Swin(spec, rngs=nnx.Rngs(0)), dense)
    fields = {"model.variant": "", "model.checkpoint": str(dense)}
    output = finish(tmp_path, fields, config="swin_t")
    assert "packaged:regnety_fashion_mnist: hard distillation" in output
    result = Result.from_json((tmp_path / "result.json").read_text())
    assert result.model == "dense" and len(result.ops) == 4
    (budget,) = result.budgets
    assert result.pruned_published_macs == budget.found <= budget.target
    assert budget.target == round(0.5 * result.dense_published_macs)
    assert all("distillation" in row for row in read_metrics(tmp_path / "finetune"))
    assert not any("distillation" in row for row in read_metrics(tmp_path / "search"))
    model = load(str(tmp_path / "pruned.safetensors"))
    assert isinstance(model, Swin) and form(model) == "deploy"
    assert model.architecture.ops == result.ops


def test_eight_devices_score_try_and_choose_as_one_does(whole, small, tmp_path):
    finish(tmp_path, small, environment={"JAX_NUM_CPU_DEVICES": "8"})
    mine, other = (
        json.loads((f / "shortlist.json").read_text())["trials"] for f in (tmp_path, whole)
    )
    assert [trial["name"] for trial in mine] == [trial["name"] for trial in other]
    for one, two in zip(mine, other, strict=True):
        assert one["blocks"] == two["blocks"]
        assert one["repaired"] == pytest.approx(two["repaired"], rel=1e-3), one["name"]
        assert (one["trained"] or 0) == pytest.approx(two["trained"] or 0, rel=1e-2), one["name"]
    results = [Result.from_json((f / "result.json").read_text()) for f in (tmp_path, whole)]
    assert results[0].decision == results[1].decision and results[0].ops == results[1].ops
    assert results[0].pruned_quality.top1 == pytest.approx(results[1].pruned_quality.top1, abs=0.04)


def test_killed_and_signalled_all_along_it_loses_nothing(whole, small, tmp_path, assert_same_run):
    rng = random.Random(0)
    finetune = tmp_path / "finetune"

    def there(name):
        return lambda: (tmp_path / name).exists()

    def writing(stage):  # Orbax writes a checkpoint under another name first
        return lambda: any(tmp_path.glob(f"{stage}/*tmp*"))

    def at(points):  # :tiny writes a point every second step
        return lambda: lines(finetune / "metrics.jsonl") >= points

    moments = [  # Ctrl-C reaches the whole group of processes, the others only the one
        (there("dense.json"), os.killpg, signal.SIGINT),
        (there("scores.json"), os.kill, signal.SIGKILL),
        (writing("shortlist/0*"), os.kill, signal.SIGKILL),
        (there("decided.json"), os.kill, signal.SIGTERM),
        (at(1), os.kill, signal.SIGTERM),
        (at(rng.randint(3, 4)), os.kill, signal.SIGKILL),
        (writing("finetune"), os.kill, signal.SIGKILL),
        (there("pruned.safetensors"), os.kill, signal.SIGKILL),
    ]
    killed, stopped = 0, []
    for moment, send, number in moments:
        process = start(tmp_path, small)
        if running := when(process, moment):
            send(process.pid, number)
        text = process.communicate(timeout=500)[0]
        assert "Traceback" not in text, text
        if number != signal.SIGKILL:
            assert process.returncode == 128 + number, text
            assert "the same command goes on from there" in text
            stopped.append(text)
        killed += running
    assert killed >= 6 and "finetune stopped after step" in stopped[-1]
    finish(tmp_path, small)
    assert_same_run(tmp_path, whole)


def test_a_signal_while_it_starts_is_not_lost(tmp_path):
    process = start(tmp_path, {})
    time.sleep(1.5)  # flags are read, libraries are being imported
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=500)[0]
    assert process.returncode in (143, -signal.SIGTERM), output
    assert "Traceback" not in output
