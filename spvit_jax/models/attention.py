"""Softmax attention: XLA's, and on NVIDIA cards cuDNN's, which keeps no logits in memory."""

import math
from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

_QUERIES = 8  # fewer are not worth a kernel of their own
_HEAD_DIM = 128  # the largest that every such card takes
_CAPABILITY = 8.0  # of the oldest card with the kernel


def attention(q: Array, k: Array, v: Array, bias: Array | None = None) -> Array:
    """Exact softmax attention over ``[batch, tokens, heads, head_dim]``.

    Values may have another ``head_dim``. Then, and in float64, where ``jax.nn``'s would still take
    the softmax in float32, it is written out.

    Args:
      bias: added to the logits, broadcast to ``[batch, heads, queries, keys]``.
    """
    if q.dtype != jnp.float64 and q.shape[3] == v.shape[3]:
        if fusible(q, bias) and _has_kernel():
            return jax.lax.platform_dependent(q, k, v, bias, cuda=fused, default=_plain)
        return _plain(q, k, v, bias)
    wide = jnp.promote_types(q.dtype, jnp.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=wide)
    logits = logits / math.sqrt(q.shape[-1])
    if bias is not None:
        logits = logits + bias
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits).astype(v.dtype), v)


def _plain(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    return jax.nn.dot_product_attention(q, k, v, bias)


def fusible(q: Array, bias: Array | None) -> bool:
    """Whether the fused kernel takes these queries; of biases it does those of merged tokens."""
    return (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[1] >= _QUERIES
        and q.shape[3] % 8 == 0
        and q.shape[3] <= _HEAD_DIM
        and (bias is None or bias.shape[1:3] == (1, 1))
    )


def _has_kernel() -> bool:
    """Whether JAX's own backend is an NVIDIA card that is new enough."""
    if jax.default_backend() != "gpu":
        return False
    capability = getattr(jax.local_devices(backend="gpu")[0], "compute_capability", "")
    return capability.replace(".", "", 1).isdecimal() and float(capability) >= _CAPABILITY


@jax.custom_vjp
def fused(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """Runs cuDNN's kernel; its gradient's takes even numbers of tokens, and gets them."""
    return _kernel(q, k, v, bias)


def _forward(q: Array, k: Array, v: Array, bias: Array | None) -> tuple[Array, Any]:
    return jax.vjp(_evened, q, k, v, bias)


def _backward(pullback: Any, gradient: Array) -> tuple[Array, ...]:
    return pullback(gradient)


fused.defvjp(_forward, _backward)


def _evened(q: Array, k: Array, v: Array, bias: Array | None) -> Array:
    """``_kernel`` of one more query or key where their number is odd, which nobody attends to."""
    odd = k.shape[1] % 2
    if bias is not None and odd:
        outside = jnp.full((*bias.shape[:3], 1), jnp.finfo(q.dtype).min / 2, bias.dtype)
        bias = jnp.concatenate([bias, outside], axis=-1)
    lengths = None
    if odd and bias is None:
        lengths = jnp.full(k.shape[0], k.shape[1], jnp.int32)
    return _kernel(_even(q), _even(k), _even(v), bias, lengths)[:, : q.shape[1]]


def _even(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


def _kernel(
    q: Array, k: Array, v: Array, bias: Array | None, lengths: Array | None = None
) -> Array:
    if bias is not None:
        shape = (*bias.shape[:2], q.shape[1], k.shape[1])
        bias = jnp.broadcast_to(bias.astype(q.dtype), shape)
    return jax.nn.dot_product_attention(
        q, k, v, bias, key_value_seq_lengths=lengths, implementation="cudnn"
    )
