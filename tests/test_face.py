"""Python in five lines: the examples as they are documented, and what mistakes are answered."""

import dataclasses
import runpy
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import spvit_jax as spvit
from spvit_jax.config import ConfigError
from spvit_jax.convert.native import read_about
from spvit_jax.curve import Curve, Point
from spvit_jax.data import package
from spvit_jax.data.errors import DataError
from spvit_jax.data.images import open_images
from spvit_jax.data.transforms import eval_transform
from spvit_jax.single_path.budget import BudgetError
from spvit_jax.single_path.space import SpaceError
from spvit_jax.training.normalise import Normalise
from spvit_jax.workdir import Workdir

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
ADDRESS = "hf-hub:timm/deit_small_patch16_224.fb_in1k"
PACKAGED = "packaged:deit_fashion_mnist"
AXES = ("op", "heads", "ffn")  # each schedule of merges is a program to compile
GREY, LABELS = (part[:64] for part in package.read("fashion_mnist", "test"))
QUICK = {"axes": AXES, "progress": False}


@pytest.fixture(scope="module")
def dense():
    return spvit.load(PACKAGED)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the examples read: photos at several depths, and arrays with labels."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "photos" / "more").mkdir(parents=True)
    for number, pixels in enumerate(GREY):
        inside = "more" if number % 2 else "."
        Image.fromarray(pixels).save(folder / "photos" / inside / f"{number:02d}.png")
    np.save(folder / "images.npy", np.repeat(GREY[..., None], 3, axis=3))
    np.save(folder / "labels.npy", LABELS)
    spvit.save(spvit.load(PACKAGED), folder / "dense.safetensors")
    return folder


def example(name, place, monkeypatch, **changes):
    """Runs an example as it is written, of the packaged model; ``changes``: of its text."""
    monkeypatch.chdir(place)
    text = (EXAMPLES / f"{name}.py").read_text()
    for old, new in ({ADDRESS: PACKAGED} | changes).items():
        assert old in text or old == ADDRESS, old
        text = text.replace(old, new)
    file = place / f"{name}.py"
    file.write_text(text)
    return runpy.run_path(str(file))


@pytest.fixture(scope="module")
def five(place):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return example("five_lines", place, monkeypatch, **{"macs=0.5": f"macs=0.5, axes={AXES}"})


def test_five_lines_leave_a_model_of_half_the_macs_and_an_onnx_file(five, place):
    dense, small = five["dense"], five["small"]
    published = spvit.published_macs(dense.spec).dense
    assert 0.49 * published < small.architecture.macs(dense.spec) <= 0.5 * published
    read = spvit.load(place / "small.safetensors")
    images = spvit.preprocess(read, GREY)
    np.testing.assert_array_equal(read(images), small(images))
    assert spvit.form(small) == "deploy" and spvit.form(dense) == "dense"
    assert read_about(place / "small.safetensors") == dense.about == small.about
    assert (place / "small.onnx").stat().st_size > 100_000
    right = (np.asarray(small(images)).argmax(-1) == LABELS).mean()
    assert right > 0.7, right


def test_a_loss_and_batches_of_ones_own(five, place, monkeypatch):
    tuned = example("fit", place, monkeypatch)
    before, after = (_loss(tuned[name], tuned) for name in ("small", "tuned"))
    assert after < 0.9 * before and (place / "tuned.safetensors").exists()


def _loss(model, found):
    batch = {"images": found["pixels"], "labels": found["labels"]}
    return float(found["loss"](model, batch, None)[0])


def test_a_loop_of_ones_own(five, place, monkeypatch):
    found = example("own_loop", place, monkeypatch)
    assert found["value"] < 0.5
    looped = spvit.load(place / "looped.safetensors")
    assert looped.architecture == found["small"].architecture


def test_the_search_by_its_pieces(place, monkeypatch, capsys):
    found = example("search_by_pieces", place, monkeypatch)
    spec, chosen = found["dense"].spec, found["architecture"]
    assert 0.58 < chosen.macs(spec) / found["prices"].dense <= 0.6
    assert repr(chosen) in capsys.readouterr().out
    assert spvit.load(place / "searched.safetensors").architecture == found["small"].architecture
    moved = [np.ptp(np.asarray(block["op"])) for block in found["gate_logits"]]
    assert max(moved) > 0


def test_what_is_seen(place, monkeypatch, capsys):
    example("predict", place, monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * len(GREY) and all("%" in line for line in lines)


@pytest.fixture(scope="module")
def drawn(place):
    changes = {"macs=(0.8, 0.6, 0.4)": f"macs=(0.8, 0.4), axes={AXES}"}
    with pytest.MonkeyPatch.context() as monkeypatch:
        return example("frontier", place, monkeypatch, **changes)


def plain(placed):
    return Point(**{field.name: getattr(placed, field.name) for field in dataclasses.fields(Point)})


def test_a_frontier_is_a_value(drawn, place):
    curve, dense = drawn["curve"], drawn["dense"]
    assert (
        [p.budget for p in curve] == [0.8, 0.4] and len(curve) == 2 and curve[1] is curve.points[1]
    )
    assert curve.dense.quality.cosine == pytest.approx(1) and curve[0].quality.images == 12
    assert curve[1].quality.cosine < curve[0].quality.cosine
    for found in curve:
        assert found.model.architecture == found.architecture
        assert found.architecture.macs(dense.spec) == found.macs
    assert repr(curve) in curve._repr_html_() and "40%" in repr(curve)
    assert 'src="data:image/png;base64,' in curve._repr_html_()
    assert curve.plot()._repr_png_()[:4] == b"\x89PNG"
    assert (place / "frontier.png").exists()
    near = spvit.load(place / "near.safetensors").architecture
    assert near == [found for found in curve if found.quality.cosine > 0.9][-1].architecture
    folder = curve[0].file.parents[2]
    written = Workdir(folder).read_json("frontier.json", Curve)
    assert list(written.points) == [curve.dense, *map(plain, curve)]


def test_a_folder_of_its_own_is_gone_on_with(dense, tmp_path, capsys):
    options = {"params": 0.7, "axes": ("ffn",), "calibration": 32, "steps": 2, "batch_size": 8}
    before = nnx.state(dense)
    small = spvit.compress(dense, GREY, workdir=tmp_path, **options)
    said, bars = capsys.readouterr()
    assert "score     32 images without labels" in said and "finetune 100% 2/2" in bars
    assert "epochs from the repaired weights" in said
    assert "cosine to the dense features" in said and "of 12 images" in said
    assert spvit.count_parameters(small) <= 0.7 * spvit.count_parameters(dense)
    for leaf, same in zip(*map(nnx.to_flat_state, (before, nnx.state(dense))), strict=True):
        assert leaf[1] is same[1] or (leaf[1][...] == same[1][...]).all()
    again = spvit.compress(dense, GREY, workdir=tmp_path, **options)
    assert "finished  before this call" in capsys.readouterr().out
    images = spvit.preprocess(dense, GREY[:2])
    np.testing.assert_array_equal(small(images), again(images))
    for changed in ({"seed": 1}, {"steps": 3}, {"params": 0.6}):
        with pytest.raises(ConfigError, match="belongs to a run with another configuration"):
            spvit.compress(dense, GREY, workdir=tmp_path, **options | changed)
    other = spvit.load(PACKAGED)
    other.head.bias[...] += 1
    with pytest.raises(ConfigError, match="CRC-32 of the model"):
        spvit.compress(other, GREY, workdir=tmp_path, **options)
    other = spvit.load(PACKAGED)
    names = ("Jersey", *other.about.class_names[1:])
    other.about = dataclasses.replace(other.about, class_names=names)
    with pytest.raises(ConfigError, match=r"class names of the model\.0: T-shirt/top, now Jersey"):
        spvit.compress(other, GREY, workdir=tmp_path, **options)
    images = GREY.copy()
    images[3] = 0
    with pytest.raises(ConfigError, match=r"data\.train\.CRC-32 of all pixels and labels"):
        spvit.compress(dense, images, workdir=tmp_path, **options)


RGB = np.repeat(GREY[..., None], 3, axis=3)
MISTAKES = {
    "no budget": ({}, GREY, ConfigError, r"compress needs a budget: macs=0\.5"),
    "a budget above the dense model's MACs": (
        {"macs": 2e7}, GREY, ConfigError, r"20,000,000 MACs is no less than .* 14,496,128; ask"
    ),
    "nor its parameters": (
        {"macs": 0.5, "params": 1.0}, GREY, ConfigError, "parameters is no less than"
    ),
    "a negative budget": ({"macs": -1.0}, GREY, ConfigError, "macs must be 0 or more, got -1"),
    "no images to score": (
        {"macs": 0.5, "calibration": 0}, GREY, ConfigError, "calibration must be 8 images or more"
    ),
    "nothing left": ({"macs": 0.001}, GREY, BudgetError, "every gate shut"),
    "axes": ({"macs": 0.5, "axes": ("depth",)}, GREY, SpaceError, "depth"),
    "few images": ({"macs": 0.5}, GREY[:3], DataError, "there are 3 images, at least 8"),
    "no images": ({"macs": 0.5}, [], DataError, "there are no images"),
    "floats": ({"macs": 0.5}, RGB / 255, DataError, r"float64, expected uint8, .*\(255 "),
    "integers": ({"macs": 0.5}, GREY.astype(int), DataError, "of int64, expected a uint8 array"),
    "channels first": (
        {"macs": 0.5}, RGB.transpose(0, 3, 1, 2), DataError, r"\(3, 28, 28\).*transpose\("
    ),
    "four channels": (
        {"macs": 0.5}, np.zeros((9, 28, 28, 4), np.uint8), DataError, r"\(28, 28, 4\), expected"
    ),
    "objects": ({"macs": 0.5}, [None] * 9, DataError, "image 0 of 9 is NoneType"),
    "no folder": ({"macs": 0.5}, "nowhere/at/all", DataError, "there is no folder nowhere/at/all"),
    "no file": ({"macs": 0.5}, ["nowhere.png"] * 9, DataError, "of 9: there is no file nowhere"),
    "an image for many": ({"macs": 0.5}, RGB[0], DataError, "looks like a row of one image"),
    "a picture for many": ({"macs": 0.5}, Image.fromarray(RGB[0]), DataError, "image goes into a"),
    "arrays by name": ({"macs": 0.5}, {"images": RGB}, DataError, "got dict"),
    "no pixels": ({"macs": 0.5}, RGB[:9, :0], DataError, r"no pixels, its shape is \(0, 28, 3\)"),
    "one image nine times": (
        {"macs": 0.5}, np.repeat(GREY[:1], 9, axis=0), DataError, "7 calibration images are all the"
    ),
    "axes in a string": ({"macs": 0.5, "axes": "ffn"}, GREY, SpaceError, "got 'ffn'"),
    "a negative training": ({"macs": 0.5, "steps": -1}, GREY, ConfigError, "steps must be 0 or mo"),
    "one image to score": (
        {"macs": 0.5, "calibration": 1}, GREY, ConfigError, "calibration must be 8 images or more"
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_before_the_first_step(dense, mistake, capsys):
    options, images, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=f"(?s){message}"):
        spvit.compress(dense, images, **options)
    assert "score" not in capsys.readouterr().out


def test_models_that_are_none_to_prune_are_named(five):
    with pytest.raises(ConfigError, match="of deploy form: it is pruned already"):
        spvit.compress(five["small"], GREY, macs=0.5)
    with pytest.raises(ConfigError, match="RegNetY has no attention"):
        spvit.frontier(spvit.load("packaged:regnety_fashion_mnist"), GREY)
    with pytest.raises(ConfigError, match="a search's supernet"):
        spvit.compress(spvit.supernet(five["dense"]), GREY, macs=0.5)
    with pytest.raises(DataError, match="a search's supernet sees nothing without gates; prune it"):
        spvit.predict(spvit.supernet(five["dense"]), GREY[:1])
    with pytest.raises(ValueError, match="made of a dense model"):
        spvit.supernet(five["small"])
    with pytest.raises(ValueError, match="top must be 1 or more classes, got 0"):
        spvit.predict(five["dense"], GREY[:1], top=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: spvit.compress(model, GREY, macs=0.5), "1 arrays hold numbers that are NaN"),
        (lambda model: spvit.frontier(model, GREY), "1 arrays hold numbers that are NaN"),
        (lambda model: spvit.predict(model, GREY[:1]), "the model's probabilities are no numbers"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(call, message):
    model = spvit.load(PACKAGED)
    model.head.bias[...] = jnp.nan
    with pytest.raises(ValueError, match=message):
        call(model)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, out: spvit.compress(model, GREY, macs=0.5),
        lambda model, out: spvit.frontier(model, GREY),
        lambda model, out: spvit.predict(model, GREY[:1]),
        lambda model, out: spvit.preprocess(model, GREY[:1]),
        lambda model, out: spvit.save(model, out / "x.safetensors"),
        lambda model, out: spvit.export(model, out / "x.onnx"),
    ],
)
def test_the_name_of_a_file_is_no_model(call, tmp_path):
    with pytest.raises(TypeError, match=r"a model, such as spvit\.load\(…\) gives, got str"):
        call("dense.safetensors", tmp_path)
    assert not any(tmp_path.iterdir())


def test_what_export_assumes_is_a_warning(tmp_path):
    sizes = {"width": 8, "depth": 1, "heads": 2, "hidden": 8, "patch_size": 14, "image_size": 28}
    model = spvit.ViT(spvit.ViTSpec(**sizes, classes=2), rngs=nnx.Rngs(0))
    with pytest.warns(UserWarning, match="the model's file does not say its mean .* ImageNet's us"):
        spvit.export(model, tmp_path / "x.safetensors")


def test_files_that_are_no_images_are_answered_before_the_first_step(dense, tmp_path, capsys):
    """Nothing of a long run is lost for want of an image that judges it."""
    for number, pixels in enumerate(GREY[:10]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    for number in (3, 6):  # those that judge
        (tmp_path / f"{number}.png").write_text("no image")
    with pytest.raises(DataError, match=r"none of the 2 images that are to say.*/3\.png"):
        spvit.compress(dense, tmp_path, macs=0.7)
    for number in {*range(10)} - {3}:
        (tmp_path / f"{number}.png").write_text("no image")
    Image.fromarray(GREY[3]).save(tmp_path / "3.png")
    with pytest.raises(DataError, match="none of the 7 calibration images can be decoded"):
        spvit.compress(dense, tmp_path, macs=0.7)
    assert "score" not in capsys.readouterr().out


def test_budgets_may_be_numbers_of_numpy_but_a_frontier_has_several(dense):
    for number in (np.float32(2e7), jnp.float32(2e7)):
        with pytest.raises(ConfigError, match="20,000,000 MACs is no less"):
            spvit.compress(dense, GREY, macs=number)
    with pytest.raises(BudgetError, match="every gate shut"):
        spvit.frontier(dense, GREY, np.array([0.8, 0.001]))
    with pytest.raises(ConfigError, match=r"several shares, such as \(0\.8, 0\.5\), got 0\.5"):
        spvit.frontier(dense, GREY, 0.5)


def test_a_folder_that_is_not_there_is_named_by_save(dense, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing; make it first"):
        spvit.save(dense, tmp_path / "missing" / "model.safetensors")


def test_a_path_is_the_users_own_and_on_a_disk(dense, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for write in (spvit.save, spvit.save_torch, spvit.export):
        write(dense, "~/x.safetensors")
        (tmp_path / "x.safetensors").unlink()
        with pytest.raises(ValueError, match="gs://b/x.safetensors is no file of this machine"):
            write(dense, "gs://b/x.safetensors")
    for start in (spvit.compress, spvit.frontier):
        with pytest.raises(ConfigError, match="workdir is empty; give a folder"):
            start(dense, GREY, macs=0.5 if start is spvit.compress else (0.5,), workdir="")
    with pytest.raises(BudgetError):
        spvit.compress(dense, GREY, macs=0.001, workdir="~/run")
    assert (tmp_path / "run").is_dir()


def test_images_are_the_same_however_they_are_given(place, dense, tmp_path):
    files = sorted((place / "photos").rglob("*.png"), key=lambda file: file.name)
    pictures = [Image.open(file) for file in files]
    given = (GREY, GREY[..., None], RGB, iter(RGB), files, map(str, files), pictures)
    first, *others = (np.asarray(spvit.preprocess(dense, images)) for images in given)
    for other in others:
        np.testing.assert_array_equal(first, other)
    view = eval_transform(
        open_images(GREY)[5]["image"], image_size=28, crop_ratio=dense.about.crop_ratio
    )
    normalise = Normalise(dense.about.mean, dense.about.std)
    np.testing.assert_array_equal(first[5], normalise(jnp.asarray(view[None]))[0])
    folder = np.asarray(spvit.preprocess(dense, place / "photos"))
    order = [int(file.stem) for file in sorted((place / "photos").rglob("*.png"))]
    np.testing.assert_array_equal(folder, first[order])
    turned = Image.fromarray(RGB[0, :14])  # lying, and EXIF says so
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    opened = open_images(tmp_path)[0]["image"]
    assert opened.size == (14, 28) and opened.full().size == (14, 28)


def test_predict_says_the_likeliest_classes(dense):
    seen = spvit.predict(dense, GREY[:40], top=3)  # more than a batch
    logits = np.asarray(dense(spvit.preprocess(dense, GREY[:40])), float)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for row, names in zip(shares, seen, strict=True):
        order = np.argsort(-row)[:3]
        assert [name for name, _ in names] == [dense.about.class_names[i] for i in order]
        np.testing.assert_allclose([share for _, share in names], row[order], rtol=1e-3)
    nameless = spvit.load(PACKAGED)
    nameless.about = None
    with pytest.warns(UserWarning, match="does not say its mean, std, crop_ratio: ImageNet's"):
        (seen,) = spvit.predict(nameless, GREY[:1])
    assert all(name.startswith("class ") for name, _ in seen)
    assert len(spvit.predict(dense, GREY[:1], top=99)[0]) == 10


def test_a_model_and_an_architecture_say_what_they_are(five):
    dense, small = five["dense"], five["small"]
    said = "<ViT: 6 blocks, 64 wide, images of 28 pixels, 10 classes, 307 k parameters, 14.5 M MACs"
    assert repr(dense) == str(dense) == f"{said}, dense form>"
    assert "deploy form, " in repr(small) and "8.33 M MACs" in repr(small)
    assert "supernet form" in repr(spvit.supernet(dense))
    made = spvit.Architecture(("msa", "skip"), ((0, 3, 4), 7), heads=((0, 2), ()), merges=(5, 0))
    assert repr(made) == "<Architecture: 2 blocks, msa:2-5|3 skip|7>"
