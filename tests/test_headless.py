"""Backbones: models without a head and images without labels, from end to end."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from spvit_jax import pipeline, pretrained, teachers
from spvit_jax.config import ConfigError, from_config_dict
from spvit_jax.convert import USUAL, load, save, save_torch
from spvit_jax.convert.fit import resize_grid
from spvit_jax.data.decode import open_image
from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import open_source
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.predict import __main__ as predict
from spvit_jax.progress import Console
from spvit_jax.quality import Quality
from spvit_jax.report import Result
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.probe import linear_probe, nearest_neighbours

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
SPEC = ViTSpec(
    width=16, depth=2, heads=2, hidden=32, patch_size=4, image_size=(20, 16), classes=0,
    registers=2, gated=True, activation="silu", patches=True, rotary="dinov3", positions=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(64):
        coarse = rng.integers(0, 256, (3, 3, 3), np.uint8)
        Image.fromarray(coarse).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    file = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    save(ViT(SPEC, rngs=nnx.Rngs(0)), file)
    return file


def config(photos, backbone, **groups):
    values = runpy.run_path(str(QUICKSTART))["get_config"]("tiny").to_dict()
    values["data"] |= {"source": f"folder:{photos}", "eval_batch_size": 16}
    values["data"] |= {"train_split": "train[:48]", "test_split": "train[48:]"}
    values["model"] |= {"variant": "", "checkpoint": str(backbone), "patches": True}
    values["score"] |= {"images": 32, "batch_size": 8}
    values["shortlist"] |= {"candidates": 0}
    values["search"] |= {"ops": ("skip", "msa"), "axes": ("op", "heads", "dims", "tokens", "ffn")}
    values["finetune"] |= {"batch_size": 8, "epochs": 1.0}
    values["budget"] = {"macs": 0.6}
    values["measure_seconds"] = 0.01
    for name, fields in groups.items():
        values[name] = values[name] | fields if isinstance(fields, dict) else fields
    return from_config_dict(values)


def run(settings, folder):
    pipeline.run(settings, folder, Console(silent=True), lambda: False)


def test_a_folder_of_images_has_no_labels(photos):
    data = config(photos, "x").data
    train, test = (open_source(data, split) for split in ("train[:48]", "train[48:]"))
    assert (len(train), len(test), train.class_names) == (48, 16, ())
    assert train[0]["label"] == -1 and train[0]["image"].full().size == (24, 20)
    assert not {name for name, _ in train.files} & {name for name, _ in test.files}
    with pytest.raises(DataError, match=r"hold some out: data.train_split='train\[:80%\]'"):
        open_source(data, "val")


def test_a_backbone_is_pruned_without_labels(photos, backbone, tmp_path):
    run(config(photos, backbone), tmp_path)
    result = Result.from_json((tmp_path / "result.json").read_text())
    before, decided, after = result.dense_quality, result.decided_quality, result.pruned_quality
    assert before.images == 16 and before.top1 is None
    assert before.cosine == pytest.approx(1, abs=1e-6) and before.error < 1e-9
    for found in (decided, after):
        assert 0.5 < found.cosine_worst <= found.cosine < 1 and 0 < found.error < 1
        assert 0.5 < found.patch_cosine < 1 and found.patch_error > 0
    small = load(tmp_path / "pruned.safetensors")
    assert small.spec == SPEC and result.pruned_macs <= 0.6 * result.dense_published_macs
    dense, images = load(backbone), jax.random.normal(jax.random.key(0), (2, 20, 16, 3))
    assert small(images).shape == (2, 16)
    (one, two) = (model.patch_features(model.stream(images)[-1]) for model in (small, dense))
    assert one.shape == two.shape == (2, 20, 16)
    assert (tmp_path / "report.png").exists()
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Where its features differ the most" in report and report.count("<img") == 12
    rows = [json.loads(line) for line in (tmp_path / "finetune/metrics.jsonl").open()]
    assert rows and not any("top1" in row or "accuracy" in row for row in rows)


def test_a_backbone_is_searched_without_labels(photos, backbone, tmp_path):
    """The paper's search, gates of heads and units, by the dense model's blocks alone."""
    learn = {"distillation": "features", "distillation_weight": 1.0, "batch_size": 8}
    search = {"epochs": 1.0, "axes": ("op", "heads", "ffn"), "start": "released", **learn}
    settings = config(photos, backbone, search=search, finetune={"start": "searched"})
    run(settings, tmp_path)
    result = Result.from_json((tmp_path / "result.json").read_text())
    assert result.pruned_macs <= 0.6 * result.dense_published_macs
    assert 0.3 < result.pruned_quality.cosine < 1 and result.decision == "project"


def test_a_model_that_sees_grey_gets_grey(photos, tmp_path):
    grey = replace(SPEC, channels=1)
    save(ViT(grey, rngs=nnx.Rngs(0)), tmp_path / "grey.safetensors")
    file = tmp_path / "grey.safetensors"
    settings = config(photos, file, stage="frontier", frontier={"budgets": (0.7,)})
    with pytest.raises(ConfigError, match="sees grey images: give one number each"):
        run(settings, tmp_path / "run")
    settings.data.mean, settings.data.std = (0.5,), (0.25,)
    run(settings, tmp_path / "run")
    small = load(tmp_path / "run/frontier/00/model.safetensors")
    assert small(np.zeros((1, 20, 16, 1))).shape == (1, 16)
    with pytest.raises(ValueError, match="expected images of 1 channels, got 3"):
        small(np.zeros((1, 20, 16, 3)))
    photo = next(photos.glob("*.png"))
    seen = Normalise((0.0,), (1.0,))(np.asarray(Image.open(photo))[None])
    luma = np.asarray(Image.open(photo).convert("L"))
    np.testing.assert_allclose(255 * np.asarray(seen)[0, ..., 0], luma, atol=1)


def test_the_curve_of_a_backbone_is_of_cosines(photos, backbone, tmp_path):
    settings = config(photos, backbone, stage="frontier", frontier={"budgets": (0.8, 0.5)})
    run(settings, tmp_path)
    points = json.loads((tmp_path / "frontier.json").read_text())["points"]
    cosines = [Quality(**point["quality"]).value for point in points]
    assert cosines[0] == pytest.approx(1, abs=1e-6) and cosines == sorted(cosines, reverse=True)
    assert "cosine to the dense features" in (tmp_path / "frontier.txt").read_text()


def test_a_pruned_backbone_is_evaluated_by_its_dense_model(photos, backbone, tmp_path):
    settings = config(photos, backbone, stage="evaluate")
    with pytest.raises(ConfigError, match="set teacher.checkpoint to the dense model"):
        run(settings, tmp_path / "without")
    units = Architecture(("msa", "msa"), (8, 8), merges=(2, 0))
    save(fold(prune(load(backbone), units)), tmp_path / "small.safetensors")
    teacher = {"checkpoint": str(backbone)}
    settings = config(photos, tmp_path / "small.safetensors", stage="evaluate", teacher=teacher)
    run(settings, tmp_path / "with")
    found = Quality(**json.loads((tmp_path / "with" / "evaluation.json").read_text()))
    assert found.images == 16 and 0.1 < found.cosine < 0.999 and found.patch_cosine < 0.999
    assert found.summary() in (tmp_path / "with" / "evaluation.txt").read_text()


def test_features_of_a_model_with_a_head_are_evaluated(tmp_path):
    values = runpy.run_path(str(QUICKSTART))["get_config"]("tiny").to_dict()
    values["stage"], values["model"]["output"] = "evaluate", "features"
    values["teacher"]["checkpoint"] = values["model"]["checkpoint"]
    values["data"] |= {"train_split": "train[:4]", "test_split": "test[:256]"}
    run(from_config_dict(values), tmp_path)
    found = Quality(**json.loads((tmp_path / "evaluation.json").read_text()))
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert 0.1 < found.knn < 0.6 and found.linear < 0.6  # four images know four classes at most


def test_a_teacher_may_have_a_head_and_read_no_patches(photos, tmp_path):
    """Its blocks teach: it is read as the student is."""
    teacher = ViT(replace(SPEC, patches=False, classes=5), rngs=nnx.Rngs(1))
    save(teacher, tmp_path / "teacher.safetensors")
    save(ViT(SPEC, rngs=nnx.Rngs(0)), tmp_path / "student.safetensors")
    named = {"checkpoint": str(tmp_path / "teacher.safetensors")}
    settings = config(photos, tmp_path / "student.safetensors", teacher=named)
    teachers.check_teachers(settings, SPEC)
    frozen = teachers.load_teacher(settings, SPEC, features=True)
    images = np.zeros((1, 20, 16, 3), np.float32)
    normalise = Normalise(settings.data.mean, settings.data.std)
    assert frozen.stream(frozen.state, images, normalise)[-1].shape == (1, 23, 16)


def test_with_labels_features_are_probed(tmp_path):
    values = runpy.run_path(str(QUICKSTART))["get_config"]("tiny").to_dict()
    values["model"]["output"] = "features"
    values["data"] |= {"train_split": "train[:512]", "test_split": "test[:256]"}
    values["stage"], values["frontier"]["budgets"] = "frontier", (0.7,)
    values["score"] = {"images": 64, "batch_size": 16}
    values["search"]["axes"] = ("op", "heads", "ffn")
    values["measure_seconds"] = 0.01
    run(from_config_dict(values), tmp_path)
    points = json.loads((tmp_path / "frontier.json").read_text())["points"]
    for point in points:
        found = Quality(**point["quality"])
        assert found.knn > 0.75 and found.linear > 0.75 and found.top1 is None
    assert load(tmp_path / "frontier/00/model.safetensors").spec.classes == 0


def test_predict_writes_features(photos, backbone, tmp_path, capsys):
    file = tmp_path / "features.npz"
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [str(photos), str(tmp_path / "broken.png")]
    assert predict.main([str(backbone), *images, "--features", str(file)]) == 2
    assert "broken.png" in capsys.readouterr().err
    found = np.load(file)
    assert found["files"].shape == (64,) and found["features"].shape == (64, 16)
    assert found["patches"].shape == (64, 20, 16)
    model, name = load(backbone), found["files"][40]
    pixels = open_image(name, name).centre((23, 18), (20, 16))  # each by 0.875
    normalise = Normalise(USUAL.mean, USUAL.std)
    expected = model(normalise(np.asarray(pixels)[None]))
    np.testing.assert_allclose(found["features"][40], expected[0], atol=1e-4)
    assert predict.main([str(backbone), str(photos)]) == 2
    assert "--features FILE.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"finetune": {"distillation": "none"}}, "finetune would learn them; set finetune.dist"),
        ({"finetune": {"distillation_weight": 0.5}}, "finetune.distillation_weight=1"),
        ({"model": {"output": "logits"}}, "set model.output=features"),
    ],
)
def test_what_needs_labels_is_refused(photos, backbone, tmp_path, group, said):
    with pytest.raises(ConfigError, match=said):
        run(config(photos, backbone, **group), tmp_path)


@pytest.mark.parametrize("how", ["bicubic", "antialiased"])
def test_positions_are_resized_as_the_config_says(photos, tmp_path, how):
    dense = ViT(replace(SPEC, positions=True, rotary="", gated=False, patches=False, registers=0),
                rngs=nnx.Rngs(0))  # fmt: skip
    save_torch(dense, tmp_path / "timm.safetensors")
    said = {"architecture": "vit", "pretrained_cfg": {"input_size": [3, *SPEC.image_size]}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    model = {"image_size": 24, "heads": 2, "activation": "silu", "positions": how}
    settings = config(photos, tmp_path / "timm.safetensors", model=model)
    notes = []
    found = pretrained.load_dense(settings, pretrained.dense_spec(settings, 0), notes)
    assert f"interpolated ({how}) from 5x4 patches to 6x6" in notes[0]
    assert found.spec.activation == "silu" and found.spec.patches
    first = np.asarray(dense.pos_embed[...])[1:].reshape(5, 4, -1)
    expected = resize_grid(first, (6, 6), how).reshape(36, -1)
    np.testing.assert_array_equal(np.asarray(found.pos_embed[...])[1:], expected)


def test_probes_find_what_is_there():
    rng = np.random.default_rng(0)
    centres, labels = 3 * rng.standard_normal((4, 8)), rng.integers(0, 4, 200)
    rows = centres[labels] + rng.standard_normal((200, 8))
    split = rows[:150], labels[:150], rows[150:], labels[150:]
    for probe in (nearest_neighbours, linear_probe):
        assert probe(*split) > 0.95
        assert probe(rows[:150], rng.permutation(labels[:150]), *split[2:]) < 0.5


def test_neighbours_vote_as_in_a_plain_loop():
    rng = np.random.default_rng(1)
    train, test = rng.standard_normal((40, 5)), rng.standard_normal((30, 5))
    labels, truth = rng.integers(0, 3, 40), rng.integers(0, 3, 30)
    right = 0
    for row, label in zip(test, truth, strict=True):
        cosines = [row @ t / np.linalg.norm(row) / np.linalg.norm(t) for t in train]
        votes = np.zeros(3)
        for i in sorted(range(40), key=lambda i: -cosines[i])[:10]:
            votes[labels[i]] += cosines[i]
        right += votes.argmax() == label
    assert nearest_neighbours(train, labels, test, truth) == right / 30
