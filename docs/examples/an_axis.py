"""A new axis: heads can become thinner by gates, losing features of queries, keys and values.

Scores choose the like without gates, and by bases rather than feature by feature: ``dims``.

One logit per feature of a head; the gates nest in those of the heads. What a head costs is then
what its features cost, so the axis of the heads gives up that part of its price.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.models.layers import Attention
from spvit_jax.single_path.axes import Axis, HeadsAxis


class HeadWidthAxis(Axis):
    """Features of each head of attention; every head keeps the same ones."""

    name = key = "head_width"

    def gates(self, geometry, ops):
        """Counts the logits: one per feature of a head."""
        return geometry.head_dim

    def nest(self, own, gates):
        """Opens a feature in those heads that are open: ``[heads * head_dim]`` gates."""
        return jnp.outer(gates["heads"], own).ravel()

    def macs(self, geometry, ops):
        """Counts a head's multiply-accumulates per feature: all of them are linear in these."""
        return np.repeat(HeadsAxis().macs(geometry, ops) // geometry.head_dim, geometry.head_dim)

    def published_macs(self, geometry, ops):
        """Counts the same by the paper's formula."""
        of_heads = HeadsAxis().published_macs(geometry, ops)
        return np.repeat(of_heads // geometry.head_dim, geometry.head_dim)

    def parameters(self, geometry, ops):
        """Counts three columns with their biases, and a row of the output projection."""
        return np.full(geometry.width, 4 * geometry.width + 3)

    def prune(self, block, kept):
        """Cuts attention's projections to these features of each head; ``kept`` are indices."""
        attention, kept = block.mixer, tuple(kept)
        if not isinstance(attention, Attention):
            return ()
        each = attention.v.kernel.shape[1] // attention.heads
        rows = np.arange(attention.heads * each).reshape(-1, each)[:, list(kept)].ravel()
        # Attention divides its logits by the root of the features it has: fewer than before.
        scale = np.repeat([math.sqrt(len(kept) / each), 1.0], len(rows)).astype("f4")
        both = np.concatenate([rows, attention.heads * each + rows])
        for projection, columns, by in ((attention.qk, both, scale), (attention.v, rows, 1.0)):
            projection.kernel = nnx.Param(projection.kernel[...][:, columns] * by)
            projection.bias = nnx.Param(projection.bias[...][columns] * by)
        attention.out.kernel = nnx.Param(attention.out.kernel[...][rows])
        return kept


class WholeHeadsAxis(HeadsAxis):
    """Heads, less the price of their features."""

    def macs(self, geometry, ops):
        """Counts what a head costs beside its features: nothing."""
        return super().macs(geometry, ops) - _per_head(HeadWidthAxis().macs, geometry, ops)

    def published_macs(self, geometry, ops):
        """Counts the same by the paper's formula."""
        features = _per_head(HeadWidthAxis().published_macs, geometry, ops)
        return super().published_macs(geometry, ops) - features

    def parameters(self, geometry, ops):
        """Counts what a head has beside its features: in a Swin, its position biases."""
        features = _per_head(HeadWidthAxis().parameters, geometry, ops)
        return super().parameters(geometry, ops) - features


def _per_head(price, geometry, ops):
    return price(geometry, ops).reshape(geometry.heads, -1).sum(1)
