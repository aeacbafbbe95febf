"""The pipeline in this process. Run as a program, it runs with a host and an accelerator."""

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest
import safetensors.numpy
from flax import nnx

from spvit_jax import context, delivery, judged, pipeline, pretrained, recipes, trained
from spvit_jax.config import STAGES, Config, ConfigError, from_config_dict
from spvit_jax.convert import CheckpointError, load, save, save_torch
from spvit_jax.convert.native import About, read_about
from spvit_jax.data.errors import DataError
from spvit_jax.export.near import Near
from spvit_jax.exported import write_files
from spvit_jax.measure import turns
from spvit_jax.models import VARIANTS, ViT
from spvit_jax.progress import Console
from spvit_jax.report import Result
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import ArchitectureError
from spvit_jax.single_path.budget import BudgetError
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.latency import Table, TableError, Times, described
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import form as form_of
from spvit_jax.single_path.prune import prune
from spvit_jax.single_path.space import SpaceError
from spvit_jax.single_path.supernet import supernet
from spvit_jax.state import StateError
from spvit_jax.trained import load_dense
from spvit_jax.training import evaluate as evaluating
from spvit_jax.training.loop import Interrupted, NonFiniteLoss
from spvit_jax.training.metrics import read_metrics
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.recipe import Recipe
from spvit_jax.training.sharding import make_mesh
from spvit_jax.workdir import Workdir

WIDER = dataclasses.replace(VARIANTS["deit_fashion_mnist"], classes=13)
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
OPS = ("skip", "conv1x1", "msa")
EVERYTHING = {  # all axes under gates and two budgets, of parts of what there is
    "search__ops": OPS,
    "search__axes": ("op", "heads", "ffn"),
    "search__unit_group": 8,
    "budget__params": 0.6,
}


def tiny(**changes) -> Config:
    """A tiny quickstart.py:paper, with ``EVERYTHING``; ``search__epochs=2`` changes that field."""
    paper = runpy.run_path(str(QUICKSTART))["get_config"]("paper")
    values = dataclasses.asdict(recipes.tiny(from_config_dict(paper)))
    for name, value in (EVERYTHING | changes).items():
        *groups, field = name.split("__")
        part = values
        for group in groups:
            part = part[group]
        part[field] = value
    return from_config_dict(values)


def run(config, workdir, should_stop=lambda: False):
    pipeline.run(config, workdir, Console(silent=True), should_stop)


def opened(config, workdir):
    """The context of a run."""
    return context.open_context(config, Workdir(workdir), Console(silent=True), lambda: False)


def begin(config, folder):
    """Opens a run, of which there are results then."""
    folder.mkdir(exist_ok=True)
    opened(config, folder)
    (folder / "dense.json").touch()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run, which tests leave as it is."""
    workdir = tmp_path_factory.mktemp("whole")
    run(tiny(), workdir)
    return workdir


@pytest.fixture(scope="module")
def small_whole(tmp_path_factory, small):
    """The folder of a finished run of that model, which tests leave as it is."""
    workdir = tmp_path_factory.mktemp("small")
    run(tiny(**small), workdir)
    return workdir


def test_a_whole_run_leaves_all_it_should(whole):
    result = Result.from_json((whole / "result.json").read_text())
    assert Result.from_json(result.to_json()) == result
    found = architectures.load(whole / "architecture.json")
    spec = VARIANTS[found.model]
    assert (found.ops, found.widths) == (result.ops, result.ffn_widths)
    assert found.head_counts(spec) == result.heads and result.dense_heads == (4,) * 6
    assert found.macs(spec) == result.pruned_macs < result.dense_macs
    assert found.published_macs(spec) == result.pruned_published_macs > result.pruned_macs
    assert (whole / "report.png").stat().st_size > 10_000
    report = (whole / "report.html").read_text(encoding="utf-8")
    assert f"<title>{result.model}, pruned</title>" in report and "What it gets wrong" in report
    assert report.count("<svg") == 2  # of the search and of the fine-tuning
    table = (whole / "table.txt").read_text()
    assert all(row in table for row in ("throughput", "MACs, as run (M)", "MACs, as published (M)"))
    assert table.count("Budget: ") == 2
    for stage in ("search", "finetune"):
        assert [row["step"] for row in read_metrics(whole / stage)] == [2, 4, 6, 8, 10]
        assert "top1" in read_metrics(whole / stage)[-1]
        assert list((whole / stage).glob("events.out.tfevents*"))
    shares = {"budget/MACs", "budget/parameters"}
    gates = {"op_probability/0/1", "heads_probability/0", "ffn_probability/5"}
    last = read_metrics(whole / "search")[-1]
    assert shares | gates <= set(last) and "op_probability/0/2" not in last


def test_both_budgets_are_held_with_heads_and_groups_of_units(whole):
    result = Result.from_json((whole / "result.json").read_text())
    macs, params = result.budgets
    assert (macs.unit, params.unit, result.candidates) == ("MACs", "parameters", OPS)
    assert macs.target == round(0.5 * result.dense_published_macs)
    assert params.target == round(0.6 * result.dense_params)
    assert (macs.dense, params.dense) == (result.dense_macs, result.dense_params)
    assert macs.found == result.pruned_macs <= macs.target
    assert params.found == count_parameters(load(str(whole / "pruned.safetensors")))
    assert params.found <= params.target
    assert max(h.found / h.target for h in result.budgets) > 0.995  # of the tightest
    assert all(width % 8 == 0 for width in result.ffn_widths)
    assert any(0 < heads < 4 for heads in result.heads) and set(result.ops) <= {*OPS}
    threshold = architectures.load(whole / "architecture_threshold.json")
    assert threshold.macs(VARIANTS[threshold.model]) == macs.threshold


def test_the_saved_model_is_the_one_that_was_measured(whole):
    model = load(str(whole / "pruned.safetensors"))
    assert form_of(model) == "deploy"
    assert model.architecture == architectures.load(whole / "architecture.json")
    about, data = read_about(whole / "pruned.safetensors"), tiny().data
    assert about.class_names[:2] == ("T-shirt/top", "Trouser") and len(about.class_names) == 10
    assert (about.mean, about.std, about.crop_ratio) == (data.mean, data.std, data.crop_ratio)
    again = judged.evaluate(opened(tiny(), whole), model)
    assert again.top1 == json.loads((whole / "pruned.json").read_text())["top1"]


def test_config_and_versions_are_saved(whole):
    assert from_config_dict(json.loads((whole / "config.json").read_text())) == tiny()
    versions = json.loads((whole / "versions.json").read_text())
    assert versions["jax"] == jax.__version__ and versions["backend"] == jax.default_backend()
    assert len(versions["devices"]) == jax.device_count()


def test_run_again_it_prints_the_table_and_computes_nothing(whole, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "open_context", None)
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()}
    pipeline.run(tiny(), whole, Console(), lambda: False)
    printed = capsys.readouterr().out
    assert "nothing is left to do" in printed and (whole / "table.txt").read_text() in printed
    after = {file: file.stat().st_mtime_ns for file in whole.rglob("*") if file.is_file()}
    changed = {file.name for file in after if after[file] != before.get(file)}
    assert changed <= {"checksums.json", "config.json", "versions.json", ".lock"}


@pytest.mark.parametrize("name", ["pruned.safetensors", "architecture.json", "dense.json"])
def test_a_finished_run_says_what_of_it_is_gone(whole, name):
    kept = (whole / name).rename(whole / "elsewhere")
    try:
        with pytest.raises(StateError, match=rf"finished, but {name} is gone; put it back, or"):
            pipeline.run(tiny(), whole, Console(), lambda: False)
    finally:
        kept.rename(whole / name)


def test_another_config_in_the_same_folder_names_what_differs(whole):
    with pytest.raises(ConfigError, match=r"search\.epochs: 1\.0, now 2\.0; seed: 0, now 1"):
        run(tiny(search__epochs=2.0, seed=1), whole)
    assert from_config_dict(json.loads((whole / "config.json").read_text())) == tiny()


def test_how_it_is_spread_may_change_on_the_way(whole):
    run(tiny(sharding__fsdp=0, data__workers=3), whole)


def test_a_mistake_that_stopped_at_once_leaves_the_folder_free(tmp_path):
    with pytest.raises(CheckpointError):
        run(tiny(stage="evaluate", model__checkpoint="nowhere.safetensors"), tmp_path)
    run(tiny(stage="evaluate"), tmp_path)
    assert from_config_dict(json.loads((tmp_path / "config.json").read_text())).stage == "evaluate"


def test_stopped_all_along_it_ends_in_the_same_bytes(small_whole, small, tmp_path, assert_same_run):
    stops, finished = 0, False
    while not finished:
        asked = iter(range(4 + 3 * stops))  # each attempt gets a little further

        def should_stop(asked=asked):
            return next(asked, None) is None

        try:
            run(tiny(**small), tmp_path, should_stop)
            finished = True
        except Interrupted:
            stops += 1
    assert stops >= 3
    assert_same_run(tmp_path, small_whole)


def test_stopped_while_it_evaluates_a_training_it_ends_in_the_same_bytes(
    small_whole, small, tmp_path, assert_same_run, monkeypatch
):
    evaluations, eval_batches = [], evaluating.eval_batches

    def counted(*arguments, **options):
        evaluations.append(len(evaluations))
        yield from eval_batches(*arguments, **options)

    monkeypatch.setattr(evaluating, "eval_batches", counted)
    with pytest.raises(Interrupted, match="search stopped after step 10 of 10"):
        run(
            tiny(**small), tmp_path, lambda: len(evaluations) == 2
        )  # the dense model's was the first
    assert "top1" not in read_metrics(tmp_path / "search")[-1]
    with pytest.raises(Interrupted, match="stopped during an evaluation"):
        run(tiny(**small), tmp_path, lambda: len(evaluations) == 3)
    run(tiny(**small), tmp_path)
    assert_same_run(tmp_path, small_whole)


def test_models_are_kept_on_the_host_and_trained_and_measured_elsewhere(
    small_whole, small, tmp_path, assert_same_run
):
    settings = {"JAX_NUM_CPU_DEVICES": "2"}
    command = [sys.executable, __file__, tmp_path, json.dumps(small)]
    shown = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    places = json.loads(shown.stdout)
    assert places == {"pruned": 1, "folded": 1, "trained": 0, "measured": 0}
    assert_same_run(tmp_path, small_whole)


def assert_exported(folder, context_of):
    """The files compute what the saved model does, on test images as they are decoded."""
    names = ("pruned.safetensors", "spvit_torch.py", "pruned.preprocess.json")
    assert all((folder / name).exists() for name in names)
    assert not list(folder.glob("*.failed"))
    model, data = load(str(folder / "pruned.safetensors")), context_of.data
    test = opened(context_of, folder).test
    images = np.stack([np.asarray(test[i]["image"].full()) for i in range(64)])
    expected = model(Normalise(data.mean, data.std)(images))
    for name, least in (("pruned.onnx", 0.99999), ("pruned.int8.onnx", 0.99)):
        session = onnxruntime.InferenceSession(folder / name)
        (logits,) = session.run(None, {"images": images.transpose(0, 3, 1, 2)})
        lengths = np.linalg.norm(logits, axis=1) * np.linalg.norm(expected, axis=1)
        assert np.mean((logits * expected).sum(1) / lengths) > least
    compared = json.loads((folder / "files.json").read_text())
    size = {one["name"]: one["bytes"] for one in compared["models"] if one["bytes"]}
    assert size["dense.int8.onnx"] < 0.4 * size["dense.onnx"]
    # Of the pruned one, trained for a few steps, more has to stay in float.
    assert size["pruned.int8.onnx"] < 0.8 * size["pruned.onnx"]
    assert [one["name"] for one in compared["models"] if one["runtime"] != "openvino"] == [
        *("dense", "pruned", "dense.onnx", "pruned.onnx", "dense.int8.onnx", "pruned.int8.onnx")
    ]
    assert all(0 < one["top-1"] <= 1 for one in compared["models"])
    report, text = ((folder / name).read_text() for name in ("report.html", "files.txt"))
    assert "<h2>Its files</h2>" in report and "pruned.int8.onnx" in report
    assert "pruned.int8.onnx" in text and (folder / "files.png").stat().st_size > 1000


def test_files_that_cannot_be_written_do_not_cost_the_run(whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Near, "enough", property(lambda self: False))
    config = tiny(export__formats=("dynamic.onnx", "stablehlo"), export__opset=20)
    console = Console()
    model = load(str(whole / "pruned.safetensors"))
    work = Workdir(tmp_path)
    opened_here = context.open_context(config, work, console, lambda: False)
    write_files(opened_here, load_dense(opened_here), model)
    found = {file.name for file in tmp_path.iterdir()}
    assert {"pruned.dynamic.onnx.failed", "pruned.stablehlo", "pruned.preprocess.json"} <= found
    assert "pruned.dynamic.onnx" not in found and not any("dense" in name for name in found)
    said = capsys.readouterr().out
    assert f"kept as {tmp_path}/pruned.dynamic.onnx.failed" in said and "pruned.stablehlo: " in said


def test_int8_needs_images_before_anything_is_computed(tmp_path):
    config = tiny(export__formats=("int8.onnx",), data__train_split="train[:40]")
    with pytest.raises(ConfigError, match="int8.onnx needs 64 training images, there are 40"):
        run(config, tmp_path)


def test_a_search_and_a_finetune_in_two_folders(whole, tmp_path):
    run(tiny(stage="search"), tmp_path / "search")
    found = tmp_path / "search" / "architecture.json"
    assert found.read_bytes() == (whole / "architecture.json").read_bytes()
    assert not (tmp_path / "search" / "finetune").exists()
    config = tiny(
        stage="finetune",
        finetune__start="pretrained",
        finetune__architecture=str(found),
        export__formats=("onnx", "int8.onnx", "torch"),
        export__pixels="uint8",
    )
    run(config, tmp_path / "finetune")
    result = Result.from_json((tmp_path / "finetune" / "result.json").read_text())
    assert (result.decision, result.budgets, result.candidates) == ("given", (), ())
    given = architectures.load(found)
    assert (result.ops, result.ffn_widths) == (given.ops, given.widths)
    assert result.heads == given.head_counts(VARIANTS[given.model])
    assert_exported(tmp_path / "finetune", context_of=config)


def test_finetune_wants_an_architecture_that_fits_before_anything_else(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"ops": ["msa"], "ffn": [4]}')
    config = tiny(stage="finetune", finetune__start="pretrained", finetune__architecture=str(file))
    with pytest.raises(ArchitectureError, match="6 blocks"):
        run(config, tmp_path / "work")
    file.unlink()
    with pytest.raises(ArchitectureError, match=r"no architecture at .*mine\.json"):
        run(config, tmp_path / "work")


def test_what_stands_beside_the_weights_is_compared(tmp_path):
    dense = load(pretrained.address("packaged:deit_fashion_mnist"))
    args = {"patch_size": 4, "num_heads": 4}
    says = {"architecture": "vit_small_patch16_224", "model_args": args}
    for name in ("model", "teacher"):
        (tmp_path / name).mkdir()
        save_torch(dense, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(says))
    config = tiny(
        model__variant="",
        model__checkpoint=str(tmp_path / "model"),
        teacher__checkpoint=str(tmp_path / "teacher"),
        finetune__distillation="soft",
    )
    begin(config, tmp_path / "work")
    for name, what in (("teacher", "teacher"), ("model", "dense model")):
        beside = tmp_path / name / "config.json"
        whole = beside.read_text()
        beside.write_text(whole.replace("4}", "2}"))
        with pytest.raises(ConfigError, match=rf"has changed: {what}\.heads: 4, now 2\. Put"):
            begin(config, tmp_path / "work")
        beside.write_text(whole)
    begin(config, tmp_path / "work")


def test_all_files_of_sharded_weights_are_compared(tmp_path):
    arrays = {"a": np.zeros(3, "f4"), "b": np.ones(3, "f4")}
    for name, value in arrays.items():
        safetensors.numpy.save_file({name: value}, tmp_path / f"{name}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {name: f"{name}.safetensors" for name in arrays}}))
    config, seen = tiny(model__checkpoint=str(tmp_path)), set()
    for value in (1, 1, 2):
        safetensors.numpy.save_file({"b": np.full(3, value, "f4")}, tmp_path / "b.safetensors")
        looks = context.Beginning(config, None).looks()
        seen.add(looks["CRC-32 of what is in model.checkpoint"]())
    assert len(seen) == 2


def test_what_else_a_run_is_told_by_files_is_compared(tmp_path):
    file, table = tmp_path / "mine.json", tmp_path / "table.json"
    found = architectures.Architecture(("skip",) * 6, ((0,),) * 6)
    found.save(file)
    config = tiny(stage="finetune", finetune__start="pretrained", finetune__architecture=str(file))
    begin(config, tmp_path / "finetune")
    dataclasses.replace(found, ffn=((1,),) * 6).save(file)
    with pytest.raises(ConfigError, match=r"CRC-32 of what is in finetune\.architecture: "):
        begin(config, tmp_path / "finetune")
    times = Times({"skip": 1.0, "conv1x1": 2.0}, {1: 3.0, 4: 6.0}, {0: 1.0, 256: 2.5})
    model = described(VARIANTS["deit_fashion_mnist"])
    Table(model, {}, 50.0, (times,) * 6).save(table)
    config = tiny(stage="search", budget__latency=f"{table}:0.9")
    begin(config, tmp_path / "search")
    Table(model, {}, 51.0, (times,) * 6).save(table)
    with pytest.raises(ConfigError, match=r"changed: CRC-32 of the table of budget\.latency: "):
        begin(config, tmp_path / "search")


def test_finetune_from_searched_weights_needs_the_search(tmp_path):
    with pytest.raises(ConfigError, match=r"finetune\.start"):
        tiny(stage="finetune", finetune__start="searched", finetune__architecture="x.json")


def test_pretraining_ends_in_a_checkpoint_to_start_from(tmp_path):
    config = tiny(stage="pretrain", model__checkpoint="", pretrain__ema_decay=0.5)
    run(config, tmp_path)
    file = tmp_path / "pretrained.safetensors"
    about, data = read_about(file), config.data
    assert about.class_names[:2] == ("T-shirt/top", "Trouser") and len(about.class_names) == 10
    assert (about.mean, about.std, about.crop_ratio) == (data.mean, data.std, data.crop_ratio)
    assert load(str(file)).spec == VARIANTS["deit_fashion_mnist"]  # its heads too
    trained = json.loads((tmp_path / "pretrained.json").read_text())["top1"]
    run(tiny(stage="evaluate", model__checkpoint=str(file)), tmp_path / "evaluate")
    evaluated = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text())
    assert evaluated["top1"] == trained
    notes = []
    model = load(str(file), VARIANTS["deit_fashion_mnist"], notes=notes)
    assert not notes and np.isfinite(model.head.kernel[...]).all()


NOTHING_DONE = {"checksums.json", "config.json", "versions.json", "began.json", ".lock"}
SOFT = {"finetune__distillation": "soft", "model__classes": 11}
TEN = "packaged:deit_fashion_mnist"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget__macs": 0.001}, BudgetError, r"budget\.macs: 16,659 MACs are below the [\d,]+"),
        ({"budget__params": 10.0}, BudgetError, r"budget\.params: 10 parameters are below"),
        ({"search__axes": ("ffn",), "budget__macs": 0.3}, BudgetError, r"budget\.macs: .*\.axes"),
        ({"search__axes": ("op", "width")}, SpaceError, r"search\.axes must be .*heads.*'width'"),
        ({"search__axes": ()}, SpaceError, r"search\.axes must be .*got \(\)"),
        ({"search__axes": ("op", "op")}, SpaceError, r"search\.axes must be different"),
        ({"search__ops": ("skip", "conv5x5", "msa")}, SpaceError, r"search\.ops must .*'conv5x5'"),
        ({"search__ops": ("msa", "skip")}, SpaceError, r"search\.ops must .*in this order"),
        ({"search__ops": ("skip", "conv1x1")}, SpaceError, r"search\.ops must .*with msa"),
        ({"search__ops": ("norm_skip", "msa")}, SpaceError, r"search\.ops must .*'norm_skip'"),
        (
            {"search__unit_group": 7},
            SpaceError,
            r"search\.unit_group=7 .* 256 FFN units of block 0",
        ),
        ({"budget__latency": "no.json:0.5"}, TableError, r"no\.json"),
        ({"finetune__batch_size": 400}, DataError, "400 images is more than the 320"),
        ({"model__variant": "deit_huge"}, ConfigError, "deit_tiny_patch16_224"),
        ({"model__classes": 3}, ConfigError, "model.classes=3"),
        ({"model__image_size": 30}, ConfigError, "model.image_size=30"),
        ({"model__checkpoint": ""}, ConfigError, "model.checkpoint is empty"),
        (SOFT | {"teacher__checkpoint": "no.pth"}, CheckpointError, r"no\.pth"),
        (SOFT | {"teacher__checkpoint": TEN}, ConfigError, "knows 10 classes, the student 11"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_computed(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        run(tiny(**changes), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= NOTHING_DONE


SWIN, REGNET = (f"packaged:{name}_fashion_mnist" for name in ("swin", "regnety"))


@pytest.mark.parametrize(
    ("teacher", "message"), [(SWIN, r"has \d+ blocks"), (REGNET, "has no blocks of tokens")]
)
def test_a_teacher_of_features_has_the_students_shape(tmp_path, teacher, message):
    config = tiny(finetune__distillation="features", teacher__checkpoint=teacher)
    with pytest.raises(ConfigError, match=rf"finetune\.distillation=features .*{message}"):
        run(config, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= NOTHING_DONE


def test_features_are_distilled_without_labels_and_for_as_many_steps_as_asked(tmp_path, small):
    config = tiny(
        **small,
        model__dtype="bfloat16",
        finetune__distillation="features",
        finetune__distillation_weight=1.0,
        finetune__accumulation=2,
        search__distillation="features",
        log_every=1,
    )
    made, losses = opened(config, tmp_path), []
    dense = trained.load_dense(made)
    gating = Gating.of(config.search, config.budget, made.spec, dense)
    network = supernet(dense, gating.space.ops)
    _, logits = trained.fit(made, "gated", network, config.search, gating=gating, steps=2)
    assert {"penalty", "distillation", "cross_entropy"} <= set(read_metrics(tmp_path / "gated")[0])
    found, training = gating.project(logits), config.finetune
    training.schedule = "constant"  # a cosine ends with the steps
    for folder, steps in (("trial", 3), ("trial", 6), ("whole", 6)):
        small, _ = trained.fit(made, folder, prune(dense, found), training, steps=steps)
        losses.append([row["loss"] for row in read_metrics(tmp_path / folder)])
    assert losses[0] == losses[1][:3] and losses[1] == losses[2] and len(losses[2]) == 6
    assert small.architecture == found and "accuracy" not in read_metrics(tmp_path / "whole")[0]


def test_a_loss_that_explodes_names_its_step_and_keeps_the_last_good_checkpoint(tmp_path):
    config = tiny(stage="pretrain", pretrain__learning_rate=1e30, checkpoint_every=1)
    with pytest.raises(NonFiniteLoss, match=r"pretrain: step \d+ gave .* checkpoint of step \d+"):
        run(config, tmp_path)
    for row in read_metrics(tmp_path / "pretrain"):
        assert np.isfinite(list(row.values())).all()
    with pytest.raises(NonFiniteLoss):  # what was kept is readable, and gets no further
        run(config, tmp_path)


def test_batches_must_suit_the_devices(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "device_count", lambda: 3)
    monkeypatch.setattr(context, "make_mesh", lambda fsdp: None)
    with pytest.raises(ConfigError, match=r"search\.batch_size=32 .* 3 devices"):
        run(tiny(), tmp_path)


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_a_workdir_that_cannot_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to --workdir=.*choose a folder you own"):
        run(tiny(), tmp_path / place)


def test_a_damaged_config_json_is_named(tmp_path):
    run_config = tmp_path / "config.json"
    run_config.write_text('{"stage": "al')
    with pytest.raises(ConfigError, match=r"config\.json is damaged"):
        run(tiny(), tmp_path)


EVALUATIONS = {  # variant, checkpoint, form, top-1 on 128 images at least
    "dense": ("deit_fashion_mnist", "packaged:deit_fashion_mnist", "dense", 0.8),
    "dense, shapes read": ("", "packaged:deit_fashion_mnist", "dense", 0.8),
    "regnet": ("regnety_fashion_mnist", "packaged:regnety_fashion_mnist", "dense", 0.8),
    "pruned": ("", "pruned.safetensors", "deploy", 0.0),
    "pruned, variant given": ("deit_fashion_mnist", "pruned.safetensors", "deploy", 0.0),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_any_checkpoint_is_evaluated(whole, tmp_path, capsys, name):
    variant, checkpoint, form, least = EVALUATIONS[name]
    if form == "deploy":
        checkpoint = str(whole / checkpoint)
    changes = {"model__variant": variant, "model__checkpoint": checkpoint}
    heads = 0 if name == "regnet" else 4  # which has none to be told of
    config = tiny(stage="evaluate", model__heads=heads, **changes)
    pipeline.run(config, tmp_path, Console(), lambda: False)
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert (found["images"], found["left_out"], found["form"]) == (128, 0, form)
    assert least <= found["top1"] <= found["top5"] <= 1
    rows = found["classes"]
    assert [row["name"] for row in rows[:2]] == ["T-shirt/top", "Trouser"] and len(rows) == 10
    assert sum(row["images"] for row in rows) == 128
    right = sum(row["images"] * (row["accuracy"] or 0) for row in rows)
    assert right == pytest.approx(128 * found["top1"])
    if form == "deploy":
        assert found["top1"] == json.loads((whole / "pruned.json").read_text())["top1"]
    elif "deit" in checkpoint:
        assert found["top1"] == json.loads((whole / "dense.json").read_text())["top1"]
    assert ("evaluated as it is" in printed) == (name == "pruned, variant given")
    assert (tmp_path / "confusion.png").stat().st_size > 10_000
    text = (tmp_path / "evaluation.txt").read_text()
    worst = text.partition("\n\nEvery class")[0]
    assert f"top-1 {found['top1']:.2%}, top-5 {found['top5']:.2%} of 128 images" in worst
    assert worst in printed and worst.count("\n") == 9
    pipeline.run(config, tmp_path, Console(), lambda: False)
    assert worst in capsys.readouterr().out


def test_a_finished_run_is_of_what_it_began_from(tmp_path, capsys):
    dense = load(pretrained.address("packaged:deit_fashion_mnist"))
    file, teacher = tmp_path / "m.safetensors", tmp_path / "teacher.safetensors"
    save(dense, file)
    save(dense, teacher)
    config = tiny(stage="evaluate", model__checkpoint=str(file), teacher__checkpoint=str(teacher))
    run(config, tmp_path / "work")
    dense.head.bias[...] += 1
    save(dense, file)
    said = r"began from has changed: CRC-32 of what is in model\.checkpoint: .* Put it back, or"
    with pytest.raises(ConfigError, match=said):
        run(config, tmp_path / "work")
    teacher.unlink()
    with pytest.raises(ConfigError, match=said):  # of the other file there is nothing to compare
        run(config, tmp_path / "work")
    file.unlink()
    pipeline.run(config, tmp_path / "work", Console(), lambda: False)
    printed = capsys.readouterr().out
    assert f"is not compared: no file at {file}" in printed and "nothing is left to do" in printed


def test_an_interrupted_evaluation_begins_again(tmp_path):
    asked = iter([False, False, True])
    with pytest.raises(Interrupted, match="begins again"):
        run(tiny(stage="evaluate"), tmp_path, lambda: next(asked))
    assert not (tmp_path / "evaluation.json").exists()
    run(tiny(stage="evaluate"), tmp_path)
    assert json.loads((tmp_path / "evaluation.json").read_text())["images"] == 128


def test_an_evaluation_heeds_what_the_model_file_says(tmp_path, capsys):
    large = dataclasses.replace(VARIANTS["deit_fashion_mnist"], image_size=56)
    found = architectures.Architecture(("skip",) * 6, ((0,),) * 6)
    model, about = prune(ViT(large, rngs=nnx.Rngs(0)), found), About(crop_ratio=0.5)
    save(model, tmp_path / "large.safetensors", about=about)
    config = tiny(stage="evaluate", model__checkpoint=str(tmp_path / "large.safetensors"))
    pipeline.run(config, tmp_path / "work", Console(), lambda: False)
    assert "trained with data.crop_ratio=0.5, now it is 1.0" in capsys.readouterr().out
    found = json.loads((tmp_path / "work" / "evaluation.json").read_text())
    assert (found["form"], found["images"]) == ("deploy", 128)  # there is nothing to fold


def test_a_head_of_other_classes_is_never_evaluated(tmp_path):
    dense = load(pretrained.address("packaged:deit_fashion_mnist"), WIDER)
    save(dense, tmp_path / "wider.safetensors")
    changes = {"stage": "evaluate", "model__checkpoint": str(tmp_path / "wider.safetensors")}
    for variant in ("", "deit_fashion_mnist"):
        with pytest.raises(ConfigError, match=r"knows 13 classes, the data has 10.*classes=13"):
            run(tiny(model__variant=variant, **changes), tmp_path / f"refused {variant}")
        work = tmp_path / f"wider {variant}"
        run(tiny(model__variant=variant, model__classes=13, **changes), work)
        assert len(json.loads((work / "evaluation.json").read_text())["classes"]) == 10


def test_every_stage_of_the_config_is_one_of_the_pipeline():
    assert set(STAGES) == set(pipeline.STAGES)


def apart(workdir, small):
    """Runs with device 1 for the host's and device 0 for the accelerator; prints what was where."""
    accelerator, other = jax.devices()
    places = {}

    def note(name, tree):
        devices = {d.id for leaf in jax.tree.leaves(tree) for d in leaf.devices()}
        places[name] = devices.pop() if len(devices) == 1 else sorted(devices)

    fold, program, compiled = delivery.fold, Recipe.program, turns.compiled

    def folding(model, **options):
        note("pruned", nnx.state(model))
        folded = fold(model, **options)
        note("folded", nnx.state(folded))
        return folded

    def programming(recipe, graph, mesh, state, teacher):
        note("trained", state)
        return program(recipe, graph, mesh, state, teacher)

    def compiling(model, images):
        call = compiled(model, images)
        note("measured", call(images))
        return call

    pipeline.host, delivery.fold = lambda: other, folding
    context.make_mesh = lambda fsdp: make_mesh(fsdp, [accelerator])
    pipeline.jax.device_count = lambda: 1
    Recipe.program, turns.compiled = programming, compiling
    run(tiny(**small), workdir)
    print(json.dumps(places))


if __name__ == "__main__":
    apart(sys.argv[1], json.loads(sys.argv[2]))
