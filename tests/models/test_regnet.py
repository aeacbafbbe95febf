"""RegNetY: exact sizes, PyTorch's numbers, and what its arguments do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import RegNet, RegNetSpec
from spvit_jax.models.regnet import VARIANTS
from spvit_jax.single_path.prices import count_parameters

SPEC = RegNetSpec((8, 16), (1, 2), 4, image_size=16, classes=7)

PARAMETERS = {  # as published
    "regnety_002": 3_162_996,
    "regnety_004": 4_344_144,
    "regnety_006": 6_055_160,
    "regnety_008": 6_263_168,
    "regnety_016": 11_202_430,
    "regnety_032": 19_436_338,
    "regnety_040": 20_646_656,
    "regnety_064": 30_583_252,
    "regnety_080": 39_180_068,
    "regnety_120": 51_822_544,
    "regnety_160": 83_590_140,
    "regnety_320": 145_046_770,
    "regnety_fashion_mnist": 166_426,
}


def build(spec=SPEC, **options):
    return RegNet(spec, rngs=nnx.Rngs(0), **options)


def random_model(**options):
    """Nothing at its initial value."""
    model = build(**options)
    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        positive = path[-1] in ("scale", "var")
        draw = (
            rng.uniform(0.5, 1.5, variable.shape)
            if positive
            else rng.normal(0, 0.3, variable.shape)
        )
        variable[...] = jnp.asarray(draw, variable.dtype)
    return model


def images(batch=2, height=16, width=16):
    return np.random.default_rng(1).standard_normal((batch, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_its_exact_size(name):
    assert name in PARAMETERS, f"add the parameters of {name}, from an independent source"
    model = nnx.eval_shape(lambda: build(VARIANTS[name]))
    assert count_parameters(model) == PARAMETERS[name]
    statistics = nnx.to_flat_state(nnx.state(model, nnx.BatchStat)).leaves
    convolutions = [v for _, v in nnx.to_flat_state(nnx.state(model)) if len(v.shape) == 4]
    assert len(statistics) == 2 * len(convolutions)


def test_no_size_is_left_over():
    assert set(PARAMETERS) == set(VARIANTS)


def test_the_teacher_multiplies_what_its_name_says(traced_macs):
    spec = VARIANTS["regnety_160"]
    model = nnx.eval_shape(lambda: build(spec))
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    assert round(traced_macs(model, image) / 1e9, 1) == 15.9  # the paper's figure


def in_torch(model, x, train):
    """The same network with PyTorch's functions, from its definition."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional

    def tensor(variable):
        return torch.from_numpy(np.array(variable[...]))

    def conv_norm(x, layer, stride=1, groups=1):
        kernel = tensor(layer.conv.kernel).permute(3, 2, 0, 1)
        x = functional.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        statistics = (tensor(layer.norm.mean), tensor(layer.norm.var))
        weights = (tensor(layer.norm.scale), tensor(layer.norm.bias))
        return functional.batch_norm(x, *statistics, *weights, train, 0.1, 1e-5)

    def linear(x, layer):
        return x @ tensor(layer.kernel) + tensor(layer.bias)

    def bottleneck(x, block, stride):
        y = conv_norm(x, block.conv1).relu()
        y = conv_norm(y, block.conv2, stride, y.shape[1] // 4).relu()
        gate = linear(linear(y.mean((2, 3)), block.se.fc1).relu(), block.se.fc2).sigmoid()
        y = conv_norm(y * gate[:, :, None, None], block.conv3)
        shortcut = x if block.shortcut is None else conv_norm(x, block.shortcut, stride)
        return (y + shortcut).relu()

    x = conv_norm(torch.from_numpy(x).permute(0, 3, 1, 2), model.stem, 2).relu()
    for stage in model.stages:
        for i, block in enumerate(stage):
            x = bottleneck(x, block, 1 if i else 2)
    return linear(x.mean((2, 3)), model.head)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (19, 14)])
def test_logits_are_those_of_pytorch_for_images_of_any_size(train, size, run):
    model = random_model()
    x = images(3, *size)
    expected = in_torch(model, x, train)
    assert expected.shape == (3, 7) and float(expected.abs().mean()) > 0.1
    np.testing.assert_allclose(run(model, x, train=train), expected, rtol=1e-4, atol=1e-4)


def test_statistics_change_in_training_only(run):
    model = random_model()
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))]
    run(model, images())
    same = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    for one, other in zip(before, same, strict=True):
        np.testing.assert_array_equal(one, other)
    run(model, images(), train=True)
    moved = jax.tree.leaves(nnx.state(model, nnx.BatchStat))
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, moved, strict=True))


def test_there_is_one_head_and_a_key_changes_nothing(run):
    model = random_model()
    (only,) = model.heads(images())
    np.testing.assert_allclose(run(model, images()), only, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(run(model, images()), run(model, images(), key=jax.random.key(0)))


def test_a_shortcut_is_projected_where_shapes_differ_only():
    spec = RegNetSpec((32, 32), (2, 2), 4, classes=7)  # the stem is as wide
    blocks = [block for stage in build(spec).stages for block in stage]
    assert [block.shortcut is not None for block in blocks] == [True, False, True, False]
    assert [block.se.fc1.kernel.shape for block in blocks] == [(32, 8)] * 4


def test_squeezing_follows_the_width_before_the_block():
    squeezed = [
        block.se.fc1.kernel.shape[1]
        for stage in nnx.eval_shape(lambda: build(VARIANTS["regnety_160"])).stages
        for block in stage
    ]
    assert squeezed == [8, 56, 56, *[112] * 3, 112, *[308] * 10, 308]


def test_bfloat16_computes_so_but_keeps_float32_parameters_and_logits(equations, run):
    wide, narrow = random_model(), random_model(dtype=jnp.bfloat16)
    leaves = jax.tree.leaves(nnx.state(narrow))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    logits = run(narrow, images())
    assert logits.dtype == jnp.float32
    expected = run(wide, images())
    np.testing.assert_allclose(logits, expected, atol=0.05 * np.abs(expected).max())
    products = [
        {str(v.aval.dtype) for v in equation.invars[:2]}
        for equation in equations(narrow, images())
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert len(products) == 1 + 5 * 3 + 2 + 1  # a shortcut in each of two stages
    assert all(found == {"bfloat16"} for found in products)


def test_float64_is_float64_throughout(run):
    with jax.enable_x64(True):
        model = random_model()
        assert run(model, np.float64(images())).dtype == jnp.float64
        assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float64")}


def test_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="group must be whole and 1 or more, got 0"):
        dataclasses.replace(SPEC, group=0)


@pytest.mark.parametrize("change", [{"depths": (1,)}, {"group": 5}, {"widths": (8, 18)}])
def test_impossible_specs_are_refused(change):
    with pytest.raises(ValueError, match=r"widths need a depth each, and to be multiples of the"):
        dataclasses.replace(SPEC, **change)
