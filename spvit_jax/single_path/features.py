"""How far a model's features are from the dense one's: what judges candidates, without labels."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spvit_jax.models import Tokens
from spvit_jax.single_path.calibration import Calibration, Placed, bare

Array = jax.Array


def feature_error(model: Any, dense: Any, images: Calibration, patches: float = 0.0) -> float:
    """Measures how far what the heads see is from what the dense model's see.

    The squared difference over the variance of the dense model's features, each summed over them.

    Args:
      model: any form of the dense one.
      dense: what is compared with.
      images: without labels.
      patches: the share of the patches' features, unmerged, in the error; both models' patches have
        to leave the last block then.
    """
    mine, theirs = images.place(bare(model)), images.place(bare(dense))

    def last(placed: Placed) -> Iterable[Tokens]:
        for batch, _ in images.batches:
            yield placed(_last, batch, static=(images.normalise,))

    return error((mine, last(mine)), (theirs, last(theirs)), images, patches)


Ending = tuple[Placed, Iterable[Tokens]]  # a model, and what left its last block for each batch


def error(mine: Ending, theirs: Ending, images: Calibration, patches: float) -> float:
    """``feature_error`` of what left the last blocks."""
    weights = {_heads: 1 - patches, _patches: patches}
    sums: dict[Callable[..., Any], list[Any]] = {
        kind: [] for kind, weight in weights.items() if weight
    }
    for (_, mask), one, other in zip(images.batches, mine[1], theirs[1], strict=True):
        for kind, rows in sums.items():
            new = jax.device_get(_sums(mine[0](kind, one), theirs[0](kind, other), mask))
            rows.append([np.asarray(part, float) for part in new])
    return sum(weights[kind] * _relative(rows) for kind, rows in sums.items())


def _last(model: Any, images: Array, normalise: Callable[[Array], Array]) -> Tokens:
    return model.stream(normalise(images))[-1]


def _heads(model: Any, tokens: Tokens) -> Array:
    return model.features(tokens)


def _patches(model: Any, tokens: Tokens) -> Array:
    return model.patch_features(tokens)


@jax.jit
def _sums(mine: Array, target: Array, mask: Array) -> tuple[Array, ...]:
    """Of squared differences, of squares, of rows ``[batch, n, D]``, and how many there are."""
    weight = mask[:, None, None].astype(target.dtype)
    return (
        (weight * jnp.square(mine - target)).sum(),
        (weight * jnp.square(target)).sum(),
        (weight * target).sum((0, 1)),
        weight.sum() * target.shape[1],
    )


def _relative(rows: list[Any]) -> float:
    off, power, total, count = (sum(column) for column in zip(*rows, strict=True))
    variance = power - (total**2).sum() / count
    return float(off / max(variance, np.finfo(float).tiny))
