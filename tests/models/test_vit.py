"""Exact sizes of every variant, and what a ViT does with dtype, keys and images."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import Tokens, ViT, ViTSpec
from spvit_jax.models.vit import POOLS, VARIANTS
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.prices import count_parameters, macs, published_macs
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet
from spvit_jax.sizes import sides

SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)

SIZES = {  # parameters, MACs as published
    "deit_tiny_patch16_224": (5_717_416, 1_251_052_032),
    "deit_small_patch16_224": (22_050_664, 4_586_542_080),
    "deit_base_patch16_224": (86_567_656, 17_510_836_224),
    "deit_tiny_distilled_patch16_224": (5_910_800, 1_254_838_272),
    "deit_small_distilled_patch16_224": (22_436_432, 4_597_653_504),
    "deit_base_distilled_patch16_224": (87_338_192, 17_547_214_848),
    "vit_base_patch16_224": (86_567_656, 17_510_836_224),
    "deit_fashion_mnist": (307_082, 16_658_560),
}


def build(spec=SPEC, **options):
    return ViT(spec, rngs=nnx.Rngs(0), **options)


def images(spec=SPEC, batch=2):
    shape = (batch, *sides(spec.image_size), 3)
    return jax.random.normal(jax.random.key(1), shape)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_its_exact_size(name, traced_macs):
    assert name in SIZES, f"add the parameters and MACs of {name}, from an independent source"
    spec = VARIANTS[name]
    model = nnx.eval_shape(lambda: build(spec))
    assert (count_parameters(model), published_macs(spec).dense) == SIZES[name]
    image = jax.ShapeDtypeStruct((1, spec.image_size, spec.image_size, 3), jnp.float32)
    assert traced_macs(model, image) == macs(spec).dense


def test_no_size_is_left_over():
    assert set(SIZES) == set(VARIANTS)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"distilled": True},
        {"image_size": 32},
        {"image_size": (8, 24)},
        {"classes": 3},
        {"depth": 1},
    ],
)
def test_logits_have_a_row_an_image(change, run):
    spec = dataclasses.replace(SPEC, **change)
    logits = run(build(spec), images(spec, 5))
    assert logits.shape == (5, spec.classes) and bool(jnp.isfinite(logits).all())


def test_distilled_logits_are_the_mean_of_both_heads(run):
    model = build(dataclasses.replace(SPEC, distilled=True))
    first, second = model.head.kernel[...], model.head_dist.kernel[...]
    both = run(model, images())
    model.head.kernel[...] = jnp.zeros_like(first)  # biases start at 0
    of_second = run(model, images())
    model.head.kernel[...], model.head_dist.kernel[...] = first, jnp.zeros_like(second)
    of_first = run(model, images())
    np.testing.assert_allclose(both, of_first + of_second, rtol=1e-4, atol=1e-7)
    assert float(jnp.abs(of_first).max()) > 0.01 < float(jnp.abs(of_second).max())
    model.head.kernel[...] = jnp.zeros_like(first)
    np.testing.assert_array_equal(run(model, images()), 0)


def test_patches_are_read_row_by_row_with_colour_last():
    spec = dataclasses.replace(SPEC, image_size=(8, 16))
    model = build(spec)
    model.pos_embed[...] = jnp.zeros_like(model.pos_embed[...])
    x = images(spec, batch=1)
    tokens = model.embed(x)
    np.testing.assert_array_equal(tokens[0, 0], model.tokens[...][0])
    patch = x[0, 4:8, 8:12].reshape(-1)  # second row, third column of the 2 x 4 map
    np.testing.assert_allclose(tokens[0, 1 + 4 + 2], model.patch_embed(patch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("searched", [False, True])
def test_bfloat16_computes_so_but_keeps_float32_parameters_and_logits(searched, equations, run):
    wide, narrow = build(), build(dtype=jnp.bfloat16)
    arguments = (images(),)
    if searched:
        wide, narrow = supernet(wide), supernet(narrow)
        space = Space(SPEC.blocks)
        arguments += (decide(space, initial_logits(space)),)
    parameters = jax.tree.leaves(nnx.state(narrow, nnx.Param))
    assert {p.dtype for p in parameters} == {jnp.dtype("float32")}
    logits = run(narrow, *arguments)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, run(wide, *arguments), atol=0.02)
    many = images(batch=32), *arguments[1:]  # class tokens are told from weights by their size
    products = [
        {str(v.aval.dtype) for v in equation.invars[:2]}
        for equation in equations(narrow, *many)
        if equation.primitive.name == "dot_general"
        and equation.outvars[0].aval.shape[0] >= len(many[0])  # a product of tokens
        and equation.invars[0].aval.size > SPEC.width * SPEC.heads * 9  # not of weights alone
    ]
    assert len(products) >= 6 * SPEC.depth
    assert all(found == {"bfloat16"} for found in products)


def loss_and_gradients(model, key):
    graph, params = nnx.split(model)

    def loss(params):
        logits = nnx.merge(graph, params, copy=True)(images(), key=key, train=True)
        return jnp.square(logits).sum()

    return jax.jit(jax.value_and_grad(loss))(params)


def test_rematerialisation_changes_nothing(equations):
    key = jax.random.key(2)
    options = {"dropout": 0.2, "drop_path": 0.5}
    plain, remat = build(**options), build(**options, remat=True)
    names = [equation.primitive.name for equation in equations(remat, images())]
    assert sum("remat" in name or "checkpoint" in name for name in names) == SPEC.depth
    expected, found = (loss_and_gradients(m, key) for m in (plain, remat))
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, expected, found)


def test_rematerialised_supernet_updates_its_batch_norms(run):
    space = Space(SPEC.blocks)
    gates = decide(space, initial_logits(space))
    plain, remat = supernet(build()), supernet(build(remat=True))
    for model in (plain, remat):
        run(model, images(), gates, train=True)
    expected, found = (jax.tree.leaves(nnx.state(m, nnx.BatchStat)) for m in (plain, remat))
    assert all((leaf != 0).all() and (leaf != 1).all() for leaf in found)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), expected, found)


@pytest.mark.parametrize("rate", ["dropout", "drop_path"])
def test_randomness_needs_a_key_and_depends_on_it(rate, run):
    noisy, plain = build(**{rate: 0.5}), build()
    x = images(batch=8)
    np.testing.assert_array_equal(run(noisy, x, train=True), run(plain, x))
    first, again, second = (run(noisy, x, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)


def test_drop_path_rises_linearly():
    model = build(dataclasses.replace(SPEC, depth=5), drop_path=0.2)
    np.testing.assert_allclose([b.drop_path for b in model.blocks], [0, 0.05, 0.1, 0.15, 0.2])
    assert build(dataclasses.replace(SPEC, depth=1), drop_path=0.2).blocks[0].drop_path == 0


def test_layer_norms_have_the_vit_epsilon_and_the_exact_variance():
    model = build()
    x = np.random.default_rng(0).standard_normal((5, SPEC.width))
    for norm in (model.norm, model.blocks[0].norm1, model.blocks[-1].norm2):
        for scaled in (1e-3 * x, 1e4 + x):  # the first shows epsilon, the second cancellation
            wide = scaled.astype(np.float32).astype(np.float64)
            centred = wide - wide.mean(-1, keepdims=True)
            expected = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)
            np.testing.assert_allclose(norm(jnp.asarray(scaled, jnp.float32)), expected, atol=2e-3)


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected 16x16 images, got 20x16; resize"):
        build()(jnp.zeros((1, 20, 16, 3)))


def reference_norm(x):
    """A fresh layer norm in float64."""
    wide = np.asarray(x, np.float64)
    centred = wide - wide.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-6)


def pooled_by_hand(pool, x):
    return {
        "token": lambda: reference_norm(x[:, 0]),
        "norm_average": lambda: reference_norm(x[:, 1:]).mean(1),
        "average_norm": lambda: reference_norm(x[:, 1:].mean(1)),
    }[pool]()


@pytest.mark.parametrize("pool", POOLS[:3])
def test_the_head_sees_what_the_pool_says(pool):
    model = build(dataclasses.replace(SPEC, pool=pool))
    model.head.bias[...] = jnp.arange(7.0)
    x = images()
    expected = pooled_by_hand(pool, np.asarray(model.embed(x))) @ np.asarray(model.head.kernel[...])
    (found,) = model.classify(Tokens(model.embed(x)))  # tokens straight to the head
    np.testing.assert_allclose(found, expected + np.arange(7), rtol=1e-4, atol=1e-4)
    others = [pooled_by_hand(other, np.asarray(model.embed(x))) for other in POOLS[:3]]
    assert all(np.abs(a - b).max() > 0.1 for a, b in itertools.pairwise(others))


@pytest.mark.parametrize("pool", ["norm_average", "average_norm"])
def test_without_class_token_there_are_only_patches(pool, run, traced_macs):
    spec = dataclasses.replace(SPEC, class_token=False, pool=pool)
    model = build(spec)
    assert not hasattr(model, "tokens") and model.embed(images()).shape == (2, 16, 24)
    assert [(block.prefix, block.tokens) for block in spec.blocks] == [(0, 16)] * 2
    fewer = 2 * 24  # the token and its position
    assert count_parameters(build()) - count_parameters(model) == fewer
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    assert traced_macs(model, image) == macs(spec).dense
    assert published_macs(spec).dense == macs(spec).dense + sum(2 * 24 * 16 for _ in spec.blocks)
    expected = model.patches(images()) + model.pos_embed[...]
    np.testing.assert_allclose(model.embed(images()), expected, rtol=1e-6)
    assert bool(jnp.isfinite(run(model, images())).all())


def test_heads_are_the_logits_of_each_head(run):
    model = build(dataclasses.replace(SPEC, distilled=True))
    model.head.bias[...], model.head_dist.bias[...] = jnp.full(7, 1.0), jnp.full(7, 5.0)
    tokens = Tokens(model.embed(images()))
    for block in model.blocks:
        tokens = block(tokens)
    tokens = model.norm(tokens.x[:, :2])
    first, second = model.heads(images())
    np.testing.assert_allclose(first, model.head(tokens[:, 0]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second, model.head_dist(tokens[:, 1]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(model, images()), (first + second) / 2, rtol=1e-4, atol=1e-6)
    assert float(jnp.abs(first - second).mean()) > 1
    (only,) = build().heads(images())
    np.testing.assert_array_equal(only, build()(images()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": -4}, r"heads must be whole and 1 or more, got -4"),
        ({"heads": True}, r"heads must be whole and 1 or more, got True"),
        ({"patch_size": 0}, r"patch_size must be whole and 1 or more, got 0"),
        ({"classes": -1}, r"classes must be whole and 0 or more, got -1"),
        ({"epsilon": float("nan")}, r"epsilon must be a number above 0, got nan"),
        ({"epsilon": 0.0}, r"epsilon must be a number above 0, got 0.0"),
        ({"rotary_base": float("inf")}, r"rotary_base must be a number above 0, got inf"),
        ({"patches": "no"}, r"patches must be true or false, got 'no'"),
        ({"heads": 5}, r"heads must divide the width; got 5 and 24"),
        ({"patch_size": 5}, r"patch size must divide the image size; got 5 and 16"),
        ({"image_size": (16, 18)}, r"got 4 and 16x18; .* in height and in width"),
        ({"image_size": (16, 16, 3)}, r"or two, height and width; got \(16, 16, 3\)"),
        ({"image_size": (16, 0)}, r"one number above 0 .* got \(16, 0\)"),
        ({"image_size": 16.0}, r"one number above 0 .* got 16.0"),
        (
            {"pool": "max"},
            r"pool must be one of token, norm_average, average_norm, attention; got 'max'",
        ),
        ({"class_token": False}, r'pool="token" needs a class token'),
        ({"distilled": True, "pool": "norm_average"}, r"distilled needs that pool"),
        ({"distilled": True, "class_token": False}, r'pool="token" needs a class token'),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPEC, **change)


def test_a_square_has_one_size_however_it_is_said():
    spec = dataclasses.replace(SPEC, image_size=[16, 16])
    assert spec == SPEC and spec.image_size == 16 and hash(spec) == hash(SPEC)
    assert dataclasses.replace(SPEC, image_size=[8, 16]).image_size == (8, 16)
