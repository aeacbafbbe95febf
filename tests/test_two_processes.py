"""A whole run as two processes over the network, signalled, killed, and ended as one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from spvit_jax.convert import load
from spvit_jax.convert.fetch import fetch
from spvit_jax.report import Result
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.training.metrics import read_metrics

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "quickstart.py:tiny"
SMALL = (  # the paper's way, in 20 steps and 5
    "--config.search.epochs=2",
    "--config.search.start=released",
    "--config.search.distillation=none",
    "--config.shortlist.candidates=0",
    "--config.finetune.epochs=0.5",
    "--config.finetune.start=searched",
    "--config.finetune.distillation=soft",
)


def start(workdir, devices, *arguments, processes=1, last=(), folders=(ROOT, ROOT)):
    """The processes of one run, each with so many devices, in ``folders``.

    The last has arguments of its own.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "spvit_jax.main", f"--config={CONFIG}"]
    command += [*SMALL, f"--workdir={workdir}", *arguments]
    started = []
    for number in range(processes):
        joined = (f"--coordinator={address}", f"--processes={processes}", f"--process={number}")
        started.append(
            subprocess.Popen(
                [
                    *command,
                    *(joined if processes > 1 else ()),
                    *(last if number == processes - 1 else ()),
                ],
                cwd=folders[number],
                env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return started


def ended(run):
    """Exit codes, and what was said on stdout and stderr."""
    said = [process.communicate(timeout=300) for process in run]
    return [process.returncode for process in run], *zip(*said, strict=True)


def at_step(workdir, step, run):
    """Waits until the search's metrics have come to ``step``."""
    rows = []
    while not rows or rows[-1]["step"] < step:
        assert all(process.poll() is None for process in run), ended(run)
        time.sleep(0.05)
        rows = read_metrics(workdir / "search")


@pytest.fixture(scope="module")
def dense(small_model):
    """Arguments for a model that compiles quickly."""
    return [f"--config.{name}={value}" for name, value in small_model.items()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, dense):
    """The folder of a run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone")
    codes, _, errors = ended(start(workdir, 1, *dense))
    assert codes == [0], errors
    return workdir


def test_two_processes_signalled_killed_and_ended_as_one_do_what_one_does(alone, dense, tmp_path):
    run = start(tmp_path, 2, *dense, processes=2)
    at_step(tmp_path, 2, run)
    run[1].send_signal(signal.SIGTERM)
    codes, said, errors = ended(run)
    assert codes == [143, 143], errors
    assert "search stopped after step" in errors[0] and "goes on from there" in errors[0]
    assert "evaluate  dense" in said[0] and "evaluate" not in said[1]  # where Gloo has its say
    assert "stopped after" not in errors[1]
    stopped = max(int(folder.name) for folder in (tmp_path / "search").glob("[0-9]*"))

    run = start(tmp_path, 2, *dense, "--config.sharding.fsdp=4", processes=2)
    at_step(tmp_path, stopped + 3, run)
    run[0].kill()
    codes, _, errors = ended(run)
    assert codes[0] == -signal.SIGKILL and codes[1] not in (0, 2), errors
    kept = max(int(folder.name) for folder in (tmp_path / "search").glob("[0-9]*"))
    assert kept >= stopped

    codes, said, errors = ended(start(tmp_path, 8, *dense, "--config.sharding.fsdp=2"))
    assert codes == [0], errors
    assert "evaluate  pruned" in said[0]
    for stage in ("search", "finetune"):
        mine, other = read_metrics(tmp_path / stage), read_metrics(alone / stage)
        assert [row["step"] for row in mine] == [row["step"] for row in other]
        for name in ("loss", "gradient_norm"):
            values = [[row[name] for row in rows] for rows in (mine, other)]
            np.testing.assert_allclose(*values, rtol=1e-4, err_msg=f"{stage} {name}")
    results = [Result.from_json((f / "result.json").read_text()) for f in (tmp_path, alone)]
    for name in ("ops", "ffn_widths", "pruned_macs", "dense_quality"):
        assert getattr(results[0], name) == getattr(results[1], name), name
    images = np.random.default_rng(0).normal(size=(64, 28, 28, 3)).astype(np.float32)
    logits = [np.asarray(load(f / "pruned.safetensors")(images)) for f in (tmp_path, alone)]
    np.testing.assert_allclose(*logits, atol=1e-3 * np.abs(logits[1]).max())


def test_processes_with_different_configurations_stop_and_say_what_differs(tmp_path):
    codes, _, errors = ended(start(tmp_path, 1, processes=2, last=["--config.seed=7"]))
    assert codes == [2, 2], errors
    for text in errors:
        assert "process 1: config.seed: 0, now 7" in text and "Traceback" not in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "arguments"),
    [
        (
            ("model.checkpoint", "teacher.checkpoint"),
            ("--config.finetune.distillation=soft", "--config.teacher.heads=4"),
        ),
        (
            ("finetune.architecture",),
            ("--config.stage=finetune", "--config.finetune.start=pretrained"),
        ),
    ],
)
def test_processes_whose_files_differ_under_one_name_stop_and_say_which(
    tmp_path, fields, arguments
):
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        if "finetune.architecture" in fields:
            widths = (64,) * 5 + (64 - number,)
            Architecture(("conv1x1",) * 5 + ("msa",), widths).save(folder / fields[0])
            continue
        state = load_file(fetch("packaged:deit_fashion_mnist"))
        state["head.bias"][3] += number
        for field in fields:
            save_file(state, folder / f"{field}.safetensors")
    given = {
        path.stem if path.suffix == ".safetensors" else path.name: path.name
        for path in folders[0].iterdir()
    }
    arguments = (*(f"--config.{field}={name}" for field, name in given.items()), *arguments)
    codes, _, errors = ended(start(tmp_path / "run", 1, *arguments, processes=2, folders=folders))
    assert codes == [2, 2], errors
    for text in errors:
        for field in fields:
            assert f"process 1: CRC-32 of what is in {field}: " in text and "Traceback" not in text
        assert "the same command, files and code" in text
