"""Heads of fewer features: bases in which those that are left say the most.

The products of a head's queries and keys, and what its values become behind the output projection,
do not change when both sides turn by inverse bases. So what a head computes is a product of two
matrices, and least squares knows its best approximation of a rank (Eckart and Young 1936): of
queries and keys as softmax sees them, to which a shift of all keys is nothing, and of values as the
output projection weighs them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Attention

PARTS = 8  # of a head's features, of which one or more are kept
FLOOR = 1e-12  # of the largest variance: where inputs vary less, nothing is known


def levels(geometry: Geometry) -> tuple[int, ...]:
    """The numbers of features that a head is offered to keep, ascending; the last is all."""
    return tuple(-(-geometry.head_dim * part // PARTS) for part in range(1, PARTS + 1))


def dims_of(geometry: Geometry, at: tuple[int, int]) -> tuple[int, int]:
    """The features of keys and of values at these places of ``levels``."""
    offered = levels(geometry)
    return offered[at[0]], offered[at[1]]


def turnable(geometry: Geometry) -> bool:
    """Whether queries and keys can turn: norms and places know their features one by one."""
    return not (geometry.qk_norm or geometry.rotary)


class Keys(NamedTuple):
    """Second moments of each head's queries, and covariances of its keys, ``[heads, d, d]``."""

    queries: np.ndarray
    keys: np.ndarray

    def bases(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """What queries and keys turn by, ``[heads, d, rank]``: the keys' basis is orthonormal.

        Within what a head keeps, its features lie as near as they can to those of the others:
        tokens are merged by the mean of the heads' keys.
        """
        _, directions = np.linalg.eigh(self.keys.sum(0))
        common = directions[:, ::-1][:, :rank]
        both = [_bases(q, k, common) for q, k in zip(*self, strict=True)]
        queries, keys = zip(*both, strict=True)
        return np.stack(queries), np.stack(keys)


def _bases(
    queries: np.ndarray, keys: np.ndarray, common: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rank = common.shape[1]
    (root, back), (key_root, key_back) = _roots(queries), _roots(keys)
    left, sizes, right = np.linalg.svd(root @ key_root)
    basis, rest = np.linalg.qr(key_back @ right[:rank].T)
    one, _, other = np.linalg.svd(basis.T @ common)  # the nearest rotation (Schoenemann 1966)
    turn = one @ other
    return back @ (left[:, :rank] * sizes[:rank]) @ rest.T @ turn, basis @ turn


def value_bases(values: np.ndarray, out: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """What values turn by, orthonormal, and the output projection of what is left.

    Args:
      values: covariance of what enters the output projection, of each head: ``[heads, d, d]``.
      out: its kernel ``[heads, d, D]``.
      rank: features of each head to keep.

    Returns:
      ``[heads, d, rank]`` and ``[heads, rank, D]``.
    """
    bases, kernels = [], []
    for covariance, kernel in zip(values, out, strict=True):
        # Features of the output number many more than those of a head: the small side is solved.
        root, back = _roots(covariance)
        left, _, _ = np.linalg.svd(root @ kernel @ kernel.T @ root)
        best = back @ left[:, :rank] @ (left[:, :rank].T @ root @ kernel)
        _, directions = np.linalg.eigh(best @ best.T)
        basis = directions[:, ::-1][:, :rank]
        bases.append(basis)
        kernels.append(basis.T @ best)
    return np.stack(bases), np.stack(kernels)


def _roots(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The square root of a covariance and its inverse."""
    variances, axes = np.linalg.eigh(covariance)
    root = np.sqrt(np.maximum(variances, FLOOR * max(variances[-1], np.finfo(float).tiny)))
    return (axes * root) @ axes.T, (axes / root) @ axes.T


def narrow(attention: Attention, keys: int, values: int) -> None:
    """Keeps so many features of each head, by the weights alone, as if inputs were all alike.

    In a program that only finds shapes, the first ones.
    """
    heads = attention.heads
    has = attention.qk.kernel.shape[1] // 2 // heads, attention.v.kernel.shape[1] // heads
    if not isinstance(attention.v.kernel[...], jax.core.Tracer):
        if keys < has[0]:
            turn_keys(attention, _plain_keys(attention).bases(keys))
        if values < has[1]:
            into = _by_heads(np.asarray(attention.v.kernel[...], float), heads)
            turn_values(attention, into.transpose(1, 2, 0) @ into.transpose(1, 0, 2), values)
    attention.keep_dims(keys, values)


def _plain_keys(attention: Attention) -> Keys:
    kernel, bias = (np.asarray(p[...], float) for p in (attention.qk.kernel, attention.qk.bias))
    query, key = (_by_heads(half, attention.heads) for half in np.split(kernel, 2, -1))
    shift = _by_heads(np.split(bias, 2)[0], attention.heads)
    queries = query.transpose(1, 2, 0) @ query.transpose(1, 0, 2)
    queries = queries + shift[:, :, None] * shift[:, None]
    return Keys(queries, key.transpose(1, 2, 0) @ key.transpose(1, 0, 2))


def turn_keys(attention: Attention, bases: tuple[np.ndarray, np.ndarray]) -> None:
    """Turns queries and keys; behind the features that are left stand zeros."""
    for part in (attention.qk.kernel, attention.qk.bias):
        halves = np.split(np.asarray(part[...], float), 2, -1)
        turned = [_turned(half, base) for half, base in zip(halves, bases, strict=True)]
        part[...] = jnp.asarray(np.concatenate(turned, -1), part[...].dtype)


def turn_values(attention: Attention, covariance: np.ndarray, rank: int) -> np.ndarray:
    """Turns values and the output projection likewise, by the covariance of what enters that.

    Returns:
      What turns that, ``[heads * d, heads * d]``.
    """
    out = np.asarray(attention.out.kernel[...], float)
    by_heads = out.reshape(attention.heads, -1, out.shape[1])
    bases, kernels = value_bases(covariance, by_heads, rank)
    missing = by_heads.shape[1] - rank
    kernels = np.pad(kernels, ((0, 0), (0, missing), (0, 0))).reshape(out.shape)
    for part in (attention.v.kernel, attention.v.bias):
        part[...] = jnp.asarray(_turned(np.asarray(part[...], float), bases), part[...].dtype)
    attention.out.kernel[...] = jnp.asarray(kernels, attention.out.kernel[...].dtype)
    return scipy.linalg.block_diag(*padded(bases, by_heads.shape[1]))


def of_heads(covariance: np.ndarray, heads: int) -> np.ndarray:
    """Takes each head's own part of ``[heads * d, heads * d]``: ``[heads, d, d]``."""
    parts = covariance.reshape(heads, len(covariance) // heads, heads, -1)
    return np.stack([parts[h, :, h] for h in range(heads)])


def _by_heads(values: np.ndarray, heads: int) -> np.ndarray:
    return values.reshape(*values.shape[:-1], heads, -1)


def _turned(values: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """``values [..., heads * d]`` in a basis for each head, filled up with zeros."""
    heads, width = bases.shape[:2]
    turned = np.einsum("...hd,hdr->...hr", _by_heads(values, heads), bases)
    return padded(turned, width).reshape(values.shape)


def padded(values: np.ndarray, width: int) -> np.ndarray:
    """Fills up the last axis with zeros."""
    before = [(0, 0)] * (values.ndim - 1)
    return np.pad(values, [*before, (0, width - values.shape[-1])])
