"""Convolutions that are slices of an attention layer's weights (paper, section 3.1).

Each of the nine taps of a 3x3 kernel is a convex mixture of the heads' projections; the 1x1
kernel is its centre tap. Taps are row-major: tap ``3 * (dy + 1) + (dx + 1)`` reads the patch
``dy`` below and ``dx`` to the right.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.layers import Array, Attention, BatchNorm, Dense, Geometry, cast, dense

TAPS = 9
CENTRE = 4
KERNEL_SIZES = {"conv1x1": 1, "conv3x3": 3}


def head_mixture(head_logits: Array, temperature: float) -> Array:
    """pi ``[heads, 9]``: for each tap, the heads' shares, which sum to 1."""
    return jax.nn.softmax(head_logits / temperature, axis=0)


def tap_inputs(v: Dense, mixture: Array) -> tuple[Array, Array]:
    """Kernels ``[D, taps, d]`` and biases ``[taps, d]`` that the value projection contains."""
    kernel, bias = v.kernel[...], v.bias[...]
    heads = mixture.shape[0]
    split = kernel.reshape(kernel.shape[0], heads, -1)
    return (
        jnp.einsum("ihd,ht->itd", split, mixture),
        jnp.einsum("hd,ht->td", bias.reshape(heads, -1), mixture),
    )


def tap_outputs(out: Dense, mixture: Array) -> Array:
    """Kernels ``[taps, d, D]`` that the output projection contains."""
    kernel = out.kernel[...]
    heads = mixture.shape[0]
    return jnp.einsum("hdo,ht->tdo", kernel.reshape(heads, -1, kernel.shape[-1]), mixture)


def sum_shifted(taps: Array) -> Array:
    """The 3x3 convolution of nine already projected maps: ``[b, S, S, 9, d] -> [b, S, S, d]``.

    Tap by tap, the map is shifted by the tap's offset, with zeros entering at the border.
    """
    grid = taps.shape[1]
    padded = jnp.pad(taps, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))
    return sum(
        padded[:, t // 3 : t // 3 + grid, t % 3 : t % 3 + grid, t] for t in range(taps.shape[3])
    )


def conv3x3(x: Array, kernel: Array, grid: int) -> Array:
    """``x [b, S*S, D]`` convolved with ``kernel [D, 9, d]``, zero padding 1: ``[b, S*S, d]``.

    One matrix product for all taps, then shifts: on CPU much faster than XLA's convolution,
    above all its gradient, and as many MACs.
    """
    taps = dense(x, kernel.reshape(kernel.shape[0], -1))
    return sum_shifted(taps.reshape(x.shape[0], grid, grid, TAPS, -1)).reshape(
        *x.shape[:2], kernel.shape[-1]
    )


class _Conv(nnx.Module):
    """What both forms of a convolution do with class tokens: hand them through."""

    geometry: Geometry

    def __call__(self, x: Array, train: bool = False) -> Array:
        """``x [batch, prefix + S*S, D]``, normalised; the class tokens come back unchanged."""
        prefix = self.geometry.prefix
        return jnp.concatenate([x[:, :prefix], self.convolve(x[:, prefix:], train)], axis=1)

    def convolve(self, x: Array, train: bool) -> Array:
        """The convolution branch on patch tokens ``[batch, S*S, D]``."""
        raise NotImplementedError


class SharedConv(_Conv):
    """A convolution in shared form: the attention layer's own weights, mixed at every step."""

    def __init__(
        self,
        attention: Attention,
        head_logits: Array,
        norm: BatchNorm,
        size: int,
        geometry: Geometry,
        temperature: float,
    ):
        self.v = attention.v
        self.out = attention.out
        self.head_logits = nnx.Param(head_logits)
        self.norm = norm
        self.size = size
        self.geometry = geometry
        self.temperature = temperature

    def kernels(self) -> tuple[Array, Array, Array, Array]:
        """Input kernel ``[D, taps, d]`` and bias ``[d]``, output kernel ``[d, D]`` and bias."""
        mixture = head_mixture(self.head_logits[...], self.temperature)
        if self.size == 1:
            mixture = mixture[:, CENTRE : CENTRE + 1]
        kernel, bias = tap_inputs(self.v, mixture)
        return kernel, bias.sum(0), tap_outputs(self.out, mixture).sum(0), self.out.bias[...]

    def convolve(self, x: Array, train: bool) -> Array:
        dtype = self.v.dtype
        kernel, bias, out, out_bias = (cast(a, dtype) for a in self.kernels())
        y = _project(cast(x, dtype), kernel, self.geometry.grid) + bias
        return dense(jax.nn.relu(self.norm(y, train)), out, out_bias)


class FoldedConv(_Conv):
    """The same function as plain layers: convolution, batch norm (or none), ReLU, 1x1."""

    def __init__(self, kernel: Array, bias: Array, norm: BatchNorm | None, out: Dense, geometry):
        self.kernel = nnx.Param(kernel)  # [D, taps, d]
        self.bias = nnx.Param(bias)  # [d]
        self.norm = norm
        self.out = out
        self.geometry = geometry

    def convolve(self, x: Array, train: bool) -> Array:
        dtype = self.out.dtype
        kernel, bias = cast(self.kernel[...], dtype), cast(self.bias[...], dtype)
        y = _project(cast(x, dtype), kernel, self.geometry.grid) + bias
        if self.norm is not None:
            y = self.norm(y, train)
        return self.out(jax.nn.relu(y))


def _project(x: Array, kernel: Array, grid: int) -> Array:
    return conv3x3(x, kernel, grid) if kernel.shape[1] == TAPS else dense(x, kernel[:, 0])
