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
import PIL.Image
import pytest
import safetensors.numpy
from etils import epath
from gcp_storage_emulator import server

from spvit_jax import prepare
from spvit_jax.config import Config, ConfigError, Data
from spvit_jax.convert import CheckpointError, Facts, read_spec
from spvit_jax.convert.fetch import fetch, in_bucket
from spvit_jax.data.errors import DataError
from spvit_jax.data.fingerprint import fingerprint
from spvit_jax.data.sources import open_source
from spvit_jax.report import Result
from spvit_jax.single_path.architecture import Architecture, ArchitectureError
from spvit_jax.single_path.architecture import load as load_architecture
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.metrics import METRICS_FILE, MetricWriter, read_metrics
from spvit_jax.training.sharding import make_mesh, sharded
from spvit_jax.training.step import TrainState
from spvit_jax.training.trace import Trace
from spvit_jax.workdir import Workdir

ROOT = Path(__file__).parents[1]
BUCKET = epath.Path("gs://bucket")


def heeding_generations(handler):
    """A handler of the stand-in, with the conditions and versions that TensorStore relies on.

    The bucket "locked" is somebody else's.
    """

    def handle(request, response, storage):
        name = request.params.get("object_id") or request.query.get("name", [""])[0]

        def generation():
            objects = storage.objects.get(request.params.get("bucket_name"), {})
            return objects[name]["generation"] if name in objects else "0"

        condition = {key: values[0] for key, values in request.query.items()}
        if request.params.get("bucket_name") == "locked":
            response.status = server.HTTPStatus.FORBIDDEN
        elif condition.get("ifGenerationMatch", generation()) != generation():
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
        patch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", address)  # ArrayRecord's
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
    assert folder.read_json("dense.json", dict[str, float]) == {"top1": 0.5}
    assert folder.exists("dense.json") and not folder.exists("nothing.json")
    assert folder.read_json("nothing.json", dict[str, float]) is None
    assert names(folder.path) == ["checksums.json", "dense.json", "report.png"]


def test_a_write_that_fails_leaves_the_file_there_was():
    folder = Workdir("gs://bucket/failed")
    folder.write("model", lambda path: path.write_text("old"))

    def fail(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        folder.write("model", fail)
    assert (folder / "model").read_text() == "old"
    assert names(folder.path) == ["checksums.json", "model"]


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
    with pytest.raises(ConfigError, match=r"--workdir=gs://bukket/run .*check the address"):
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


def upload(folder, target):
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder)).write_bytes(file.read_bytes())


def test_a_set_of_images_reads_as_it_does_from_a_disk(tmp_path):
    for split, count in (("train", 9), ("val", 3)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for index in range(count):
                noise = np.random.default_rng([label, index, count]).integers(0, 256, (9, 7, 3))
                image = PIL.Image.fromarray(noise.astype(np.uint8))
                image.save(tmp_path / "pets" / split / name / f"{index}.png")
    assert prepare.main([str(tmp_path / "pets"), str(tmp_path / "tfds")]) == 0
    upload(tmp_path / "tfds", BUCKET / "tfds")
    for split, size in (("train[:75%]", 14), ("val", 6)):
        here, there = (
            open_source(Data(source="tfds:pets", directory=str(directory)), split)
            for directory in (tmp_path / "tfds", BUCKET / "tfds")
        )
        assert len(there) == len(here) == size and there.class_names == ("ant", "bee")
        for index in range(size):
            mine, other = here[index], there[index]
            assert mine["label"] == other["label"]
            np.testing.assert_array_equal(mine["image"].full(), other["image"].full())
        assert fingerprint(here) == fingerprint(there)


@pytest.mark.parametrize("directory", ["gs://bucket/nothing", "gs://bukket/tfds"])
def test_a_set_that_is_not_there_says_how_to_bring_it(directory):
    with pytest.raises(DataError, match="none prepared in gs://") as raised:
        open_source(Data(source="tfds:pets", directory=directory), "train")
    assert f"gcloud storage cp --recursive DATA_DIR/* {directory}" in str(raised.value)


def test_weights_are_fetched_once_and_again_when_they_change(tmp_path, monkeypatch):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path))
    weights = BUCKET / "weights" / "model.safetensors"
    for name in ("swin_fashion_mnist", "deit_fashion_mnist"):
        data = fetch(f"packaged:{name}").read_bytes()
        weights.write_bytes(data)
        found = fetch(str(weights))
        assert found.name == weights.name and found.read_bytes() == data
        os.utime(found, (0, 0))
        assert fetch(str(weights)) == found and found.stat().st_mtime == 0
        answer = in_bucket(str(weights), 700)
        assert (answer.start, answer.size) == (700, len(data)) and answer.version
        assert answer.body.read() == data[700:]
    assert read_spec(str(weights), Facts(heads=4)).width == 64
    with pytest.raises(CheckpointError, match="no file at gs://bucket/weights/no.pth"):
        fetch("gs://bucket/weights/no.pth")


def test_weights_that_arrive_short_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path))
    (BUCKET / "weights" / "model-deadbeef.pth").write_bytes(b"other bytes")
    with pytest.raises(CheckpointError, match="nothing was kept"):
        fetch("gs://bucket/weights/model-deadbeef.pth")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_search_found_is_read_where_it_left_it(tmp_path):
    found = Architecture(("conv1x1",) * 5 + ("msa",), (64,) * 6)
    found.save(tmp_path / "architecture.json")
    upload(tmp_path, BUCKET / "search")
    assert load_architecture(BUCKET / "search" / "architecture.json") == found
    with pytest.raises(ArchitectureError, match="no architecture at gs://bucket/search/no.json"):
        load_architecture("gs://bucket/search/no.json")


def test_a_bucket_that_is_not_ours_is_an_error_that_says_what_to_do():
    def load_images(directory):
        open_source(Data(source="tfds:pets", directory=directory), "train")

    calls = {fetch: CheckpointError, load_architecture: ArchitectureError, load_images: DataError}
    for call, kind in calls.items():
        with pytest.raises(kind, match=r"cannot read gs://locked/x \(.*; check the address"):
            call("gs://locked/x")


def test_a_trace_is_written_there(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Trace(str(BUCKET / "traces")) as trace:
        for _ in range(12):
            trace.before_step()
    (written,) = (BUCKET / "traces" / "plugins" / "profile").iterdir()
    assert any(name.endswith(".xplane.pb") for name in names(written))
    assert not list(tmp_path.iterdir())


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


def test_a_run_of_weights_and_an_architecture_from_there_is_interrupted_and_ends(
    tmp_path, monkeypatch, small_model
):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path / "cache"))
    folder, given = BUCKET / "run", BUCKET / "given"
    found = Architecture(("conv1x1", "msa"), (16,) * 2)
    (given / "architecture.json").write_text(found.to_json())
    weights = Path(small_model["model.checkpoint"])
    (given / weights.name).write_bytes(weights.read_bytes())
    arguments = (
        "--config.stage=finetune",
        "--config.model.variant=",
        "--config.model.heads=2",
        f"--config.model.checkpoint={given / weights.name}",
        f"--config.finetune.architecture={given / 'architecture.json'}",
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
