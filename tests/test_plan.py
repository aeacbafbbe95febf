"""What a person at the shell sees of a plan. Each case is a process."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = "--config=configs/quickstart.py:tiny"


def plan(*arguments):
    command = [sys.executable, "-m", "spvit_jax.plan", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


def test_help_says_what_there_is():
    shown = plan("--help")
    assert shown.returncode == 0 and not shown.stderr
    for word in ("--devices", "--chip", "v5e", "h100", "--utilization", "libtpu", "--images"):
        assert word in shown.stdout


def test_a_plan_for_eight_chips():
    shown = plan(
        TINY, "--devices=8", "--chip=h100", "--utilization=0.5", "--config.search.epochs=1"
    )
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert "search for 8 × NVIDIA H100 SXM" in lines[0] and "finetune for" in lines[1]
    table = {line[:30].strip(): line[30:].split() for line in lines}
    assert table["steps"] == ["10", "10"] and table["images a step"] == ["32", "32"]
    assert float(table["all-reduce"][0]) > float(table["all-reduce"][1]) > 0
    assert (
        "50% of 989 TFLOP/s" in shown.stdout
        and "random blocks within the same budget" in shown.stdout
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TINY], "--devices must be given"),
        ([TINY, "--devices=8", "--chip=tpu"], "--chip must be one of"),
        ([TINY, "--devices=7"], "slices of TPU v5e have 1, 4, 8"),
        ([TINY, "--devices=64"], "finetune.batch_size=32 cannot be divided among 64 devices"),
        ([TINY, "--devices=8", "--utilization=2"], "utilization"),
        ([TINY, "--devices=8", "--utilization=nan"], "expected a share in 0.001 to 1"),
        ([TINY, "--devices=8", "--images=10"], "expected three numbers"),
        ([TINY, "--devices=8", "--config.stage=evaluate"], "trains nothing"),
        ([TINY, "--devices=8", "--config.sharding.fsdp=3"], "sharding.fsdp=3 does not divide"),
        ([TINY, "--devices=8", "--config.data.source=folder:x"], "--images=TRAIN,TEST,CLASSES"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(arguments, message):
    shown = plan(*arguments)
    assert shown.returncode == 2 and shown.stderr.startswith("error: ")
    assert message in shown.stderr and "Traceback" not in shown.stderr and not shown.stdout
