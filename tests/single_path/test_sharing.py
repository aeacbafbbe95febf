"""Convolutions from attention weights: mixtures, taps and shifts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import Geometry
from spvit_jax.models.layers import Attention, BatchNorm
from spvit_jax.single_path.sharing import (
    CENTRE,
    SharedConv,
    conv3x3,
    head_mixture,
    mix_values,
    own_taps,
    sum_shifted,
)

GRID, WIDTH, HEADS = (4, 3), 12, 3
PATCHES = 12


def library_convolution(x, kernel):
    """XLA's own: ``x [b, rows, columns, D]``, ``kernel [D, 9, d]`` with row-major taps."""
    filters = kernel.reshape(kernel.shape[0], 3, 3, -1).transpose(1, 2, 0, 3)
    return jax.lax.conv_general_dilated(
        x, filters, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), float)


def assert_same_gradients(function, reference, *arguments):
    """Both functions of arrays, and both their derivatives in random directions."""
    with jax.enable_x64(True):
        arguments = [jnp.asarray(np.asarray(a), jnp.float64) for a in arguments]

        @partial(jax.jit, static_argnums=0)
        def outputs(function, *arguments):
            out, backward = jax.vjp(function, *arguments)
            directions = [normal(*o.shape, seed=i) for i, o in enumerate(jax.tree.leaves(out))]
            return out, backward(jax.tree.unflatten(jax.tree.structure(out), directions))

        found, expected = outputs(function, *arguments), outputs(reference, *arguments)
        close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
        jax.tree.map(close, found, expected)


def test_a_tap_is_a_convex_mixture_of_heads():
    mixture = head_mixture(normal(HEADS, 9) * 3, 2.0)
    assert mixture.shape == (HEADS, 9) and float(mixture.min()) > 0
    np.testing.assert_allclose(mixture.sum(0), 1, rtol=1e-6)
    np.testing.assert_allclose(head_mixture(jnp.ones((4, 9)), 0.01), 0.25)
    logits = jnp.log(jnp.array([[1.0], [3.0]]))
    np.testing.assert_allclose(head_mixture(logits * 0.01, 0.01)[:, 0], [0.25, 0.75], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 100.0])
def test_the_mixture_has_the_gradient_of_a_softmax(temperature):
    assert_same_gradients(
        partial(head_mixture, temperature=temperature),
        lambda logits: jax.nn.softmax(logits / temperature, axis=0),
        1 + 0.01 * normal(HEADS, 9),
    )


def test_the_mixture_is_exact_for_close_logits_at_a_small_temperature():
    logits = (1 + 0.01 * normal(HEADS, 9)).astype(jnp.float32)
    wide = np.asarray(logits, np.float64) / 0.01
    expected = np.exp(wide - wide.max(0)) / np.exp(wide - wide.max(0)).sum(0)
    np.testing.assert_allclose(head_mixture(logits, 0.01), expected, rtol=3e-6)


def test_conv3x3_and_its_gradient_are_those_of_a_convolution_with_zero_padding():
    def found(x, kernel):
        flat = conv3x3(x.reshape(2, PATCHES, WIDTH), kernel, GRID)
        return flat.reshape(2, *GRID, -1)

    x, kernel = normal(2, *GRID, WIDTH), normal(WIDTH, 9, 5, seed=1)
    assert_same_gradients(found, library_convolution, x, kernel)


@pytest.mark.parametrize("size", [1, 3])
def test_mixed_values_and_their_gradient_are_those_of_mixed_kernels(size):
    def reference(values, mixture):
        taps = jnp.eye(WIDTH).reshape(WIDTH, HEADS, -1)  # from the values on, the heads themselves
        kernel = jnp.einsum("ihd,ht->itd", taps, mixture)
        if size == 1:
            kernel = jnp.zeros_like(kernel).at[:, CENTRE].set(kernel[:, CENTRE])
        return library_convolution(values, kernel)

    def found(values, mixture):
        return mix_values(values, own_taps(mixture, size))

    mixture = jax.nn.softmax(normal(HEADS, 9, seed=1), axis=0)
    assert_same_gradients(found, reference, normal(2, *GRID, WIDTH), mixture)


@pytest.mark.parametrize("tap", range(9))
def test_tap_reads_its_own_neighbour(tap):
    taps = jnp.zeros((1, *GRID, 9, 1)).at[..., tap, 0].set(normal(1, *GRID))
    found = np.asarray(sum_shifted(taps))[0, :, :, 0]
    source = np.asarray(taps)[0, :, :, tap, 0]
    down, right = tap // 3 - 1, tap % 3 - 1
    for row, column in np.ndindex(*GRID):
        inside = 0 <= row + down < GRID[0] and 0 <= column + right < GRID[1]
        expected = source[row + down, column + right] if inside else 0
        assert found[row, column] == expected


@pytest.mark.parametrize("size", [1, 3])
def test_shared_convolution_follows_the_paper(size):
    geometry = Geometry(WIDTH, HEADS, 0, GRID, prefix=1)
    attention = Attention(geometry, dtype=None, rngs=nnx.Rngs(0))
    for part, seed in ((attention.v, 1), (attention.out, 2)):
        part.kernel[...], part.bias[...] = normal(WIDTH, WIDTH, seed=seed), normal(WIDTH, seed=9)
    norm = BatchNorm(WIDTH // HEADS)
    norm.mean[...], norm.var[...] = normal(4, seed=4), 1 + normal(4, seed=5) ** 2
    logits = 1 + 0.01 * normal(HEADS, 9, seed=3)
    conv = SharedConv(attention, logits, norm, size, geometry, 0.01)
    x = normal(2, 1 + PATCHES, WIDTH, seed=6)

    shares = np.asarray(jax.nn.softmax(logits / 0.01, axis=0))
    into = np.asarray(attention.v.kernel[...]).reshape(WIDTH, HEADS, -1)
    out = np.asarray(attention.out.kernel[...]).reshape(HEADS, -1, WIDTH)
    kernel, output, bias = 0, 0, 0
    taps = [CENTRE] if size == 1 else range(9)
    kernel = np.zeros((WIDTH, 9, WIDTH // HEADS), np.float32)
    for tap in taps:
        for head in range(HEADS):
            kernel[:, tap] += shares[head, tap] * into[:, head]
            output += shares[head, tap] * out[head]
            bias += shares[head, tap] * attention.v.bias[...].reshape(HEADS, -1)[head]
    hidden = library_convolution(x[:, 1:].reshape(2, *GRID, WIDTH), jnp.asarray(kernel))
    units = jax.nn.relu((hidden + bias - norm.mean[...]) / jnp.sqrt(norm.var[...] + 1e-5))
    expected = (units @ output + attention.out.bias[...]).reshape(2, PATCHES, WIDTH)

    found = conv(x)
    np.testing.assert_array_equal(found[:, 0], x[:, 0])
    np.testing.assert_allclose(found[:, 1:], expected, rtol=1e-3, atol=1e-3)
