"""What heads of fewer features would cost in error."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from spvit_jax.models import Geometry, Tokens, token_weights
from spvit_jax.single_path.calibration import (
    Calibration,
    enter,
    mean_square,
    starts_stage,
)
from spvit_jax.single_path.eliminate import DAMPING
from spvit_jax.single_path.moments import solve
from spvit_jax.single_path.narrow import Keys, levels, of_heads, padded, turnable, value_bases

Array = jax.Array
TRIED = 2  # batches on which narrower queries and keys are tried


class KeySums(NamedTuple):
    """Sums over tokens of products of each head's features, ``[heads, d, d]``."""

    queries: Array
    keys: Array  # about their mean in each image: softmax does not see it

    def on_host(self) -> Keys:
        """The same in float64."""
        return Keys(*(np.asarray(part, np.float64) for part in jax.device_get(tuple(self))))


def key_moments(queries: Array, keys: Array, heads: int, mask: Array, read: int) -> KeySums:
    """Sums up projected queries ``[batch, read, heads * d]`` and keys ``[batch, tokens, …]``.

    The first ``read`` tokens are those that heads read: their queries count as in a repair.
    """
    q, k = (a.reshape(*a.shape[:2], heads, -1) for a in (queries, keys))
    wide = jnp.promote_types(q.dtype, jnp.float32)
    q, k = q.astype(wide), k.astype(wide)
    k = k - k.mean(1, keepdims=True)
    weight = mask.astype(wide)[:, None, None, None]
    times = token_weights(q.shape[1], read)[:, None, None]
    pairs = (weight * times * q, q), (weight * k, k)
    return KeySums(*(jnp.einsum("bthi,bthj->hij", *pair) for pair in pairs))


def key_errors(model: Any, calibration: Calibration, sums: list[KeySums]) -> list[np.ndarray]:
    """Measures the mean squared error of each block's branch with fewer features of keys.

    Softmax is not linear, so it is tried, on the first images, without a fit behind it.

    Args:
      model: dense.
      calibration: images.
      sums: of each block, over all of them.

    Returns:
      An error for each of ``narrow.levels``, of each block; none where keys cannot turn.
    """
    bases = [_bases(one, geometry) for one, geometry in zip(sums, model.spec.blocks, strict=True)]
    placed, whole = [calibration.place(b) for b in model.blocks], calibration.place(model)
    errors, images = [np.zeros(0)] * len(placed), 0.0
    batches = calibration.batches[:TRIED]
    for (_, mask), tokens in zip(batches, calibration.embed(model), strict=False):
        share = float(mask.sum()) / max(images + float(mask.sum()), 1)
        images += float(mask.sum())
        for i in range(len(placed)):
            if starts_stage(model.spec, i):
                tokens = whole(enter, tokens, static=(i,))
            new, tokens = placed[i](_tried, tokens, mask, bases[i])
            new = np.asarray(new, float)
            errors[i] = errors[i] + share * (new - errors[i]) if errors[i].size else new
    return [np.append(one, 0.0) if one.size else one for one in errors]


def _bases(sums: KeySums, geometry: Geometry) -> tuple[np.ndarray, np.ndarray] | None:
    """Of each level but the last, filled up with zeros: ``[levels, heads, d, d]``."""
    if not turnable(geometry):
        return None
    of_levels = [sums.on_host().bases(rank) for rank in levels(geometry)[:-1]]
    queries, keys = (
        [padded(b, geometry.head_dim) for b in one] for one in zip(*of_levels, strict=True)
    )
    return np.stack(queries).astype(np.float32), np.stack(keys).astype(np.float32)


def _tried(
    block: Any, tokens: Tokens, mask: Array, bases: tuple[Array, Array] | None
) -> tuple[Array, Tokens]:
    """The error with each of the bases, and what leaves the dense block."""
    mixer, y = block.mixer, block.norm1(tokens.x)
    after = block.feed(block.mix(tokens))
    if bases is None:
        return jnp.zeros(0), after
    queries, keys = mixer.queries_and_keys(y)
    values = mixer.v(y)
    branch = mixer.out(mixer.attend(queries, keys, values))

    def turned(x: Array, base: Array) -> Array:
        by_heads = x.reshape(*x.shape[:2], *base.shape[:2])
        return jnp.einsum("bthd,hdr->bthr", by_heads, base).reshape(x.shape)

    def error(pair: tuple[Array, Array]) -> Array:
        q, k = turned(queries, pair[0]), turned(keys, pair[1])
        return mean_square(mixer.out(mixer.attend(q, k, values)) - branch, mask)

    return jax.lax.map(error, bases), after


def value_errors(covariance: np.ndarray, out: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Solves for the mean squared error of the branch with fewer features of values.

    Args:
      covariance: of what enters the output projection, ``[heads * d, heads * d]``.
      out: its kernel ``[heads * d, D]``, which is fitted anew.
      geometry: of the block.

    Returns:
      An error for each of ``narrow.levels``.
    """
    heads, errors = geometry.heads, []
    own, kernels = of_heads(covariance, heads), out.reshape(heads, geometry.head_dim, -1)
    for rank in levels(geometry)[:-1]:
        through = scipy.linalg.block_diag(*value_bases(own, kernels, rank)[0])
        gram, cross = through.T @ covariance @ through, through.T @ covariance @ out
        missed = out - through @ solve(gram, cross, DAMPING)
        errors.append(max(float((missed * (covariance @ missed)).sum()), 0.0))
    return np.array([*errors, 0.0])
