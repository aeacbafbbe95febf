"""The fused kernel's shapes and gradients; the kernel itself where there is a card for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.models import attention as module
from spvit_jax.models.attention import attention, fused, fusible


def arrays(queries=11, keys=11, head_dim=8, dtype=jnp.float32):
    """Queries, keys, values, and the logarithms of the sizes of merged tokens."""
    noise = jax.random.split(jax.random.key(0), 4)
    q, k, v = (
        jax.random.normal(key, (2, tokens, 3, head_dim), dtype)
        for key, tokens in zip(noise, (queries, keys, keys), strict=False)
    )
    return (q, k, v), jnp.log(jax.random.randint(noise[3], (2, 1, 1, keys), 1, 5).astype(dtype))


def with_gradients(function, inputs, bias):
    out, pullback = jax.vjp(lambda *some: function(*some, bias), *inputs)
    return out, *pullback(jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


@pytest.fixture
def kernel(monkeypatch):
    """XLA in the kernel's place, as picky: gradients of even numbers of tokens alone."""
    seen = []

    def plain(q, k, v, bias, *, implementation, **lengths):
        assert implementation == "cudnn"
        assert bias is None or bias.shape[2:] == (q.shape[1], k.shape[1])
        seen.append((q.shape[1], k.shape[1]))
        return real(q, k, v, bias, **lengths)

    real = jax.nn.dot_product_attention
    monkeypatch.setattr(module.jax.nn, "dot_product_attention", plain)
    monkeypatch.setattr(module, "_plain", lambda q, k, v, bias: real(q, k, v, bias))
    return seen


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize(("queries", "keys"), [(11, 11), (12, 12), (9, 12)])
def test_fused_attention_and_its_gradients_are_those_of_attention(queries, keys, merged, kernel):
    inputs, bias = arrays(queries, keys)
    bias = bias if merged else None
    expected = with_gradients(module._plain, inputs, bias)
    found = with_gradients(fused, inputs, bias)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert kernel == [(queries + queries % 2, keys + keys % 2)]
    assert with_gradients(fused, inputs, bias)[0].shape == inputs[0].shape
    kernel.clear()
    fused(*inputs, bias)
    assert kernel == [(queries, keys)]  # nothing is added where there is no gradient


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"dtype": jnp.float16}, True),
        ({"dtype": jnp.float32}, False),
        ({"queries": 1}, False),
        ({"head_dim": 12}, False),
        ({"head_dim": 136}, False),
    ],
)
def test_what_the_kernel_takes(change, fits):
    (q, _, _), bias = arrays(**{"dtype": jnp.bfloat16} | change)
    assert fusible(q, None) == fusible(q, bias) == fits


def test_biases_of_each_query_are_not_fused():
    (q, _, _), _ = arrays(dtype=jnp.bfloat16)
    assert not fusible(q, jnp.zeros((1, 3, 11, 11), jnp.bfloat16))


def test_no_kernel_is_asked_for_where_there_is_none():
    (q, k, v), bias = arrays(dtype=jnp.bfloat16)
    if module._has_kernel():
        pytest.skip("there is one here")
    assert "platform_index" not in str(jax.make_jaxpr(attention)(q, k, v, bias))


@pytest.mark.skipif(not module._has_kernel(), reason="needs an NVIDIA card")
@pytest.mark.parametrize("merged", [False, True])
def test_the_kernel_itself(merged):
    inputs, bias = arrays(197, 197, 64, jnp.bfloat16)
    bias = bias if merged else None
    wide = [one.astype(jnp.float32) for one in inputs]
    found = jax.jit(lambda *some: with_gradients(attention, some, bias))(*inputs)
    expected = jax.jit(lambda *some: with_gradients(attention, some, bias))(*wide)
    for one, other in zip(found, expected, strict=True):
        error = jnp.linalg.norm(one.astype(jnp.float32) - other) / jnp.linalg.norm(other)
        assert error < 0.02
