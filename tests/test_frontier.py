"""The curve of one scoring pass: resumed, label-free, and what its files say is so."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from spvit_jax import calibrated, context, curve, pipeline
from spvit_jax.config import ConfigError, from_config_dict
from spvit_jax.convert import load
from spvit_jax.data.sources import open_source
from spvit_jax.models import VARIANTS
from spvit_jax.progress import Console
from spvit_jax.quality import Quality
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.budget import BudgetError
from spvit_jax.training.loop import Interrupted

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
SPEC = VARIANTS["deit_fashion_mnist"]


def config(*budgets, small=()):
    values = runpy.run_path(str(QUICKSTART))["get_config"]("tiny").to_dict()
    values["stage"], values["measure_seconds"] = "frontier", 0.01
    values["score"] = {"images": 64, "batch_size": 16}
    values["frontier"]["budgets"] = budgets
    values["search"]["axes"] = ("op", "heads", "ffn")
    for name, value in dict(small).items():
        group, field = name.split(".")
        values[group][field] = value
    return from_config_dict(values)


def run(settings, folder, should_stop=lambda: False):
    pipeline.run(settings, folder, Console(silent=True), should_stop)


def stop_in(calls):
    """Says stop at the given call, and from then on."""
    left = iter(range(calls))
    return lambda: next(left, None) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frontier")
    run(config(0.7, 0.4), folder)
    return folder


@pytest.fixture(scope="module")
def small_whole(tmp_path_factory, small_model):
    """Of a model that compiles quickly."""
    folder = tmp_path_factory.mktemp("small")
    run(config(0.7, 0.5, small=small_model), folder)
    return folder


def test_every_budget_has_a_model_that_keeps_to_it(whole):
    points = json.loads((whole / "frontier.json").read_text())["points"]
    assert [p["budget"] for p in points] == [1, 0.7, 0.4] and (whole / "frontier.png").exists()
    assert (whole / "frontier.html").read_text().count("<tr>") == 2 + 3 + 2
    full = points[0]["published_macs"]
    for number, point in enumerate(points[1:]):
        folder = whole / "frontier" / f"{number:02d}"
        model = load(folder / "model.safetensors")
        kept = architectures.load(folder / "architecture.json")
        assert model.architecture == kept and kept.macs(SPEC) == point["macs"]
        assert 0.99 * point["budget"] * full < point["macs"] <= point["budget"] * full
        assert 0 < point["quality"]["top1"] <= 1 and point["latency_ms"] > 0
    assert points[1]["quality"]["top1"] > 0.75 and points[1]["parameters"] > points[2]["parameters"]
    written = pipeline.Workdir(whole).read_json("frontier.json", curve.Curve)
    assert curve.summary(written) in (whole / "frontier.txt").read_text()


def test_merging_is_not_tried_where_a_smaller_budget_is_better_off_without(
    small_model, tmp_path, monkeypatch
):
    asked = []

    class Schedules:
        def __init__(self, context, folder, budget, *_):
            asked.append((folder, budget.macs))

        def errors(self):  # at 0.4 no schedule could be tried
            return {(): 1.0} if asked[-1][1] == 0.4 else {(): 1.0, (1, 0): 2.0}

    monkeypatch.setattr(curve, "Schedules", Schedules)
    axes = {"search.axes": ("op", "heads", "tokens", "ffn")}
    run(config(0.7, 0.5, 0.4, small=small_model | axes), tmp_path)
    assert asked == [("frontier/02", 0.4), ("frontier/01", 0.5)]
    points = json.loads((tmp_path / "frontier.json").read_text())["points"]
    assert [point["budget"] for point in points] == [1, 0.7, 0.5, 0.4]


@pytest.mark.parametrize("top1", [0.5, None])
def test_a_table_says_that_the_head_was_untrained(top1):
    point = curve.Point(1.0, 9, 9, 9, Quality(4, top1=top1, cosine=1.0), 1.0, 1.0, 1.0, "dense")
    text = curve.summary(curve.Curve((point,), fresh_head=True))
    assert ("fresh, untrained: top-1 is no measure" in text) == (top1 is not None)
    assert "untrained" not in curve.summary(curve.Curve((point,)))


def test_it_goes_on_where_it_was_stopped(small_whole, small_model, tmp_path):
    settings = config(0.7, 0.5, small=small_model)
    with pytest.raises(Interrupted):
        run(settings, tmp_path, stop_in(5))  # while scoring
    assert not (tmp_path / "scores.json").exists()
    with pytest.raises(Interrupted):
        run(settings, tmp_path, lambda: (tmp_path / "frontier/00/architecture.json").exists())
    assert (tmp_path / "scores.json").exists() and not (tmp_path / "frontier.json").exists()
    run(settings, tmp_path)
    for name in ("scores.json", *(f"frontier/0{n}/model.safetensors" for n in range(2))):
        assert (tmp_path / name).read_bytes() == (small_whole / name).read_bytes(), name
    run(settings, tmp_path)  # finished: only read


class Mislabelled:
    """A source whose training labels are wrong."""

    def __init__(self, source):
        self.source, self.class_names = source, source.class_names

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        found = self.source[index]
        return {**found, "label": (found["label"] + 1 + index) % 10}


def test_no_label_is_read(small_whole, small_model, tmp_path):
    settings = config(0.7, 0.5, small=small_model)
    splits = (settings.data.train_split, settings.data.test_split)
    wrong = (Mislabelled(open_source(settings.data, split)) for split in splits)
    inputs = context.Inputs(*wrong)
    pipeline.run(settings, tmp_path, Console(silent=True), lambda: False, inputs=inputs)
    for name in ("scores.json", "frontier/01/model.safetensors"):
        assert (tmp_path / name).read_bytes() == (small_whole / name).read_bytes(), name
    pair = [
        json.loads((f / "frontier.json").read_text())["points"][0] for f in (small_whole, tmp_path)
    ]
    assert pair[0]["quality"]["top1"] != pair[1]["quality"]["top1"]


def test_budgets_that_cannot_be_are_named_at_once(tmp_path):
    with pytest.raises(BudgetError, match="every gate shut"):
        run(config(0.5, 0.001), tmp_path / "a")
    with pytest.raises(ConfigError, match=r"frontier\.budgets"):
        config()
    with pytest.raises(ConfigError, match=r"frontier\.budgets"):
        config(0.5, -1.0)


def test_damaged_scores_are_named(whole, tmp_path):
    (tmp_path / "scores.json").write_text("{}")
    with pytest.raises(pipeline.USER_ERRORS, match="made again"):
        run(config(0.5), tmp_path)


def test_calibration_images_are_spread_over_the_split(tmp_path):
    opened = context.open_context(
        config(0.5), pipeline.Workdir(tmp_path), Console(silent=True), lambda: False
    )
    found = calibrated.calibrate(opened)
    assert [mask.sum() for _, mask in found.batches] == [16] * 4
    last = np.asarray(found.batches[-1][0][-1])
    expected = opened.train[len(opened.train) - 1]["image"].full()
    np.testing.assert_array_equal(last, expected)
