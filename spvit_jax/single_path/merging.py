"""What is left for every block where tokens are merged on the way, and heads are narrower."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from spvit_jax.models import Geometry

Merges = tuple[int, ...]  # the tokens that each block merges away; (): none
Dims = tuple[tuple[int, ...], ...]  # of each block: features of a head's keys and of its values


def merged(spec: Any, merges: Sequence[int], dims: Dims = ()) -> tuple[Geometry, ...]:
    """What the blocks of the dense model of ``spec`` work on once tokens are merged.

    Where ``dims`` are given, heads have as many features.
    """
    geometries, away, depth = [], 0, len(spec.blocks)
    rows = zip(spec.blocks, merges or [0] * depth, dims or [()] * depth, strict=True)
    for block, count, features in rows:
        keys, values = features or (0, 0)
        new = {"merged": away, "merges": count, "keys": keys, "values": values}
        geometries.append(dataclasses.replace(block, **new))
        away += count
    return tuple(geometries)
