"""A new operation, as a stranger would add it: an object, and its line in the table ``OPS``.

A depthwise convolution of the values, ``out(taps(v(x)))``: no queries, no keys.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.layers import cast
from spvit_jax.single_path.ops.op import Branch, Op

TAPS = 9


class Taps(nnx.Module):
    """Nine taps for each head, shared by its channels."""

    def __init__(self, heads):
        self.taps = nnx.Param(jnp.full((heads, TAPS), 1 / TAPS))

    def __call__(self, values, geometry):
        """``[batch, patches, width]``, each channel convolved with the taps of its head."""
        batch, patches, width = values.shape
        taps = jnp.repeat(cast(self.taps[...], values.dtype), geometry.head_dim, axis=0)
        out = jax.lax.conv_general_dilated(
            values.reshape(batch, *geometry.grid, width),
            taps.T.reshape(3, 3, 1, width),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=width,
        )
        return out.reshape(batch, patches, width)


class DepthwiseConv(nnx.Module):
    """The module that stands in the block once the operation is chosen."""

    def __init__(self, v, taps, out, geometry):
        self.v, self.taps, self.out, self.geometry = v, taps, out, geometry

    def __call__(self, x, train=False):
        tokens, patches = jnp.split(x, [self.geometry.prefix], axis=1)
        if self.geometry.class_only:
            return tokens
        return jnp.concatenate([tokens, self.out(self.taps(self.v(patches), self.geometry))], 1)


class Depthwise(Op):
    """A depthwise 3x3 convolution of the values."""

    name, label, colour = "depthwise", "depthwise convolution", "#5b8c5a"

    def macs(self, geometry):
        """Counts none where only the class token is read: it passes a convolution unchanged."""
        return 0 if geometry.class_only else self.published_macs(geometry)

    def published_macs(self, geometry):
        """Counts two projections and nine taps for each channel of each patch."""
        return (2 * geometry.width + TAPS) * geometry.width * geometry.patches

    def parameters(self, geometry):
        """Counts both projections, the taps and ``norm1``."""
        return (
            2 * (geometry.width + 1) * geometry.width + TAPS * geometry.heads + 2 * geometry.width
        )

    def parts(self, geometry):
        """Makes what a search trains beside the weights of attention."""
        return Taps(geometry.heads)

    def branch(self, mixer, shared, gate, heads, train):
        """Computes it in the supernet, from attention's values and output projection."""
        attention, geometry = mixer.attention, mixer.geometry
        kernel = gate * attention.out.kernel[...]
        if geometry.class_only:
            return Branch(kernel, None, None)
        values = shared.values + cast(attention.v.bias[...], shared.values.dtype)
        patches = mixer.parts[self.name](values[:, geometry.prefix :], geometry)
        return Branch(kernel, patches, None)

    def pruned(self, mixer):
        """Takes what is left of the supernet's mixer: plain layers, so nothing is to be folded."""
        attention = mixer.attention
        return DepthwiseConv(attention.v, mixer.parts[self.name], attention.out, mixer.geometry)
