import base64
import dataclasses
import io

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from spvit_jax import examples as module
from spvit_jax.config import Config, Data
from spvit_jax.context import Context, Inputs
from spvit_jax.data.decode import from_array
from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import ArraySource
from spvit_jax.examples import examples
from spvit_jax.models import MODELS, SwinSpec, ViT, ViTSpec
from spvit_jax.progress import Console
from spvit_jax.training.loop import Interrupted
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import make_mesh

SPEC = ViTSpec(width=8, depth=1, heads=1, hidden=8, patch_size=4, image_size=8, classes=3)
NAMES = ("cat", "dog", "owl")
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
LABELS = np.arange(20) % 3
DATA = Data(crop_ratio=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)


class Torn:
    """A source of which two images cannot be decoded."""

    class_names = NAMES

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index in (0, 4):
            raise DataError(f"image {index} is torn")
        image = np.repeat(IMAGES[index][:, :, None], 3, axis=2)
        return {"image": from_array(image), "label": int(LABELS[index])}


def opened(test, spec=SPEC, stop=False, **data):
    config = Config(data=dataclasses.replace(DATA, **data))
    inputs = Inputs(test, test)
    return Context(config, None, Console(silent=True), lambda: stop, "", spec, inputs, make_mesh())


def source(names=NAMES):
    return ArraySource(IMAGES, LABELS, names)


@pytest.fixture(scope="module")
def models():
    """A dense model that always says dog, and a pruned one that looks at the image."""
    dense, pruned = (ViT(SPEC, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    dense.head.kernel[...] = jnp.zeros_like(dense.head.kernel[...])
    dense.head.bias[...] = jnp.log(jnp.array([0.25, 0.5, 0.25]))
    pruned.head.kernel[...] = 20 * pruned.head.kernel[...]
    return dense, pruned


def expected(pruned, among):
    """Numbers of the images that the pruned model gets wrong, in order, with its shares."""
    pixels = np.repeat(IMAGES[..., None], 3, axis=3)
    shares = np.asarray(nnx.softmax(pruned(Normalise(DATA.mean, DATA.std)(jnp.asarray(pixels)))))
    wrong = [i for i in among if shares[i].argmax() != LABELS[i]]
    wrong.sort(key=lambda i: (LABELS[i] != 1, -shares[i].max()))  # dense says dog
    return wrong, shares


def pixels(example):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(example.png))))


@pytest.mark.parametrize("torn", [False, True])
def test_they_are_those_that_the_pruned_model_gets_wrong_the_sure_ones_first(models, torn):
    test, left = (Torn(), [0, 4]) if torn else (source(), [])
    among = [i for i in range(20) if i not in left]
    wrong, shares = expected(models[1], among)
    right_before = sum(LABELS[i] == 1 for i in wrong)
    assert 0 < right_before < module.SHOWN <= len(wrong) < len(among)  # there is something to see
    found = examples(opened(test, on_error="skip"), *models)
    assert (found.images, found.pruned_wrong) == (len(among), len(wrong))
    assert found.dense_wrong == sum(LABELS[i] != 1 for i in among)
    assert len(found.shown) == module.SHOWN
    for one, i in zip(found.shown, wrong, strict=False):
        assert one.label == NAMES[LABELS[i]] and one.cosine is None
        assert (pixels(one) == IMAGES[i][..., None]).all() and one.size == (8, 8)
        assert one.pruned.name == NAMES[shares[i].argmax()] and not one.pruned.right
        assert one.pruned.probability == pytest.approx(shares[i].max(), rel=1e-5)
        assert (one.dense.name, one.dense.right) == ("dog", LABELS[i] == 1)
        assert one.dense.probability == pytest.approx(0.5)


def test_without_labels_they_are_those_whose_features_differ_the_most(models, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 10)
    found = examples(opened(source(names=())), *models)
    seen = Normalise(DATA.mean, DATA.std)(jnp.asarray(np.repeat(IMAGES[..., None], 3, axis=3)))
    one, other = (np.asarray(m.features(m.stream(seen)[-1])[:, 0]) for m in models)
    cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
    looked = np.linspace(0, 19, 10).round().astype(int)
    order = looked[np.argsort(cosines[looked])]
    assert (found.images, found.dense_wrong, found.pruned_wrong) == (10, None, None)
    assert [e.cosine for e in found.shown] == pytest.approx(list(cosines[order]), abs=1e-5)
    assert all(
        (pixels(e) == IMAGES[i][..., None]).all() for e, i in zip(found.shown, order, strict=True)
    )
    assert {(e.label, e.dense, e.pruned) for e in found.shown} == {("", None, None)}


DISTILLED = dataclasses.replace(SPEC, distilled=True)
SWIN = SwinSpec(8, (1, 1), (1, 2), (8, 16), 2, 2, 8, 3)


@pytest.mark.parametrize("spec", [DISTILLED, SWIN, dataclasses.replace(SWIN, classes=0)])
def test_models_of_every_kind_agree_with_themselves(spec):
    model = MODELS[type(spec)](spec, rngs=nnx.Rngs(0))
    found = examples(opened(source(), spec), model, model)
    if not spec.classes:
        assert [e.cosine for e in found.shown] == pytest.approx([1.0] * len(found.shown))
        assert all(e.label in NAMES and e.dense is None for e in found.shown)
        return
    seen = Normalise(DATA.mean, DATA.std)(jnp.asarray(np.repeat(IMAGES[..., None], 3, axis=3)))
    wrong = int((np.asarray(model(seen)).argmax(1) != LABELS).sum())
    assert found.dense_wrong == found.pruned_wrong == wrong > 0
    assert all(e.dense == e.pruned and not e.pruned.right for e in found.shown)


def test_a_picture_is_small_and_keeps_its_shape():
    png, size = module._png(np.zeros((300, 600, 3), np.uint8))
    assert size == (128, 64) == Image.open(io.BytesIO(base64.b64decode(png))).size


def test_it_stops_where_the_run_is_to_stop(models):
    with pytest.raises(Interrupted):
        examples(opened(source(), stop=True), *models)
