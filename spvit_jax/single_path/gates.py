"""Binary gates and their straight-through gradients (paper, sections 3.2 and 3.3).

Gate logits and gates are pytrees alike, for each block a dict by axis: logits of the axes that a
``Space`` puts under gates, gates of all of them, nested, one per FFN unit. Gates are
sampled outside the network and passed in.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from spvit_jax.single_path.axes import AXES, GATED
from spvit_jax.single_path.space import Space

Array = jax.Array
Gates = tuple[dict[str, Any], ...]

INITIAL_LOGIT = 1.5  # as released: every gate starts open with probability 0.82


def initial_logits(space: Space) -> Gates:
    """Makes the logits a search starts from."""

    def full(size: int) -> Array:  # an explicit dtype: a weak one would compile the step again
        return jnp.full(size, INITIAL_LOGIT, float)

    return tuple(
        {axis: full(space.gates(axis, i)) for axis in space.gated} for i in range(len(space.blocks))
    )


def sample(
    space: Space, logits: Gates, key: Array | None = None, *, uniforms: Gates | None = None
) -> Gates:
    """Draws the gates of one training step: exactly 0 or 1, with the gradient of their relaxation.

    Args:
      space: whose gates they are.
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
    gates = nested(space, unravel(_straight_through(noisy > 0, jax.nn.sigmoid(noisy))))
    return tuple({**block, "op": _slow_down(block["op"])} for block in gates)


def decide(space: Space, logits: Gates) -> Gates:
    """Opens the gates of a probability above a half: those of evaluation."""
    hard = _by_axis(logits, lambda axis, x: jnp.where(AXES[axis].hard(x), 1.0, 0.0).astype(x.dtype))
    return nested(space, hard)


def budget_gates(space: Space, logits: Gates) -> Gates:
    """``decide`` with the gradient the penalty uses, that of sigmoid(probability - 1/2)."""

    def decision(axis: str, x: Array) -> Array:
        soft = jax.nn.sigmoid(jax.nn.sigmoid(x) - 0.5)
        return _straight_through(AXES[axis].hard(x), soft)

    return nested(space, _by_axis(logits, decision))


def _by_axis(logits: Gates, function: Any) -> Gates:
    return tuple({axis: function(axis, x) for axis, x in block.items()} for block in logits)


def nested(space: Space, own: Gates) -> Gates:
    """The gates of every axis: an ungated one is open, inner gates close with those around them."""
    gates = []
    for i, (block, geometry) in enumerate(zip(own, space.blocks, strict=True)):
        block_gates: dict[str, Array] = {}
        dtype = jnp.result_type(*block.values())
        for name, axis in GATED.items():
            if name in block:
                mine = space.spread(name, i, block[name])
            else:
                mine = jnp.ones(axis.gates(geometry, space.ops), dtype)
            block_gates[name] = axis.nest(mine, block_gates)
        gates.append(block_gates)
    return tuple(gates)


def _straight_through(hard: Array, soft: Array) -> Array:
    """``hard`` as a number, exactly, with the gradient of ``soft``."""
    return hard.astype(soft.dtype) + (soft - jax.lax.stop_gradient(soft))


def _slow_down(gates: Array) -> Array:
    """Stops the gradient of an operation's gate where the next dearer one is on as well.

    The cheaper operation is then not what the block computes, and its gate should not be
    rewarded for it (paper, section 3.3).
    """
    dearer = jnp.concatenate([gates[1:], jnp.zeros_like(gates[:1])])
    return jnp.where(dearer > 0, jax.lax.stop_gradient(gates), gates)
