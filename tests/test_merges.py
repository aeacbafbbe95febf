"""A run that chooses how many tokens are merged: by error, resumed, on images of its own."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from spvit_jax import calibrated, context, pipeline, portions, trained
from spvit_jax.config import ConfigError, from_config_dict
from spvit_jax.convert import save
from spvit_jax.merges import Schedules
from spvit_jax.models import VARIANTS, ViT, ViTSpec
from spvit_jax.planning.parts import distinct, table
from spvit_jax.progress import Console
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path import prices
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.latency import TableError
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.repair import repaired_error
from spvit_jax.single_path.space import SpaceError
from spvit_jax.training.loop import Interrupted

CONFIGS = Path(__file__).parents[1] / "configs"
SPEC = ViTSpec(width=16, depth=3, heads=2, hidden=32, patch_size=4, image_size=28, classes=10)
BUDGET = 0.4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small model, which compiles quickly."""
    file = tmp_path_factory.mktemp("dense") / "dense.safetensors"
    save(ViT(SPEC, rngs=nnx.Rngs(0)), file)
    return str(file)


def config(checkpoint, file="quickstart", **changes):
    """A stage that ends with the choice; ``search__epochs=2`` changes search.epochs."""
    chosen = {"stage": "search", "shortlist__candidates": 0, "budget__macs": BUDGET}
    chosen["search__axes"] = ("op", "heads", "dims", "tokens", "ffn")
    if checkpoint:
        chosen |= {"model__variant": "", "model__checkpoint": checkpoint, "model__heads": 2}
    values = runpy.run_path(str(CONFIGS / f"{file}.py"))["get_config"]("tiny")
    changes = {name.replace("__", "."): value for name, value in (chosen | changes).items()}
    values.update_from_flattened_dict(changes)
    return from_config_dict(values)


def run(settings, folder, should_stop=lambda: False):
    pipeline.run(settings, folder, Console(silent=True), should_stop)


def opened(settings, folder):
    files = pipeline.Workdir(folder)
    return context.open_context(settings, files, Console(silent=True), lambda: False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("merges")
    run(config(checkpoint), folder)
    return folder


def trials(folder):
    return {file.stem: json.loads(file.read_text()) for file in (folder / "merges").glob("*.json")}


def test_the_schedule_of_the_least_error_is_taken_within_the_budget(whole):
    tried = trials(whole)
    best = min(tried.values(), key=lambda trial: trial["repaired"])
    found = architectures.load(whole / "architecture.json")
    assert "nothing_merged" in tried and 3 <= len(tried) <= 7
    assert best["blocks"] == architectures.describe(found, SPEC) and any(found.merges)
    target = BUDGET * prices.published_macs(SPEC).dense
    assert best["macs"] == found.macs(SPEC) <= target
    assert all(trial["macs"] <= target for trial in tried.values())


def test_the_error_is_of_images_that_were_neither_scored_nor_repaired_on(
    whole, checkpoint, tmp_path
):
    run_of = opened(config(checkpoint), tmp_path)
    held = portions.held_indices(run_of.config, 320)
    scored = portions.trial_indices(run_of.config, 320)
    assert len(held) == 32 and not set(held) & set(scored)
    pixels = [np.stack([run_of.train[i]["image"].full() for i in some]) for some in (scored, held)]
    normalise = calibrated.calibrate(run_of).normalise
    seen, judges = (Calibration.of(images, normalise, 16) for images in pixels)
    found = architectures.load(whole / "architecture.json")
    error = repaired_error(trained.load_dense(run_of), seen, judges, found)
    assert error == pytest.approx(min(t["repaired"] for t in trials(whole).values()), rel=1e-3)


def test_few_images_are_scored_in_several_views_and_tried_in_one(checkpoint, tmp_path):
    run_of = opened(config(checkpoint, score__images=900), tmp_path)
    scored = portions.calibration_indices(run_of.config, 320)
    assert len(scored) == 288 and portions.views(run_of.config, 320) == 3
    several = calibrated.calibrate(run_of).batches
    assert sum(int(mask.sum()) for _, mask in several) == 3 * 288
    first = np.asarray(several[0][0][:3]).reshape(3, -1)  # of one image
    assert len(np.unique(first, axis=0)) > 1
    tried = calibrated.calibrate(run_of, portions.trial_indices(run_of.config, 320)).batches
    assert sum(int(mask.sum()) for _, mask in tried) == 288


def test_trials_that_ended_are_only_read(whole, checkpoint, tmp_path):
    with pytest.raises(Interrupted):
        run(config(checkpoint), tmp_path, lambda: len(list(tmp_path.glob("merges/*.json"))) == 2)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("merges/*.json")}
    assert len(kept) == 2 and not (tmp_path / "architecture.json").exists()
    run(config(checkpoint), tmp_path)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert trials(tmp_path) == trials(whole)
    pair = [(folder / "architecture.json").read_bytes() for folder in (tmp_path, whole)]
    assert pair[0] == pair[1]


def test_where_little_has_to_be_saved_nothing_is_merged(checkpoint, tmp_path):
    run_of = opened(config(checkpoint, budget__macs=1.0), tmp_path)
    scores = calibrated.score(run_of, trained.load_dense(run_of), calibrated.calibrate(run_of))
    budget = run_of.config.budget
    schedules = Schedules(run_of, "merges", budget, trained.load_dense(run_of), scores)
    assert schedules.choose() == () and list(trials(tmp_path)) == ["nothing_merged"]


@pytest.mark.parametrize(
    ("file", "changes", "kind", "words"),
    [
        ("swin_t", {"search__axes": ("op", "tokens")}, SpaceError, "windows of a Swin"),
        ("quickstart", {"search__axes": ("tokens",)}, SpaceError, "search.axes must be"),
        (
            "quickstart",
            {"score__patch_weight": 0.5},
            ConfigError,
            "class tokens alone; set it to 0",
        ),
    ],
)
def test_what_cannot_be_merged_or_judged_is_named_before_anything_is_done(
    file, changes, kind, words, tmp_path
):
    with pytest.raises(kind, match=words):
        opened(config("", file, **changes), tmp_path)


def test_times_of_all_tokens_alone_are_refused_before_anything_is_done(tmp_path):
    spec, file = VARIANTS["deit_fashion_mnist"], tmp_path / "table.json"
    times = np.array([[1000.0, *range(1, 2 + len(distinct(spec, PAPER)))]])
    table(spec, PAPER, times, {}).save(file)
    settings = config("", budget__latency=f"{file}:0.9")
    with pytest.raises(TableError, match="none of merged tokens; measure it with tokens in"):
        opened(settings, tmp_path)


def test_a_weight_is_a_share():
    with pytest.raises(ConfigError, match=r"score.patch_weight is a share, in \[0, 1\]; got 2"):
        config("", score__patch_weight=2.0)
