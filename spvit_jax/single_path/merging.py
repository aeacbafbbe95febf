"""What is left for every block where tokens are merged on the way."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from spvit_jax.models import Geometry

Merges = tuple[int, ...]  # the tokens that each block merges away; (): none


def merged(spec: Any, merges: Sequence[int]) -> tuple[Geometry, ...]:
    """What the blocks of the dense model of ``spec`` work on once tokens are merged."""
    geometries, away = [], 0
    for block, count in zip(spec.blocks, merges or [0] * len(spec.blocks), strict=True):
        geometries.append(dataclasses.replace(block, merged=away, merges=count))
        away += count
    return tuple(geometries)
