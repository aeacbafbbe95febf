"""What a person at the shell sees of ``python -m spvit_jax.prices``. Each case is a process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spvit_jax import config
from spvit_jax.models import VARIANTS
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.latency import load
from spvit_jax.single_path.latency import prices as prices_of
from spvit_jax.single_path.prices import cost

ROOT = Path(__file__).parents[1]
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"


def prices(*arguments, folder=ROOT):
    command = [sys.executable, "-m", "spvit_jax.prices", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500)


def test_help_says_what_there_is():
    shown = prices("--help")
    assert shown.returncode == 0 and not shown.stderr
    for word in ("--config", "--batch", "--output", "--seconds", "budget.latency"):
        assert word in shown.stdout


def test_a_table_is_measured_and_a_search_within_it_chosen(tmp_path):
    shown = prices(QUICKSTART, "--batch=2", "--seconds=1", folder=tmp_path)
    assert shown.returncode == 0, shown.stderr
    (path,) = tmp_path.iterdir()
    assert path.name == "deit_fashion_mnist.cpu.float32.batch_2.json"
    assert "compile" in shown.stderr and "measure" in shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[1].split()[:5] == ["blocks", "skip", "conv1x1", "conv3x3", "attention"]
    assert "per half of one" in lines[1]  # the quickstart lets heads be narrower
    assert lines[1].endswith("merging")  # and tokens be merged
    begins = ["0 1 2 3 4 ", "with 25 tokens ", "with 13 tokens ", "5 ", "with 25 ", "with 13 "]
    assert all(line.startswith(begin) for line, begin in zip(lines[3:9], begins, strict=True))
    assert lines[-1] == f"--config.budget.latency={path.name}:SHARE"

    said = json.loads(path.read_text())
    assert (said["device"], said["backend"], said["dtype"]) == ("cpu", "cpu", "float32")
    assert said["batch"] == 2 and said["model"]["image_size"] == 28 and said["versions"]["jax"]
    assert said["unit"] == "ms per call"

    spec, search = VARIANTS["deit_fashion_mnist"], config.Search(axes=("op", "heads", "ffn"))
    timed = prices_of(load(path), spec, search.ops)
    assert 0 < timed.base < timed.dense == pytest.approx(said["dense"])
    gating = Gating.of(search, config.Budget(latency=f"{path}:0.8"), spec)
    rng = np.random.default_rng(0)
    logits = tuple(
        {axis: rng.normal(size=x.shape) for axis, x in block.items()} for block in gating.initial()
    )
    found = cost(timed, gating.project(logits).gates(spec, search.ops))
    merged = prices_of(load(path), spec, search.ops, (10, 10, 5, 5, 5, 0))
    assert merged.dense < timed.dense
    assert 0.75 * timed.dense < found <= 0.8 * timed.dense


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([QUICKSTART, "--batch=0"], "batch"),
        ([QUICKSTART, "--seconds=nan"], "--seconds=nan: expected a number of seconds"),
        ([QUICKSTART, "--seconds=1e308"], "--seconds=1e+308: expected a number of seconds"),
        ([QUICKSTART, "--seconds=inf"], "--seconds=inf: expected a number of seconds"),
        ([QUICKSTART, "--output=none/table.json"], "--output=none/table.json cannot be written"),
        ([QUICKSTART, "--config.search.ops=('skip','pool','msa')"], "ops must be two or more of"),
        (
            [QUICKSTART, "--config.stage=evaluate", "--config.model.variant=regnety_160"],
            "no attention",
        ),
        (
            [
                QUICKSTART,
                "--config.model.variant=swin_tiny_patch4_window7_224",
                "--config.search.axes=('op','tokens')",
            ],
            "windows of a Swin",
        ),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(arguments, message):
    shown = prices(*arguments)
    assert shown.returncode == 2 and shown.stderr.startswith("error: ")
    assert message in shown.stderr and "Traceback" not in shown.stderr and not shown.stdout
