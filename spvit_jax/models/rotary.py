"""Rotary position embedding over a map (RoFormer's, as DINOv3 and EVA-02 have it in two axes).

Queries and keys of patches are turned by angles of their place: a quarter of a head's pairs of
features by each axis' angles, pair ``j`` being features ``j`` and ``j + head_dim / 2``. A patch
that stands for several is at their mean place; class tokens and registers stay as they are.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spvit_jax.models.tokens import Tokens

Array = jax.Array


class Kind(NamedTuple):
    """How places become angles: ``coordinate * base ** -(4 k / head_dim)`` for k = 0, 1, …"""

    base: float  # the usual one
    coordinates: Callable[[int, int], np.ndarray]  # of a side of so many, trained on so many


def _centred(side: int, trained: int) -> np.ndarray:
    return 2 * math.pi * ((2 * np.arange(side) + 1) / side - 1)


def _counted(side: int, trained: int) -> np.ndarray:
    return np.arange(side) / side * trained


KINDS = {"dinov3": Kind(100.0, _centred), "eva": Kind(10_000.0, _counted)}


class Rotary(NamedTuple):
    """A rotary embedding of one map; hashable, without weights.

    Attributes:
      kind: one of ``KINDS``.
      base: of the geometric series of wavelengths.
      grid: rows and columns of patches.
      trained: a side of the map that "eva" was trained on.
      prefix: tokens in front that are not turned.
    """

    kind: str
    base: float
    grid: tuple[int, int]
    trained: int
    prefix: int

    def places(self) -> np.ndarray:
        """Computes the coordinates of every patch, ``[patches, 2]``."""
        kind = KINDS[self.kind]
        lines = (kind.coordinates(side, self.trained) for side in self.grid)
        return np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)

    def bands(self, head_dim: int) -> np.ndarray:
        """Computes what a coordinate is multiplied by for each of its angles."""
        return self.base ** -(np.arange(head_dim // 4) / (head_dim // 4))

    def angles(self, tokens: Tokens | None, head_dim: int) -> Array:
        """Computes angles ``[batch or 1, patches, head_dim / 2]`` of tokens, merged or not."""
        where = jnp.asarray(self.places()[None], float)
        if tokens is not None and tokens.sources is not None:
            batch, patches = tokens.sources.shape[0], math.prod(self.grid)
            where = jnp.pad(where, ((0, 0), (self.prefix, 0), (0, 0)))
            where = jnp.broadcast_to(where, (batch, self.prefix + patches, 2))
            where = tokens.means(where)[:, self.prefix :]
        bands = jnp.asarray(self.bands(head_dim), where.dtype)
        return (where[..., None] * bands).reshape(*where.shape[:2], -1)

    def turn(self, x: Array, angles: Array) -> Array:
        """Turns the patches among ``x [batch, tokens, heads, head_dim]``, class tokens in front."""
        first, patches = x[:, : self.prefix], x[:, self.prefix :]
        if not patches.shape[1]:
            return x
        cos, sin = (f(angles)[:, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
        one, other = jnp.split(patches, 2, axis=-1)
        turned = jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
        return jnp.concatenate([first, turned], axis=1)
