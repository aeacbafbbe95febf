"""A run's folder on ``gs://``, kept in memory by a stand-in for Google's servers."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from gcp_storage_emulator import server

from spvit_jax.config import Config, ConfigError
from spvit_jax.report import Result
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.metrics import METRICS_FILE, MetricWriter, read_metrics
from spvit_jax.training.sharding import make_mesh, sharded
from spvit_jax.training.step import TrainState
from spvit_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
BUCKET = epath.Path("gs://bucket")


def heeding_generations(handler):
    """A handler of the stand-in, with the conditions and versions that TensorStore relies on."""

    def handle(request, response, storage):
        name = request.params.get("object_id") or request.query.get("name", [""])[0]

        def generation():
            objects = storage.objects.get(request.params.get("bucket_name"), {})
            return objects[name]["generation"] if name in objects else "0"

        condition = {key: values[0] for key, values in request.query.items()}
        if condition.get("ifGenerationMatch", generation()) != generation():
            response.status = server.HTTPStatus.PRECONDITION_FAILED
        elif condition.get("ifGenerationNotMatch") == generation() != "0":
            response.status = server.HTTPStatus.NOT_MODIFIED
        else:
            handler(request, response, storage)
            response["x-goog-generation"] = generation()

    return handle


@pytest.fixture(scope="module", autouse=True)
def address():
    """Where the stand-in listens; it has one bucket, called "bucket"."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    handlers = [
        (path, {verb: heeding_generations(handler) for verb, handler in verbs.items()})
        for path, verbs in server.HANDLERS
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks a server that is not here
        patch.setattr(server, "HANDLERS", handlers)
        with server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket"):
            yield address


def names(folder):
    return sorted(file.name for file in folder.iterdir())


def write(directory, start, steps):
    with MetricWriter(directory, start) as writer:
        for step in steps:
            writer.write(step, {"loss": step / 8})


def test_what_is_written_is_there_under_its_name():
    folder = Workdir("gs://bucket/written")
    folder.write("report.png", lambda path: path.with_suffix(path.suffix).write_bytes(b"x"))
    folder.write_json("dense.json", {"top1": 0.5})
    assert (BUCKET / "written" / "report.png").read_bytes() == b"x"
    assert folder.read_json("dense.json") == {"top1": 0.5} and folder.exists("dense.json")
    assert folder.read_json("nothing.json") is None and not folder.exists("nothing.json")
    assert names(folder.path) == ["dense.json", "report.png"]


def test_a_write_that_fails_leaves_the_file_there_was():
    folder = Workdir("gs://bucket/failed")
    folder.write("model", lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.write("model", fail)
    assert (folder / "model").read_text() == "old" and names(folder.path) == ["model"]


def test_a_folder_is_one_configurations():
    folder = Workdir("gs://bucket/claimed")
    folder.claim(Config(seed=1))
    (folder / "compilation_cache" / "entry").write_text("")
    folder.claim(Config(seed=2))
    folder.write_json("dense.json", {})
    folder.claim(Config(seed=2))
    with pytest.raises(ConfigError, match=r"another configuration \(seed: 2, now 3\)"):
        folder.claim(Config(seed=3))
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"gs://bucket/claimed/config\.json is damaged"):
        folder.claim(Config(seed=2))


def test_a_mistyped_bucket_is_an_error_and_is_not_made(address):
    with pytest.raises(ConfigError, match=r"--workdir=gs://bukket/run .*check the bucket's name"):
        Workdir("gs://bukket/run").claim(Config())
    with urllib.request.urlopen(f"{address}/storage/v1/b") as answer:
        assert [bucket["name"] for bucket in json.load(answer)["items"]] == ["bucket"]


def test_metrics_arrive_whole_at_each_flush_and_go_on_where_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole, resumed = BUCKET / "metrics" / "whole", BUCKET / "metrics" / "resumed"
    write(whole, 0, range(1, 21))
    with MetricWriter(resumed, 0) as writer:
        for step in range(1, 15):
            writer.write(step, {"loss": step / 8})
            if step == 4:
                writer.flush()
            assert len(read_metrics(resumed)) == (4 if step >= 4 else 0)
    write(resumed, 10, range(11, 21))
    texts = [(folder / METRICS_FILE).read_bytes() for folder in (whole, resumed)]
    assert texts[0] == texts[1] and len(read_metrics(whole)) == 20
    assert len(list(resumed.glob("events*"))) == 2
    assert not list(tmp_path.iterdir())


def test_the_newest_checkpoint_comes_back_bit_for_bit_and_two_are_kept():
    def state(step):
        values = np.random.default_rng(step).standard_normal((1000, 64), np.float32)
        arrays = {"params": {"kernel": jnp.asarray(values)}, "optimizer": {"mu": jnp.ones(9)}}
        key = jnp.asarray([step, 7], jnp.uint32)
        return TrainState(jnp.int32(step), key, stats={}, gates=(), average=None, **arrays)

    folder, shards = BUCKET / "checkpoints", sharded(make_mesh(), state(0))
    write(folder, 0, [1])
    with Checkpoints(folder, every=1) as checkpoints:
        assert checkpoints.restore(state(0), shards) is None
        for step in (2, 4, 6):
            checkpoints.save(step, state(step))
    with Checkpoints(folder, every=1) as checkpoints:
        assert checkpoints.steps == [4, 6]
        restored = checkpoints.restore(state(0), shards)
    jax.tree.map(np.testing.assert_array_equal, restored, state(6))
    assert {"4", "6", METRICS_FILE} <= set(names(folder)) and "2" not in names(folder)


def start(folder, *arguments, **settings):
    command = [sys.executable, "-m", "spvit_jax.main", "--config=configs/quickstart.py:tiny"]
    return subprocess.Popen(
        [*command, f"--workdir={folder}", *arguments],
        cwd=ROOT,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_an_interrupted_run_goes_on_and_ends(tmp_path):
    folder = BUCKET / "run"
    found = Architecture(("conv1x1",) * 5 + ("msa",), (64,) * 6)
    found.save(tmp_path / "given.json")
    arguments = (
        "--config.stage=finetune",
        f"--config.finetune.architecture={tmp_path / 'given.json'}",
        "--config.finetune.start=pretrained",
        "--config.finetune.epochs=3",
    )
    run = start(folder, *arguments)
    while not read_metrics(folder / "finetune"):
        assert run.poll() is None, run.communicate()
        time.sleep(0.1)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 143 and "finetune stopped after step" in errors, errors
    run = start(folder, *arguments)
    said, errors = run.communicate(timeout=300)
    assert run.returncode == 0 and "Traceback" not in errors, errors
    assert f"result.json and all else is in {folder}" in said
    assert [row["step"] for row in read_metrics(folder / "finetune")] == list(range(2, 31, 2))
    assert Result.from_json((folder / "result.json").read_text()).ops == found.ops
    assert safetensors.numpy.load((folder / "pruned.safetensors").read_bytes())
    assert (folder / "report.png").read_bytes()[:4] == b"\x89PNG"


def test_compiled_programs_are_kept_beside_the_results():
    folder = BUCKET / "evaluated"
    run = start(folder, "--config.stage=evaluate", JAX_COMPILATION_CACHE_DIR="")
    said, errors = run.communicate(timeout=300)
    assert run.returncode == 0, errors
    assert "evaluation.json and all else" in said
    assert any(name.startswith("jit_step-") for name in names(folder / "compilation_cache"))
