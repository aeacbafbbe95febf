"""Binary gates and their straight-through gradients (paper, sections 3.2 and 3.3).

Gate logits and gates are the same pytree, one ``BlockGates`` a block. Gates are sampled outside
the network and passed in.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from spvit_jax.models import Geometry

Array = jax.Array

INITIAL_LOGIT = 1.5  # as released: every gate starts open with probability 0.82


class BlockGates(NamedTuple):
    """The gates, gate logits or uniforms of one block."""

    kernel: Any  # [3]: at least conv1x1, at least conv3x3, MSA
    ffn: Any  # [hidden]: each FFN unit


Gates = tuple[BlockGates, ...]


def initial_logits(blocks: tuple[Geometry, ...]) -> Gates:
    """The logits a search starts from."""

    def full(size: int) -> Array:  # an explicit dtype: a weak one would compile the step again
        return jnp.full(size, INITIAL_LOGIT, float)

    return tuple(BlockGates(full(3), full(b.hidden)) for b in blocks)


def sample(logits: Gates, key: Array | None = None, *, uniforms: Gates | None = None) -> Gates:
    """Gates of one training step: exactly 0 or 1, with the gradient of their relaxation.

    Args:
      logits: gate logits.
      key: draws the uniforms; or
      uniforms: the numbers in (0, 1) themselves, shaped as ``logits``.
    """
    flat, unravel = ravel_pytree(logits)
    if uniforms is not None:
        noise = ravel_pytree(uniforms)[0]
    elif key is not None:
        noise = jax.random.uniform(key, flat.shape, flat.dtype)
    else:
        raise ValueError("give a key or the uniforms to sample gates with")
    eps = jnp.finfo(flat.dtype).eps
    limit = jnp.log1p(-eps) - jnp.log(eps)  # the logit of 1 - eps
    noise = jnp.clip(noise, eps, 1 - eps)
    noisy = jnp.log(noise) - jnp.log1p(-noise) + jnp.clip(flat, -limit, limit)
    gates = unravel(_straight_through(noisy > 0, jax.nn.sigmoid(noisy)))
    return tuple(BlockGates(_slow_down(jnp.cumprod(g.kernel)), g.ffn) for g in gates)


def decide(logits: Gates) -> Gates:
    """The gates of evaluation: 1 where the probability is above a half, kernel gates nested."""
    return tuple(
        BlockGates(
            jnp.cumprod(jnp.where(g.kernel > 0, 1.0, 0.0)).astype(g.kernel.dtype),
            jnp.where(g.ffn > 0, 1.0, 0.0).astype(g.ffn.dtype),
        )
        for g in logits
    )


def budget_gates(logits: Gates) -> Gates:
    """``decide`` with the gradient the budget loss uses, that of sigmoid(probability - 1/2)."""
    flat, unravel = ravel_pytree(logits)
    soft = jax.nn.sigmoid(jax.nn.sigmoid(flat) - 0.5)
    gates = unravel(_straight_through(flat > 0, soft))
    return tuple(BlockGates(jnp.cumprod(g.kernel), g.ffn) for g in gates)


def _straight_through(hard: Array, soft: Array) -> Array:
    """``hard`` as a number, exactly, with the gradient of ``soft``."""
    return hard.astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))


def _slow_down(gates: Array) -> Array:
    """Stops the gradient of a kernel gate where the next dearer one is on as well.

    The cheaper operation is then not what the block computes, and its gate should not be
    rewarded for it (paper, section 3.3).
    """
    dearer = jnp.concatenate([gates[1:], jnp.zeros_like(gates[:1])])
    return jnp.where(dearer > 0, jax.lax.stop_gradient(gates), gates)
