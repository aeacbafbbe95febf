"""A run that scores, tries candidates and matches features: label-free, resumed, and its best."""

import json
import runpy
from pathlib import Path

import pytest

from spvit_jax import context, pipeline, portions, shortlist, trials
from spvit_jax.config import ConfigError, from_config_dict
from spvit_jax.convert import Facts, load, read_spec
from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import open_source
from spvit_jax.progress import Console
from spvit_jax.report import Result
from spvit_jax.single_path import architecture as architectures
from spvit_jax.training.loop import Interrupted
from spvit_jax.training.metrics import read_metrics
from spvit_jax.trials import Trial

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"


def config(**changes):
    """quickstart.py:tiny; ``search__epochs=2`` changes search.epochs."""
    values = runpy.run_path(str(QUICKSTART))["get_config"]("tiny")
    changes = {"measure_seconds": 0.01, "eval_every": 0.0} | changes
    values.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return from_config_dict(values)


def run(settings, folder, should_stop=lambda: False):
    pipeline.run(settings, folder, Console(silent=True), should_stop)


def opened(settings, folder):
    files = pipeline.Workdir(folder)
    return context.open_context(settings, files, Console(silent=True), lambda: False)


@pytest.fixture(scope="module", autouse=True)
def far_ones_are_trained_too():
    """On few images scores alone are far ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortlist, "NEAR", 2.0)
        yield


@pytest.fixture(scope="module")
def small_whole(tmp_path_factory, small):
    folder = tmp_path_factory.mktemp("small")
    run(config(**small), folder)
    return folder


def test_the_best_of_what_was_tried_goes_on(small_whole, small):
    tried = [Trial(**values) for values in read(small_whole / "shortlist.json")["trials"]]
    assert tried[0].name == "scored" and len(tried) > 2
    trained = {t.name: t.trained for t in tried if t.trained is not None}
    near = sorted(tried, key=lambda t: t.repaired)[:2]
    assert set(trained) == {t.name for t in near}
    result = Result.from_json((small_whole / "result.json").read_text())
    assert trained[result.decision] == min(trained.values())
    found = architectures.load(small_whole / "architecture.json")
    spec = read_spec(small["model__checkpoint"], Facts.of(2))
    (best,) = [t for t in tried if t.name == result.decision]
    assert found.macs(spec) == best.macs == result.pruned_macs
    assert best.blocks == architectures.describe(found, spec)
    assert all(t.macs <= 0.5 * result.dense_published_macs for t in tried)
    assert load(small_whole / "pruned.safetensors").architecture == found
    (budget,) = result.budgets
    assert budget.threshold is None and budget.found <= budget.target
    assert best.trained < 0.5 and not (small_whole / "search").exists()  # of the features' variance
    steps = read_metrics(small_whole / "shortlist" / f"{tried.index(near[0]):02d}")
    assert steps[-1]["step"] == 4 and "distillation" in steps[-1]


def test_it_goes_on_where_it_was_stopped(small_whole, small, tmp_path):
    with pytest.raises(Interrupted):  # among the trials
        run(
            config(**small),
            tmp_path,
            lambda: bool(list(tmp_path.glob("shortlist/*/repaired.json"))),
        )
    assert len(list(tmp_path.glob("shortlist/*/repaired.json"))) == 1
    assert not (tmp_path / "shortlist.json").exists()
    with pytest.raises(Interrupted):
        run(
            config(**small),
            tmp_path,
            lambda: bool(list(tmp_path.glob("shortlist/*/metrics.jsonl"))),
        )
    assert not list(tmp_path.glob("shortlist/*/trained.json"))
    run(config(**small), tmp_path)
    for name in ("scores.json", "shortlist.json", "architecture.json", "pruned.safetensors"):
        assert (tmp_path / name).read_bytes() == (small_whole / name).read_bytes(), name


class Shuffled:
    """A source whose labels are all wrong."""

    def __init__(self, source):
        self.source = source
        self.class_names = source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        row = self.source[index]
        return row | {"label": (row["label"] + 1) % 10}


def test_no_label_is_read(small_whole, small, tmp_path):
    settings = config(**small)
    splits = (settings.data.train_split, settings.data.test_split)
    inputs = context.Inputs(*(Shuffled(open_source(settings.data, split)) for split in splits))
    pipeline.run(settings, tmp_path, Console(silent=True), lambda: False, inputs=inputs)
    for name in ("shortlist.json", "architecture.json", "pruned.safetensors"):
        assert (tmp_path / name).read_bytes() == (small_whole / name).read_bytes(), name
    pair = [Result.from_json((f / "result.json").read_text()) for f in (tmp_path, small_whole)]
    assert pair[0].dense_quality.top1 != pair[1].dense_quality.top1


def test_trials_are_judged_on_training_images_that_nothing_was_fitted_to(tmp_path):
    run_of = opened(config(), tmp_path)
    inner, judges, some, calibration = shortlist._divided(run_of)
    held, trained = set(inner.test.indices.tolist()), set(inner.train.indices.tolist())
    scored = set(portions.calibration_indices(run_of.config, 320).tolist())
    assert len(held) == 32 == sum(int(mask.sum()) for _, mask in judges.batches)
    assert not held & trained and not held & scored and held | trained == set(range(320))
    assert scored <= trained
    for images in (some, calibration):  # fewer than trials take
        assert sum(int(mask.sum()) for _, mask in images.batches) == 64


@pytest.mark.parametrize("images", [10, 64, 90, 10_000])
def test_a_small_set_is_divided_too(images):
    settings = config(score__images=64, shortlist__images=32)
    held = portions.held_indices(settings, images)
    scored = portions.calibration_indices(settings, images)
    assert len(held) == min(32, images // 5) and not set(held) & set(scored)
    assert len(scored) == min(64, images - len(held)) == len(set(scored))
    axes = {"search__axes": ("op", "heads", "dims", "tokens", "ffn")}
    for other in ({"shortlist__candidates": 0}, {"stage": "frontier"}):
        assert len(portions.held_indices(config(**other, **axes), images)) == len(held)  # merges
        assert len(portions.held_indices(config(**other), images)) == 0


@pytest.mark.parametrize("stage", ["all", "search"])  # the second trains nothing else
def test_trials_without_a_batch_are_refused_before_anything_is_done(stage, tmp_path):
    settings = config(stage=stage, data__train_split="train[:34]", finetune__batch_size=32)
    with pytest.raises(DataError, match="28 training images"):
        opened(settings, tmp_path)


def test_a_search_that_starts_from_scores_is_tried_too(tmp_path, small):
    settings = config(search__epochs=1.0, **small)
    run(settings, tmp_path)
    tried = [Trial(**values) for values in read(tmp_path / "shortlist.json")["trials"]]
    assert [t.name for t in tried[:2]] == ["project", "scored"]
    assert (tmp_path / "architecture_threshold.json").exists()
    assert Result.from_json((tmp_path / "result.json").read_text()).budgets[0].threshold
    first = read_metrics(tmp_path / "search")[0]
    assert 0.8 < first["budget/MACs"] < 1.1  # from the start, and not the dense model's 1.74


def test_where_none_is_near_the_best_nothing_is_trained(tmp_path, small, monkeypatch):
    monkeypatch.setattr(shortlist, "NEAR", 1.0)
    run(config(stage="search", **small), tmp_path)
    tried = [Trial(**values) for values in read(tmp_path / "shortlist.json")["trials"]]
    assert len(tried) > 2 and all(t.trained is None for t in tried)
    best = min(tried, key=lambda t: t.repaired)
    spec = read_spec(small["model__checkpoint"], Facts.of(2))
    assert best.blocks == architectures.describe(
        architectures.load(tmp_path / "architecture.json"), spec
    )
    assert not list(tmp_path.glob("shortlist/*/metrics.jsonl"))


def test_without_a_shortlist_the_scored_choice_stands(tmp_path, small):
    settings = config(shortlist__candidates=0, finetune__epochs=0.1, **small)
    run(settings, tmp_path)
    assert not (tmp_path / "shortlist").exists()
    assert Result.from_json((tmp_path / "result.json").read_text()).decision == "scored"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finetune__start": "searched"}, "finetune.start=searched needs a search"),
        ({"finetune__start": "pretrained"}, "shortlist.candidates=0"),
        ({"shortlist__steps": 0}, "shortlist.steps must be above 0"),
        (
            {"search__decision": "threshold", "search__epochs": 1.0},
            "search.decision=threshold may be above the budget",
        ),
        ({"search__start": "score"}, "search.start must be one of released, scores"),
        ({"search__decision": "score"}, "search.decision must be one of"),
    ],
)
def test_what_contradicts_itself_is_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        config(**changes)


def read(file):
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("errors", "count", "names"),
    [
        ([0.2, 0.1, 0.15, 0.3], 3, ["1", "2"]),
        ([0.2, 0.1, 0.15, 0.3], 1, ["1"]),
        ([0.1, 0.11, 0.12, 0.13], 3, ["0", "1", "2"]),
        ([0.2, 0.1], 2, ["1"]),  # what is as far off does not catch up
        ([0.0, 0.0, 0.1], 3, ["0", "1"]),
    ],
)
def test_what_is_far_behind_is_not_trained(errors, count, names, monkeypatch):
    monkeypatch.setattr(shortlist, "NEAR", 1.5)
    tried = {str(i): Trial(str(i), "", 1, error) for i, error in enumerate(errors)}
    assert shortlist.nearest(tried, count) == names


def test_a_trial_is_described():
    rows = trials.table(
        [
            Trial("scored", "msa skip", 2_000_000, 0.5, 0.4),
            Trial("uniform width", "msa msa", 2_000_000, 0.45, 0.3),
            Trial("uniform depth", "skip skip", 2_000_000, 0.7),
        ]
    )
    names = [line.split("  ")[0] for line in rows.splitlines()]
    assert names[-3:] == ["uniform width", "scored", "uniform depth"] and "–" in rows
