"""Layers against PyTorch, closed forms and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import Geometry, Tokens
from spvit_jax.models.activations import gelu
from spvit_jax.models.layers import (
    Attention,
    BatchNorm,
    Dense,
    Mlp,
    dense,
    drop_path,
    dropout,
    split_key,
)


def test_gelu_and_its_gradient_are_exact():
    with jax.enable_x64(True):
        x = jnp.linspace(-12, 12, 2001, dtype=jnp.float64)

        def exact(x):
            return jax.nn.gelu(x, approximate=False)

        np.testing.assert_allclose(gelu(x), exact(x), rtol=1e-12, atol=1e-15)
        gradient = jax.vmap(jax.grad(gelu))(x)
        np.testing.assert_allclose(gradient, jax.vmap(jax.grad(exact))(x), rtol=1e-12, atol=1e-15)
        assert gradient.dtype == jnp.float64


def test_gelu_keeps_only_its_input_for_the_backward_pass():
    _, backward = jax.vjp(gelu, jnp.ones((3, 5)))
    assert [leaf.shape for leaf in jax.tree.leaves(backward)] == [(3, 5)]


@pytest.mark.parametrize("function", [dropout, drop_path])
def test_dropping_is_the_identity_without_key_or_rate(function):
    x = jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_array_equal(function(x, 0.5, None), x)
    np.testing.assert_array_equal(function(x, 0.0, jax.random.key(0)), x)


def test_dropout_zeroes_elements_and_keeps_the_mean():
    found = np.asarray(dropout(jnp.ones((200, 10, 50)), 0.3, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.7], rtol=1e-6)
    assert abs((found == 0).mean() - 0.3) < 0.01
    assert (found == 0).mean((0, 1)).min() > 0.2  # along every axis


def test_drop_path_zeroes_whole_samples():
    found = np.asarray(drop_path(jnp.ones((20_000, 2, 3)), 0.3, jax.random.key(0)))
    np.testing.assert_array_equal(found, np.broadcast_to(found[:, :1, :1], found.shape))
    np.testing.assert_allclose(np.unique(found), [0, 1 / 0.7], rtol=1e-6)
    assert abs((found == 0).mean() - 0.3) < 0.02


def test_dense_is_the_product_along_the_last_axis():
    rng = np.random.default_rng(0)
    x, kernel, bias = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    np.testing.assert_allclose(dense(x, kernel, bias), x @ kernel + bias, rtol=1e-5, atol=1e-6)
    layer = Dense(4, 5, dtype=None, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer(jnp.zeros(4)), layer.bias[...])


def test_new_weights_are_uniform_with_the_variance_of_glorot():
    kernel = np.asarray(Dense(200, 300, dtype=None, rngs=nnx.Rngs(0)).kernel[...])
    bound = (6 / (200 + 300)) ** 0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert abs(kernel.std() - bound / 3**0.5) < 0.01 * bound and abs(kernel.mean()) < 0.01 * bound


def test_batch_norm_is_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    theirs, ours = torch.nn.BatchNorm2d(5), BatchNorm(5)
    for name, target in (("weight", ours.scale), ("bias", ours.bias)):
        value = rng.normal(1, 0.5, 5).astype(np.float32)
        getattr(theirs, name).data = torch.from_numpy(value)
        target[...] = jnp.asarray(value)
    for step in range(4):
        x = rng.normal(2, 3, (2, 3, 3, 5)).astype(np.float32)  # 18 values: unbiased shows
        train = step < 3
        theirs.train(train)
        expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        np.testing.assert_allclose(
            ours(jnp.asarray(x), train), expected.detach(), rtol=1e-5, atol=1e-5
        )
        np.testing.assert_allclose(ours.mean[...], theirs.running_mean, rtol=1e-5)
        np.testing.assert_allclose(ours.var[...], theirs.running_var, rtol=1e-5)


def test_batch_norm_keeps_float32_statistics_of_bfloat16_input():
    norm = BatchNorm(3)
    x = (100 + jax.random.normal(jax.random.key(0), (64, 3))).astype(jnp.bfloat16)
    assert norm(x, True).dtype == jnp.bfloat16
    assert norm.mean[...].dtype == norm.var[...].dtype == jnp.float32
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(norm.mean[...], 0.1 * wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * wide.var(0, ddof=1), rtol=1e-4)


def test_attention_is_the_softmax_of_scaled_products():
    geometry = Geometry(width=12, heads=3, hidden=0, grid=(2, 2), prefix=1)
    layer = Attention(geometry, dtype=None, rngs=nnx.Rngs(0))
    for part in (layer.qk, layer.v, layer.out):
        part.kernel[...] = 10 * part.kernel[...]
        part.bias[...] = jax.random.normal(jax.random.key(1), part.bias.shape)
    x = np.asarray(jax.random.normal(jax.random.key(2), (2, 5, 12)))

    def heads(y):
        return y.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3)

    qk = x @ layer.qk.kernel[...] + layer.qk.bias[...]
    q, k = heads(qk[..., :12]), heads(qk[..., 12:])
    v = heads(x @ layer.v.kernel[...] + layer.v.bias[...])
    weights = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / 2, axis=-1)
    mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(2, 5, 12)
    expected = mixed @ layer.out.kernel[...] + layer.out.bias[...]
    found, keys = layer(jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(keys, qk[..., 12:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wide", [False, True])
def test_a_token_of_a_size_counts_as_so_many(wide):
    """In float64 attention is written out, in float32 it is JAX's."""
    with jax.enable_x64(wide):
        geometry = Geometry(width=12, heads=3, hidden=0, grid=(2, 2), prefix=1)
        layer = Attention(geometry, dtype=None, rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)
        x, sizes = jnp.asarray(rng.standard_normal((2, 5, 12)), float), np.array([1, 3, 1, 2, 1])
        merged = Tokens(x, jnp.asarray(np.stack([sizes, 0 * sizes + 1]), float))
        found, keys = layer(x, tokens=merged)
        alone, _ = layer(x)
        layer.read = sizes.sum()
        repeated, _ = layer(x.repeat(sizes, axis=1, total_repeat_length=8))
        found, alone, repeated = map(np.asarray, (found, alone, repeated))
    first = sizes.cumsum() - sizes
    rtol = 1e-12 if wide else 1e-5
    np.testing.assert_allclose(found[0], repeated[0, first], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(found[1], alone[1], rtol=rtol, atol=rtol)
    assert np.abs(found[0] - alone[0]).max() > 1e-2 and keys.shape == x.shape


def test_an_ffn_is_two_projections_around_gelu():
    mlp = Mlp(Geometry(6, 1, 10, (1, 1)), dropout=0.0, dtype=None, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 3, 6))
    units = jax.nn.gelu(x @ mlp.fc1.kernel[...] + mlp.fc1.bias[...], approximate=False)
    np.testing.assert_allclose(mlp.units(x), units, rtol=1e-5, atol=1e-6)
    expected = units @ mlp.fc2.kernel[...] + mlp.fc2.bias[...]
    np.testing.assert_allclose(mlp(x), expected, rtol=1e-5, atol=1e-6)


def test_keys_are_split_or_all_none():
    assert split_key(None, 3) == [None] * 3
    first, second = split_key(jax.random.key(0), 2)
    assert not (jax.random.key_data(first) == jax.random.key_data(second)).all()
