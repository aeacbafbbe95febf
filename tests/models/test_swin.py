"""Swin: exact sizes, windows and masks against explicit loops, and errors that help."""

import dataclasses
import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import Geometry, Swin, SwinSpec, Tokens
from spvit_jax.models.swin import (
    MASKED,
    VARIANTS,
    WindowAttention,
    from_windows,
    relative_position_index,
    shift_mask,
    to_windows,
)
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.prices import count_parameters, macs, published_macs
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet
from spvit_jax.sizes import sides

SPEC = SwinSpec(
    width=12,
    depths=(2, 2),
    heads=(2, 4),
    hidden=(20, 32),
    window=3,
    patch_size=2,
    image_size=24,
    classes=7,
)
SHIFTED = Geometry(width=12, heads=2, hidden=0, grid=(6, 6), window=(3, 3), shift=(1, 1))
PLAIN = dataclasses.replace(SHIFTED, shift=(0, 0))
OBLONG = dataclasses.replace(SHIFTED, grid=(2, 18), window=(2, 6), shift=(0, 3))

SIZES = {  # parameters as timm counts them, MACs as published at window 7 and 224
    "swin_tiny_patch4_window7_224": (28_288_354, 4_494_405_120),
    "swin_small_patch4_window7_224": (49_606_258, 8_746_520_064),
    "swin_base_patch4_window7_224": (87_768_224, 15_438_473_216),
    "swin_base_patch4_window12_384": (87_903_584, 47_105_253_376),
    "swin_fashion_mnist": (238_430, 17_452_480),
}


def build(spec=SPEC, **options):
    return Swin(spec, rngs=nnx.Rngs(0), **options)


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


def test_the_published_count_of_the_small_one_is_ours_in_float32():
    exact = published_macs(VARIANTS["swin_small_patch4_window7_224"]).dense
    assert int(np.float32(exact)) == 8_746_520_576 == exact + 512


def places(geometry):
    """The row and column on the map of each token of each window, by the definition."""
    (rows, columns), (high, wide), (down, right) = geometry.grid, geometry.window, geometry.shift
    for top, left in itertools.product(range(0, rows, high), range(0, columns, wide)):
        yield [
            ((top + i + down) % rows, (left + j + right) % columns)
            for i, j in itertools.product(range(high), range(wide))
        ]


@pytest.mark.parametrize("geometry", [PLAIN, SHIFTED, OBLONG])
def test_windows_hold_their_tokens_and_give_them_back(geometry):
    x = np.random.default_rng(0).standard_normal((2, 36, 12)).astype(np.float32)
    windows = to_windows(jnp.asarray(x), geometry, geometry.heads)
    count, tokens = geometry.windows, math.prod(geometry.window)
    assert count * tokens == 36 and windows.shape == (count, 2, tokens, 2, 6)
    for window, tokens in zip(windows, places(geometry), strict=True):
        for i, (row, column) in enumerate(tokens):
            expected = x[:, geometry.grid[1] * row + column].reshape(2, 2, 6)
            np.testing.assert_array_equal(window[:, i], expected)
    np.testing.assert_array_equal(from_windows(windows, geometry), x)


@pytest.mark.parametrize(
    ("grid", "window", "shift"),
    [
        ((12, 12), (3, 3), (1, 1)),
        ((12, 12), (2, 2), (1, 1)),
        ((12, 12), (6, 6), (3, 3)),
        ((6, 12), (3, 3), (1, 1)),
        ((4, 12), (4, 6), (0, 3)),
        ((12, 4), (6, 4), (3, 0)),
    ],
)
def test_the_mask_is_between_tokens_from_opposite_borders(grid, window, shift):
    geometry = Geometry(width=4, heads=1, hidden=0, grid=grid, window=window, shift=shift)
    mask = shift_mask(geometry)
    for found, tokens in zip(mask, places(geometry), strict=True):
        for i, (row, column) in enumerate(tokens):
            for j, (other_row, other_column) in enumerate(tokens):
                apart = abs(row - other_row) >= window[0] or abs(column - other_column) >= window[1]
                assert found[i, j] == (MASKED if apart else 0)
    assert (mask == MASKED).any()


@pytest.mark.parametrize(("high", "wide"), [(3, 3), (2, 3), (3, 1)])
def test_the_position_table_has_a_row_for_each_offset(high, wide):
    index = relative_position_index((high, wide))
    assert set(index.flat) == set(range((2 * high - 1) * (2 * wide - 1)))
    for query, key in itertools.product(range(high * wide), repeat=2):
        down = query // wide - key // wide
        right = query % wide - key % wide
        assert index[query, key] == (2 * wide - 1) * (down + high - 1) + right + wide - 1


def random_attention(geometry):
    layer = WindowAttention(geometry, dtype=None, rngs=nnx.Rngs(0))
    for seed, (_, leaf) in enumerate(nnx.to_flat_state(nnx.state(layer, nnx.Param))):
        rng = np.random.default_rng(seed)
        leaf[...] = jnp.asarray(0.4 * rng.standard_normal(leaf.shape), leaf.dtype)
    return layer


@pytest.mark.parametrize("geometry", [PLAIN, SHIFTED])
def test_tokens_hear_only_of_those_near_them_in_their_window(geometry):
    layer = random_attention(geometry)
    call = jax.jit(lambda x: layer(x)[0])
    x = np.random.default_rng(9).standard_normal((1, 36, 12)).astype(np.float32)
    before = call(x)
    for row, column in [(0, 0), (5, 5), (0, 3), (5, 2), (2, 2)]:
        changed = x.copy()
        changed[:, 6 * row + column] += 3
        found = np.abs(call(changed) - before).max((0, 2)) > 1e-5
        (mine,) = [tokens for tokens in places(geometry) if (row, column) in tokens]
        near = [(r, c) for r, c in mine if max(abs(r - row), abs(c - column)) < 3]
        expected = np.zeros(36, bool)
        expected[[6 * r + c for r, c in near]] = True
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("geometry", [PLAIN, SHIFTED])
def test_window_attention_is_its_definition(geometry):
    with jax.enable_x64(True):
        layer = random_attention(geometry)
        x = np.random.default_rng(9).standard_normal((2, 36, 12))
        found, _ = jax.jit(layer)(x)
        assert found.dtype == jnp.float64
    qk, v, out = (
        (np.asarray(part.kernel[...]), np.asarray(part.bias[...]))
        for part in (layer.qk, layer.v, layer.out)
    )
    table = np.asarray(layer.position_bias[...])
    mixed = np.zeros_like(x)
    for image, tokens, head in itertools.product(range(2), places(geometry), range(2)):
        flat = [6 * row + column for row, column in tokens]
        part = slice(6 * head, 6 * head + 6)
        queries = (x[image, flat] @ qk[0] + qk[1])[:, :12][:, part]
        keys = (x[image, flat] @ qk[0] + qk[1])[:, 12:][:, part]
        values = (x[image, flat] @ v[0] + v[1])[:, part]
        for i, j in enumerate(flat):
            logits = np.empty(9)
            for k in range(9):
                down, right = i // 3 - k // 3, i % 3 - k % 3
                logits[k] = queries[i] @ keys[k] / 6**0.5 + table[5 * (down + 2) + right + 2, head]
                if np.abs(np.subtract(tokens[i], tokens[k])).max() >= 3:
                    logits[k] -= 100
            weights = np.exp(logits - logits.max())
            mixed[image, j, part] = weights / weights.sum() @ values
    np.testing.assert_allclose(found, mixed @ out[0] + out[1], rtol=1e-10, atol=1e-12)


def reference_norm(x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)


def test_merging_reads_squares_column_by_column():
    (merge,) = build().merges
    x = np.random.default_rng(0).standard_normal((2, 144, 12))
    found = merge(jnp.asarray(x, jnp.float32)).reshape(2, 6, 6, 24)
    grid = x.reshape(2, 12, 12, 12)
    for row, column in itertools.product(range(6), repeat=2):
        square = [
            grid[:, 2 * row + down, 2 * column + right] for right in range(2) for down in range(2)
        ]
        expected = reference_norm(np.concatenate(square, -1)) @ np.asarray(merge.kernel[...])
        np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-4, atol=1e-5)


def test_layer_norms_have_the_swin_epsilon_and_the_exact_variance():
    model = build()
    rng = np.random.default_rng(0)
    norms = (model.norm, model.embed_norm, model.merges[0].norm, model.blocks[0].norm1)
    for norm in (*norms, model.blocks[-1].norm2):
        x = rng.standard_normal((5, norm.scale.shape[0]))
        for scaled in (1e-3 * x, 1e4 + x):  # the first shows epsilon, the second cancellation
            expected = reference_norm(scaled.astype(np.float32).astype(np.float64))
            np.testing.assert_allclose(norm(jnp.asarray(scaled, jnp.float32)), expected, atol=2e-3)


def test_the_network_is_its_parts_in_order():
    graph, state = nnx.split(build())

    @jax.jit
    def calls(state):
        model = nnx.merge(graph, state)
        x = model.embed_norm(model.patches(images()))
        for block in model.blocks[:2]:
            x = block(Tokens(x)).x
        x = model.merges[0](x)
        for block in model.blocks[2:]:
            x = block(Tokens(x)).x
        by_hand = model.head(model.norm(x).mean(1))
        (only,) = model.heads(images())
        return by_hand, model(images()), only

    expected, *others = calls(state)
    assert expected.shape == (2, 7) and float(jnp.abs(expected).max()) > 0.01
    for found in others:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_every_second_block_is_shifted_where_there_are_windows():
    blocks = VARIANTS["swin_tiny_patch4_window7_224"].blocks
    assert [block.grid for block in blocks] == [
        (side, side) for side in [56] * 2 + [28] * 2 + [14] * 6 + [7] * 2
    ]
    assert [block.shift for block in blocks] == [(0, 0), (3, 3)] * 5 + [(0, 0), (0, 0)]
    assert [block.width for block in blocks] == [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    assert [block.heads for block in blocks] == [3] * 2 + [6] * 2 + [12] * 6 + [24] * 2
    assert {(block.head_dim, block.window) for block in blocks} == {(32, (7, 7))}
    assert [block.windows for block in blocks[::2]] == [64, 16, 4, 4, 4, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"image_size": 12},
        {"image_size": 48},
        {"window": 12},
        {"image_size": (12, 24)},
        {"image_size": (48, 16), "window": 12},
    ],
)
def test_other_sizes_have_their_own_windows(change, run):
    spec = dataclasses.replace(SPEC, **change)
    assert run(build(spec), images(spec, 3)).shape == (3, 7)
    for block in spec.blocks:
        for window, side, shift in zip(block.window, block.grid, block.shift, strict=True):
            assert window == min(spec.window, side)
            assert shift == 0 or window < side
    table = build(spec).blocks[-1].mixer.position_bias.shape
    assert table == (math.prod(2 * side - 1 for side in spec.blocks[-1].window), 4)
    assert published_macs(spec).base > macs(spec).base > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 256}, r"windows of 7x7 tokens cannot divide the maps of 256x256.*as 224"),
        ({"image_size": 385}, r"maps of 385x385 .* patches of 4 in 4 stages; .*such as 448"),
        ({"image_size": 112}, r"choose a multiple of 224 pixels, such as 224"),
        ({"image_size": 3}, r"choose a multiple of 224 pixels, such as 224"),
        ({"image_size": (448, 100)}, r"448x100 .* of 224 pixels for their width, such as 448x224"),
        ({"image_size": (100, 448)}, r"100x448 .* of 224 pixels for their height, such as 224x448"),
        ({"image_size": (3, 1000)}, r"pixels for their height and width, such as 224x896"),
        ({"window": 12}, r"windows of 12x12 .* choose a multiple of 384 pixels, such as 384"),
        ({"heads": (3, 6, 12, 25)}, r"heads must divide the width; got 25 and 768 in stage 3"),
        ({"heads": (3, 6, -12, 24)}, r"heads must be whole and 1 or more, got \(3, 6, -12, 24\)"),
        ({"window": 0}, r"window must be whole and 1 or more, got 0"),
        ({"epsilon": -1e-5}, r"epsilon must be a number above 0, got -1e-05"),
        ({"depths": (2, 2)}, r"depths, heads and hidden need one entry a stage"),
        ({"depths": (), "heads": (), "hidden": ()}, r"need one entry a stage"),
    ],
)
def test_impossible_specs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        SwinSpec(**change)


def test_the_size_an_error_proposes_is_possible():
    assert SwinSpec(image_size=448).blocks[-1].windows == 4
    assert SwinSpec(window=12, image_size=384).blocks[-1].windows == 1


def test_an_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected 24x24 images, got 28x24; resize"):
        build()(jnp.zeros((1, 28, 24, 3)))


def test_drop_path_rises_linearly_over_all_stages():
    rates = [block.drop_path for block in build(drop_path=0.3).blocks]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3])


@pytest.mark.parametrize("searched", [False, True])
def test_bfloat16_computes_so_but_keeps_float32_parameters_and_logits(searched, equations, run):
    wide, narrow = build(), build(dtype=jnp.bfloat16)
    arguments = (images(batch=16),)
    if searched:
        wide, narrow = supernet(wide), supernet(narrow)
        space = Space(SPEC.blocks)
        arguments += (decide(space, initial_logits(space)),)
    parameters = jax.tree.leaves(nnx.state(narrow, nnx.Param))
    assert {p.dtype for p in parameters} == {jnp.dtype("float32")}
    logits = run(narrow, *arguments)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, run(wide, *arguments), atol=0.02)
    products = [
        {str(v.aval.dtype) for v in equation.invars[:2]}
        for equation in equations(narrow, *arguments)
        if equation.primitive.name == "dot_general"
        and max(v.aval.size for v in equation.invars) > 10_000  # of tokens, not weights alone
    ]
    assert len(products) >= 6 * len(SPEC.blocks)
    assert all(found == {"bfloat16"} for found in products)


def test_rematerialisation_changes_nothing(equations):
    def gradients(model):
        graph, params = nnx.split(model)

        def loss(params):
            inner = nnx.merge(graph, params, copy=True)
            return jnp.square(inner(images(), key=jax.random.key(2), train=True)).sum()

        return jax.jit(jax.grad(loss))(params)

    spec = dataclasses.replace(SPEC, depths=(1, 1))
    options = {"dropout": 0.2, "drop_path": 0.5}
    plain, remat = build(spec, **options), build(spec, **options, remat=True)
    names = [equation.primitive.name for equation in equations(remat, images())]
    assert sum("remat" in name or "checkpoint" in name for name in names) == 2
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradients(plain), gradients(remat))


@pytest.mark.parametrize("rate", ["dropout", "drop_path"])
def test_randomness_needs_a_key_and_depends_on_it(rate, run):
    noisy, plain = build(**{rate: 0.5}), build()
    x = images(batch=8)
    np.testing.assert_array_equal(run(noisy, x, train=True), run(plain, x))
    first, again, second = (run(noisy, x, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
