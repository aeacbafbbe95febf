"""The file for PyTorch alone: JAX's numbers, PyTorch's habits, and no belief in files."""

import copy
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import nnx

from spvit_jax.convert import forms, load, native, save
from spvit_jax.models import MODELS, RegNetSpec, SwinSpec, Tokens, ViTSpec
from spvit_jax.models.activations import ACTIVATIONS
from spvit_jax.models.rotary import KINDS
from spvit_jax.models.tokens import merge
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.prune import FORMS, form
from spvit_jax.single_path.sharing import TEMPERATURES
from spvit_jax.sizes import sides

torch = pytest.importorskip("torch")
from safetensors.torch import save_file  # noqa: E402

from spvit_jax.export import spvit_torch  # noqa: E402

VIT = ViTSpec(width=24, depth=2, heads=3, hidden=20, patch_size=4, image_size=16, classes=7)
FOUR = dataclasses.replace(VIT, depth=4)
SWIN = SwinSpec(12, (2, 2), (3, 4), (10, 9), window=2, patch_size=2, image_size=16, classes=7)
AVERAGE = {"class_token": False, "pool": "norm_average"}
DINO = {"registers": 2, "gated": True, "activation": "silu", "rotary": "dinov3", "positions": False}
SIGLIP = {"class_token": False, "pool": "attention", "activation": "gelu_tanh", "classes": 0}
EVA = {"rotary": "eva", "rotary_base": 50.0, "rotary_grid": 7, "registers": 3, "patches": True}

PRUNED = Architecture(
    ("conv3x3", "msa", "conv1x1", "msa"), (5, 0, (0, 3), 20), heads=((), (0, 2), (), (1,))
)
REPAIRED = Architecture(("norm_skip", "skip", "msa", "conv3x3"), (5, 20, 7, 3))
MERGED = dataclasses.replace(PRUNED, merges=(3, 4, 2, 0))
KEPT = Architecture(  # patches are read, so that the last block merges as well
    ("msa", "skip", "msa", "conv1x1"), (5, 20, 7, 3), merges=(7, 4, 2, 1)
)
WINDOWS = Architecture(
    ("msa", "conv3x3", "msa", "msa"), (3, 10, 0, 9), heads=((0, 2), (), (1, 3), (0, 1, 2, 3))
)
CASES = {  # spec, form, architecture
    "vit": (VIT,),
    "distilled": (dataclasses.replace(VIT, distilled=True, epsilon=1e-3),),
    "registers": (dataclasses.replace(VIT, registers=3, patches=True),),
    "clip": (dataclasses.replace(VIT, norm_pre=True, activation="quick_gelu", qk_norm=True),),
    "dinov3": (dataclasses.replace(VIT, **DINO),),
    "eva": (dataclasses.replace(VIT, **EVA, qk_norm=True, classes=0),),
    "siglip": (dataclasses.replace(VIT, **SIGLIP, gated=True),),
    "norm_average": (dataclasses.replace(VIT, **AVERAGE),),
    "average_norm": (dataclasses.replace(VIT, pool="average_norm"),),
    "headless": (dataclasses.replace(VIT, classes=0, distilled=True),),
    "grey": (dataclasses.replace(VIT, channels=1, patch_size=5, image_size=15),),
    "swin": (SWIN,),
    "one_window": (dataclasses.replace(SWIN, window=8, depths=(1, 2), classes=0),),
    "oblong": (dataclasses.replace(VIT, image_size=(8, 20), **AVERAGE),),
    "oblong_eva": (dataclasses.replace(FOUR, **EVA, image_size=(12, 20)), "deploy", PRUNED),
    "oblong_dinov3": (dataclasses.replace(FOUR, **DINO, image_size=(8, 32)), "shared", MERGED),
    "oblong_swin": (dataclasses.replace(SWIN, image_size=(8, 32)), "folded", WINDOWS),
    "oblong_clipped": (dataclasses.replace(SWIN, image_size=(8, 32), window=4),),
    "regnet": (RegNetSpec((16, 24), (1, 2), 8, image_size=18, classes=7),),
    **{name: (FOUR, name, PRUNED) for name in FORMS[2:]},
    "repaired": (dataclasses.replace(FOUR, distilled=True), "folded", REPAIRED),
    "gated": (dataclasses.replace(FOUR, **DINO), "shared", PRUNED),
    "read": (dataclasses.replace(FOUR, **EVA), "deploy", PRUNED),
    **{f"swin_{name}": (SWIN, name, WINDOWS) for name in FORMS[2:]},
    "merged": (FOUR, "folded", MERGED),
    "merged_shared": (dataclasses.replace(FOUR, **DINO, patches=True), "shared", MERGED),
    "merged_eva": (dataclasses.replace(FOUR, **EVA), "deploy", KEPT),
    "merged_pool": (dataclasses.replace(FOUR, **SIGLIP), "deploy", KEPT),
    "merged_norm_average": (dataclasses.replace(FOUR, **AVERAGE, registers=1), "folded", KEPT),
    "merged_average_norm": (
        dataclasses.replace(FOUR, pool="average_norm", image_size=20), "folded", KEPT,
    ),
}  # fmt: skip
ABOUT = native.About(tuple("abcdefg"), (0.1, 0.2, 0.3), (0.4, 0.5, 1.0), 0.875)
GREY = dataclasses.replace(ABOUT, mean=(0.2,), std=(0.5,))


def drawn(spec, name="dense", architecture=None, seed=0):
    """A model of random numbers."""
    rng = np.random.default_rng(seed)
    model = forms.build(spec, name, architecture)
    arrays = {}
    for path, shape in forms.shapes(model).items():
        leaf, value = path.rsplit(".", 1)[-1], 0.2 * rng.standard_normal(shape)
        if leaf == "scale":
            value += 1
        elif leaf == "var":
            value = 10 ** rng.uniform(-2, 0, shape)  # small enough to show epsilon
        elif leaf == "head_logits":
            value *= 5 * TEMPERATURES[type(spec)]
        arrays[path] = value
    return forms.fill(model, arrays)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """``models(name)``: a model of ``CASES`` in JAX, its file, and the same in PyTorch."""
    folder, found = tmp_path_factory.mktemp("models"), {}

    def one(name):
        if name not in found:
            model, path = drawn(*CASES[name]), folder / f"{name}.safetensors"
            about = GREY if getattr(model.spec, "channels", 3) == 1 else ABOUT
            save(model, path, about=about if model.spec.classes else None)
            found[name] = model, path
        model, path = found[name]
        return model, path, spvit_torch.load(path)

    return one


def pixels(spec, count=3):
    shape = (count, *sides(spec.image_size), getattr(spec, "channels", 3))
    return np.random.default_rng(5).standard_normal(shape)


def turned(images):
    """Images as PyTorch has them."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2)


def known(model, images):
    """Logits, features and patches as JAX computes them; None for those that are not there."""
    logits = model(images)
    if isinstance(model.spec, RegNetSpec):
        return logits, None, None
    tokens = model.stream(images)[-1]
    read = not model.spec.blocks[-1].class_only
    return logits, model.features(tokens), model.patch_features(tokens) if read else None


@pytest.mark.parametrize("name", CASES)
def test_logits_and_features_are_those_of_jax(name, models):
    model, _, other = models(name)
    images = pixels(model.spec).astype(np.float32)
    graph, state = nnx.split(model)
    program = jax.jit(lambda state, images: known(nnx.merge(graph, state), images))
    logits, seen, patches = program(state, images)
    with torch.no_grad():
        np.testing.assert_allclose(other(turned(images)), logits, rtol=1e-5, atol=1e-5)
        found, rows = other.features(turned(images))
    if seen is not None:
        np.testing.assert_allclose(found, seen, rtol=1e-5, atol=1e-5)
    assert (rows is None) == (patches is None)
    if patches is not None:
        np.testing.assert_allclose(rows, patches, rtol=1e-5, atol=1e-5)
    if model.spec.classes:
        heads = [other.head, other.head_dist][: found.shape[1]]
        said = sum(head(found[:, i]) for i, head in enumerate(heads)) / len(heads)
        np.testing.assert_allclose(said.detach(), logits, rtol=1e-5, atol=1e-5)
    assert not other.training and other.image_size == model.spec.image_size


@pytest.mark.parametrize("name", CASES)
def test_a_model_comes_home_bit_for_bit(name, models, tmp_path):
    model, path, other = models(name)
    spvit_torch.save(other, tmp_path / "m.safetensors")
    assert list(tmp_path.iterdir()) == [tmp_path / "m.safetensors"]
    found = load(str(tmp_path / "m.safetensors"))
    assert (form(found), found.spec) == (form(model), model.spec)
    assert found.architecture == model.architecture
    arrays, expected = forms.variables(found), forms.variables(model)
    assert arrays.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[key], value, err_msg=key)
    with (
        safetensors.safe_open(path, "np") as one,
        safetensors.safe_open(tmp_path / "m.safetensors", "np") as two,
    ):
        assert one.metadata() == two.metadata()
    assert native.read_about(tmp_path / "m.safetensors") == native.read_about(path)


@pytest.mark.parametrize("name", ["merged_shared", "swin_folded", "read"])
def test_gradients_of_images_are_those_of_jax(name, tmp_path, float64):
    model = drawn(*CASES[name])
    save(model, tmp_path / "m.safetensors")
    images = pixels(model.spec, 2)
    weights = np.random.default_rng(1).standard_normal((2, 7))
    graph, state = nnx.split(model)

    def said(images, state):
        return (nnx.merge(graph, state)(images) * weights).sum()

    expected = jax.jit(jax.grad(said))(images, state)
    x = turned(images).requires_grad_()
    (spvit_torch.load(tmp_path / "m.safetensors")(x) * torch.from_numpy(weights)).sum().backward()
    assert x.grad.dtype == torch.float64 and float(x.grad.abs().max()) > 1e-3
    found = x.grad.permute(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["shared", "swin_folded", "regnet"])
def test_training_is_that_of_jax(name, tmp_path, float64):
    """Gradients of all arrays with batch norms in training, and the statistics these leave."""
    model = drawn(*CASES[name])
    save(model, tmp_path / "m.safetensors")
    images = pixels(model.spec, 4)
    weights = np.random.default_rng(1).standard_normal((4, 7))

    def loss(model):
        return (model(images, train=True) * weights).sum()

    graph, state = nnx.split(model)

    def step(state):
        model = nnx.merge(graph, state)
        gradients = nnx.grad(loss)(model)
        leaves = nnx.to_flat_state(gradients)
        return {".".join(map(str, p)): leaf[...] for p, leaf in leaves}, forms.variables(model)

    gradients, after = jax.jit(step)(state)
    other = spvit_torch.load(tmp_path / "m.safetensors").train()
    (other(turned(images)) * torch.from_numpy(weights)).sum().backward()
    (tmp_path / "after.safetensors").symlink_to(tmp_path / "real")
    spvit_torch.save(other, tmp_path / "after.safetensors")
    assert (tmp_path / "after.safetensors").is_symlink()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.zeros(()) if parameter.grad is None else parameter.grad)
    spvit_torch.save(other, tmp_path / "gradients.safetensors")
    arrays = safetensors.numpy.load_file(tmp_path / "after.safetensors")
    assert arrays.keys() == after.keys()
    for key, value in after.items():
        np.testing.assert_allclose(arrays[key], value, rtol=1e-12, atol=1e-14, err_msg=key)
    arrays = safetensors.numpy.load_file(tmp_path / "gradients.safetensors")
    assert max(np.abs(value).max(initial=0) for value in gradients.values()) > 0.1
    for key, value in gradients.items():
        np.testing.assert_allclose(arrays[key], value, rtol=1e-7, atol=1e-9, err_msg=key)
        assert np.any(value) or not np.any(arrays[key]), key  # of a bias in front of a batch norm


@pytest.mark.parametrize(("patches", "count"), [(8, 3), (9, 4), (9, 1)])
def test_of_equals_the_first_are_merged(patches, count):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 2 + patches, 5)).astype(np.float32)
    alike = np.eye(4, dtype=np.float32)[rng.integers(0, 4, x.shape[:2])]  # cosines of 0 and 1
    alike[0, :4] = 0
    expected = merge(Tokens(jnp.asarray(x)), jnp.asarray(alike), count, 2)
    again = merge(expected, expected.x, 2, 2)
    found = spvit_torch.merge(
        spvit_torch.Tokens(torch.from_numpy(x)), torch.from_numpy(alike), count, 2
    )
    twice = spvit_torch.merge(found, torch.from_numpy(np.array(expected.x)), 2, 2)
    for one, other in ((found, expected), (twice, again)):
        np.testing.assert_array_equal(one.sources, other.sources)
        np.testing.assert_array_equal(one.sizes, other.sizes)
        np.testing.assert_allclose(one.x, other.x, rtol=1e-6, atol=1e-6)


def test_what_is_no_file_of_that_kind_is_not_written_over(models, tmp_path):
    _, _, other = models("merged")
    loop, pipe, link = (tmp_path / f"{name}.safetensors" for name in ("loop", "pipe", "link"))
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(spvit_torch.ModelFileError, match="a pipe or a device; copy it"):
            spvit_torch.load(path)
    for path in (loop, pipe, link):
        with pytest.raises(FileExistsError, match=f"{path.name} is a folder, pipe, device or endl"):
            spvit_torch.save(other, path)
    for name in ("m", "m.pth", "m.onnx"):
        with pytest.raises(spvit_torch.ModelFileError, match=f"{name}: its name has to end"):
            spvit_torch.save(other, tmp_path / name)
    assert loop.is_symlink() and pipe.is_fifo() and len(list(tmp_path.iterdir())) == 3


ALONE = """
import json, sys, warnings
warnings.simplefilter("ignore")  # torch's own, of a missing NumPy
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jax", "jaxlib", "flax", "numpy", "safetensors", "spvit_jax"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.path.insert(0, sys.argv[1])
import spvit_torch, torch
model = spvit_torch.load(sys.argv[2])
spvit_torch.save(model, sys.argv[2] .replace("m.", "again."))
model.to(torch.float64)
side = model.image_size
images = torch.linspace(-1, 1, 3 * side * side, dtype=torch.float64).view(1, 3, side, side)
print(json.dumps(model(images)[0].tolist()))
"""


def test_it_needs_torch_alone(models, tmp_path):
    _, path, other = models("merged")
    shutil.copy(spvit_torch.__file__, tmp_path)
    shutil.copy(path, tmp_path / "m.safetensors")
    command = [sys.executable, "-I", "-c", ALONE, str(tmp_path), str(tmp_path / "m.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        np.testing.assert_allclose(json.loads(done.stdout), other(images)[0], rtol=1e-4, atol=1e-5)
    assert form(load(str(tmp_path / "again.safetensors"))) == "folded"


@pytest.mark.parametrize("name", ["dinov3", "merged_eva", "swin_shared"])
def test_it_is_exported_for_any_batch(name, models):
    model, _, other = models(name)
    images = turned(pixels(model.spec).astype(np.float32))
    batch = torch.export.Dim("batch", max=64)
    program = torch.export.export(other, (images[:2],), dynamic_shapes=({0: batch},)).module()
    with torch.no_grad():
        for count in (1, 3):
            found, expected = program(images[:count]), other(images[:count])
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_it_is_compiled_as_one_graph(models):
    model, _, other = models("merged_shared")
    images = turned(pixels(model.spec).astype(np.float32))
    compiled = torch.compile(other.train(), backend="eager", fullgraph=True)
    expected = copy.deepcopy(other)(images)
    torch.testing.assert_close(compiled(images), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["merged_eva", "merged_norm_average", "swin_shared", "clip"])
def test_half_precision_is_near(name, dtype, models, tmp_path):
    model, _, other = models(name)
    images, dtype = turned(pixels(model.spec).astype(np.float32)), getattr(torch, dtype)
    with torch.no_grad():
        expected = other(images)
        narrow = other.to(dtype)
        found = narrow(images.to(dtype))
        assert found.dtype == dtype
        if not model.architecture or not model.architecture.merges:  # or others are merged
            assert float((found.float() - expected).abs().max()) < 0.05 * float(
                expected.abs().max()
            )
        spvit_torch.save(narrow, tmp_path / "m.safetensors")
        again = spvit_torch.load(tmp_path / "m.safetensors").to(dtype)
        torch.testing.assert_close(again(images.to(dtype)), found, rtol=0, atol=0)
    assert (
        forms.variables(load(str(tmp_path / "m.safetensors"))).keys()
        == forms.variables(model).keys()
    )
    kinds = {
        value.dtype for value in safetensors.numpy.load_file(tmp_path / "m.safetensors").values()
    }
    assert kinds == {np.dtype(np.float16 if dtype == torch.float16 else np.float32)}


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_every_width_of_floats_is_read(models, tmp_path, dtype):
    """Of several the widest; whatever the order of the arrays."""
    _, path, other = models("shared")
    dtype = getattr(torch, dtype)
    with safetensors.safe_open(path, "pt") as file:
        arrays = {name: file.get_tensor(name).to(dtype) for name in file.keys()}  # noqa: SIM118
        save_file(arrays, tmp_path / "m.safetensors", file.metadata())
    with torch.no_grad():
        expected = copy.deepcopy(other).to(dtype).state_dict()
        found = spvit_torch.load(tmp_path / "m.safetensors").state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=0)
        arrays["norm.scale"] = arrays["norm.scale"].float()
        with safetensors.safe_open(path, "pt") as file:
            save_file(arrays, tmp_path / "m.safetensors", file.metadata())
        mixed = spvit_torch.load(tmp_path / "m.safetensors")
        assert {p.dtype for p in mixed.parameters()} == {torch.promote_types(dtype, torch.float32)}


def test_what_it_was_trained_on(models):
    other = models("vit")[2]
    assert dataclasses.asdict(ABOUT) == {
        name: getattr(other, name) for name in ("class_names", "mean", "std", "crop_ratio")
    }
    other = models("headless")[2]
    assert (other.class_names, other.mean, other.std, other.crop_ratio) == ((), (), (), None)


def test_defaults_and_choices_are_those_of_the_package():
    for spec in MODELS:
        fields = {field.name: field.default for field in dataclasses.fields(spec)}
        assert spvit_torch.SPECS[spec.__name__] == fields
    assert {s.__name__: t for s, t in TEMPERATURES.items()} == spvit_torch.TEMPERATURES
    assert {*spvit_torch.ACTIVATIONS} == {*ACTIVATIONS} and {*spvit_torch.OPS} == {*OPS}
    assert {*spvit_torch.ROTARY} == {*KINDS}
    assert {*spvit_torch.FORMS} == {*FORMS} - {"supernet"}
    assert (spvit_torch.HEADER, spvit_torch.VERSIONS[-1]) == (native.HEADER, native.VERSION)


def test_a_file_of_the_first_version(models, tmp_path):
    """It had the temperature in its spec, and fewer fields."""
    model, path, other = models("shared")

    def older(header):
        header["version"] = 1
        header["spec"]["temperature"] = header.pop("temperature")
        for name in ("channels", "patches", "rotary", "epsilon"):
            del header["spec"][name]

    found = spvit_torch.load(rewritten(path, tmp_path / "m.safetensors", older))
    images = turned(pixels(model.spec).astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(found(images), other(images), rtol=0, atol=0)


def rewritten(path, to, change):
    """The file at ``path`` with what ``change`` makes of our header."""
    with safetensors.safe_open(path, "np") as file:
        header = json.loads(file.metadata()[native.HEADER])
    change(header)
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays, to, {native.HEADER: json.dumps(header)})
    return to


@pytest.mark.parametrize("value", [0, -1.0, 1e-300, float("nan"), float("inf"), "warm", None])
def test_temperatures_that_are_none(models, tmp_path, value):
    path = rewritten(
        models("shared")[1], tmp_path / "m.safetensors", lambda h: h.update(temperature=value)
    )
    with pytest.raises(spvit_torch.ModelFileError, match="temperature is|TypeError"):
        spvit_torch.load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epsilon", 0.0), ("epsilon", float("nan")), ("rotary_base", -1.0), ("heads", True)],
)
def test_numbers_that_no_spec_has(models, tmp_path, name, value):
    path = models("shared")[1]
    path = rewritten(
        path, tmp_path / "m.safetensors", lambda header: header["spec"].update({name: value})
    )
    with pytest.raises(spvit_torch.ModelFileError, match=f"has such {name}: "):
        spvit_torch.load(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda h: h.update(version=99), "format version is 99"),
        (lambda h: h.update(form="supernet"), "if a supernet, prune it first"),
        (lambda h: h.update(form="tiny"), "'tiny' is none of \\('dense'"),
        (lambda h: h.update(form="dense"), "arrays do not fit"),
        (lambda h: h.update(architecture=None), "says of itself"),
        (lambda h: h.pop("spec"), "KeyError: 'spec'"),
        (lambda h: h["spec"].update(type="Swin"), "KeyError: 'Swin'"),
        (lambda h: h["spec"].update(colour="red"), "has such colour"),
        (lambda h: h["spec"].update(width="wide"), "has such width"),
        (lambda h: h["spec"].update(width=-24), "says of itself|no such ViT"),
        (lambda h: h["spec"].update(width=0), "says of itself|do not fit"),
        (lambda h: h["spec"].update(heads=5), "no such ViT"),
        (lambda h: h["spec"].update(heads=0), "ZeroDivisionError"),
        (lambda h: h["spec"].update(image_size=18), "no such ViT"),
        (lambda h: h["spec"].update(image_size=[16, 18]), "no such ViT"),
        (lambda h: h["spec"].update(image_size=[16, 16, 3]), "no such ViT"),
        (lambda h: h["spec"].update(image_size=[16, "x"]), "says of itself"),
        (lambda h: h["spec"].update(pool="max"), "no such ViT"),
        (lambda h: h["spec"].update(rotary="x"), "no such ViT"),
        (lambda h: h["spec"].update(epsilon="x"), "has such epsilon"),
        (lambda h: h["spec"].update(depth=10**8), "cannot have 100000000 blocks"),
        (lambda h: h["spec"].update(image_size=4 * 10**7), "do not fit"),
        (lambda h: h["spec"].update(activation="eval"), "KeyError: 'eval'"),
        (lambda h: h["spec"].update(classes=9), r"head\.kernel is \(24, 7\), not \(24, 9\)"),
        (lambda h: h["architecture"]["ops"].pop(), "says of itself"),
        (lambda h: h["architecture"]["ops"].__setitem__(0, "conv5x5"), "block 0"),
        (lambda h: h["architecture"]["ops"].__setitem__(2, "conv3x3"), "block 2"),
        (lambda h: h["architecture"]["heads"].__setitem__(1, 1), "arrays do not fit"),
        (lambda h: h["architecture"]["heads"].__setitem__(1, 4), "block 1"),
        (lambda h: h["architecture"]["merges"].__setitem__(1, 40), "block 1"),
        (lambda h: h["architecture"]["ffn"].__setitem__(0, 6), r"blocks\.0\.ffn\.fc1\.bias"),
        (lambda h: h["about"].update(mean=3), "says of itself"),
    ],
)  # fmt: skip
def test_headers_that_lie(models, tmp_path, change, said):
    path = rewritten(models("merged")[1], tmp_path / "m.safetensors", change)
    with pytest.raises(spvit_torch.ModelFileError, match=said) as error:
        spvit_torch.load(path)
    assert str(error.value).count(str(path)) == 1


def safetensor(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start, stop, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "header"),
        (b"nothing", "header"),
        (safetensor({}, length=2**63), "header"),
        (safetensor({}, length=3), "header"),
        (safetensor(b"{"), "says of itself"),
        (safetensor(b"\xff\xfe{}"), "says of itself"),
        (safetensor(b"[" * 200_000), "says of itself"),
        (safetensor([]), "says of itself"),
        (safetensor({"a": entry(0, 8)}, bytes(7)), "damaged: a is"),
        (safetensor({"a": entry(0, 8)}, bytes(9)), "damaged: .* bytes"),
        (safetensor({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)), "damaged: b is"),
        (safetensor({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)), "damaged: b is"),
        (safetensor({"a": entry(0, 8), "b": entry(9, 17)}, bytes(17)), "damaged: b is"),
        (safetensor({"a": entry(-8, 0)}, bytes(8)), "damaged: a is"),
        (safetensor({"a": entry(0, 2**62)}, bytes(8)), "damaged: a is"),
        (safetensor({"a": entry(0, 8, (2**62,))}, bytes(8)), "damaged: a is"),
        (safetensor({"a": entry(0, 8, (-1, -2))}, bytes(8)), "damaged: a is"),
        (safetensor({"a": entry(0, 8, (True, 2))}, bytes(8)), "damaged: a is"),
        (safetensor({"a": entry(0, 8, "2")}, bytes(8)), "damaged: a is"),
        (safetensor({"a": entry(0, 8, (1,), "I64")}, bytes(8)), "a is of I64"),
        (safetensor({"a": {}}), "says of itself"),
        (safetensor({"a": entry(0, 8)}, bytes(8)), "not a model of spvit_jax"),
        (safetensor({"__metadata__": {"spvit_jax": "["}}), "says of itself"),
        (safetensor({"__metadata__": {"spvit_jax": 7}}), "says of itself"),
    ],
)  # fmt: skip
def test_damaged_and_hostile_files(tmp_path, data, said):
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(spvit_torch.ModelFileError, match=said) as error:
        spvit_torch.load(path)
    assert str(error.value).count(str(path)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(models, tmp_path, value):
    path = models("vit")[1]
    arrays = safetensors.numpy.load_file(path)
    arrays["norm.bias"][3] = value
    with safetensors.safe_open(path, "np") as file:
        safetensors.numpy.save_file(arrays, tmp_path / "m.safetensors", file.metadata())
    with pytest.raises(spvit_torch.ModelFileError, match=r"norm\.bias holds what is no number"):
        spvit_torch.load(tmp_path / "m.safetensors")


def test_a_file_cut_anywhere(models, tmp_path):
    data = models("vit")[1].read_bytes()
    for end in (5, 100, len(data) // 2, len(data) - 1):
        (tmp_path / "m.safetensors").write_bytes(data[:end])
        with pytest.raises(spvit_torch.ModelFileError, match="damaged"):
            spvit_torch.load(tmp_path / "m.safetensors")


def test_a_header_longer_than_the_format_allows(models, monkeypatch):
    path = models("vit")[1]
    monkeypatch.setattr(spvit_torch, "LONGEST", 1000)
    with pytest.raises(spvit_torch.ModelFileError, match="damaged: its header"):
        spvit_torch.load(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        spvit_torch.load(tmp_path / "m.safetensors")


def test_what_is_saved_can_be_read(models, tmp_path):
    _, _, other = models("vit")
    (tmp_path / "m.safetensors").write_text("before")
    other.head = torch.nn.Linear(24, 3)
    with pytest.raises(spvit_torch.ModelFileError, match=r"head\.kernel is \(24, 3\)"):
        spvit_torch.save(other, tmp_path / "m.safetensors")
    assert (tmp_path / "m.safetensors").read_text() == "before"


def test_images_of_another_shape(models):
    other = models("vit")[2]
    for shape in ((1, 3, 16, 20), (1, 1, 16, 16), (1, 16, 16, 3), (3, 16, 16)):
        with pytest.raises(ValueError, match=r"expected images \[batch, 3, 16, 16\], got"):
            other(torch.zeros(shape))


def test_loading_says_nothing_and_names_stay(models):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, path, _ = models("shared")
        names = {*spvit_torch.load(path).state_dict()}
    leaves = partial("blocks.{}.{}".format, 0)
    expected = {"mixer.v.weight", "mixer.out.bias", "mixer.head_logits", "mixer.norm.running_var"}
    assert {leaves(leaf) for leaf in expected} <= names
    assert {"blocks.1.mixer.qk.weight", "blocks.1.norm1.weight", "pos_embed", "tokens"} <= names
