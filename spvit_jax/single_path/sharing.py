"""Convolutions that are slices of an attention layer's weights (paper, section 3.1).

Each of the nine taps of a 3x3 kernel is a convex mixture of the heads' projections; the 1x1
kernel is its centre tap. Taps are row-major: tap ``3 * (dy + 1) + (dx + 1)`` reads the patch
``dy`` below and ``dx`` to the right.
"""

from collections.abc import Iterable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spvit_jax.models import SwinSpec, ViTSpec
from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Array, Attention, BatchNorm, Dense, cast, dense

TAPS = 9
CENTRE = 4
TEMPERATURES = {ViTSpec: 0.01, SwinSpec: 100.0}  # alpha, as released for DeiT and for Swin


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def head_mixture(head_logits: Array, temperature: float) -> Array:
    """pi ``[heads, 9]``: for each tap, the heads' shares, which sum to 1.

    A small temperature magnifies rounding, so the largest logit is taken off before the division
    and the derivative is a sum of differences. Where one head has nearly all of a tap, softmax's
    own derivative is 100 times less exact in float32.
    """
    return jax.nn.softmax((head_logits - head_logits.max(0)) / temperature, axis=0)


def _mixture_forward(head_logits: Array, temperature: float) -> tuple[Array, Array]:
    mixture = head_mixture(head_logits, temperature)
    return mixture, mixture


def _mixture_backward(temperature: float, mixture: Array, gradient: Array) -> tuple[Array]:
    differences = gradient[:, None] - gradient  # [heads, heads, 9]
    return ((mixture[:, None] * mixture * differences).sum(1) / temperature,)


head_mixture.defvjp(_mixture_forward, _mixture_backward)


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
    """The kernel ``[d, D]`` that the output projection contains, summed over the taps."""
    kernel = out.kernel[...]
    split = kernel.reshape(mixture.shape[0], -1, kernel.shape[-1])
    return jnp.einsum("hdo,h->do", split, mixture.sum(1))


def own_taps(mixture: Array, size: int) -> Array:
    """Those of the mixture's taps that a kernel of this size has: all nine, or the centre's."""
    return mixture[:, CENTRE : CENTRE + 1] if size == 1 else mixture


def unlearnt(bias: Array, train: bool) -> Array:
    """A bias in front of a batch norm, which takes it off again in training: its gradient is zero.

    Computed it would be rounding, and Adam makes steps of any size of that.
    """
    return jax.lax.stop_gradient(bias) if train else bias


def _sum(maps: Iterable[Array]) -> Array:
    return reduce(jnp.add, maps)


def _shifted(x: Array, tap: int) -> Array:
    """The map ``x [b, rows, columns, ...]`` that ``tap`` reads: zeros enter at the border."""
    down, right = tap // 3, tap % 3
    padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1)] + [(0, 0)] * (x.ndim - 3))
    return padded[:, down : down + x.shape[1], right : right + x.shape[2]]


def windows_of(x: Array, grid: tuple[int, int], size: int) -> Array:
    """What a convolution of ``size x size`` taps reads at each place of ``x [b, patches, D]``.

    ``[b, patches, D * taps]``, in the order of a kernel ``[D, taps, d]``.
    """
    if size == 1:
        return x
    maps = x.reshape(x.shape[0], *grid, -1)
    shifted = jnp.stack([_shifted(maps, tap) for tap in range(TAPS)], axis=-1)
    return shifted.reshape(*x.shape[:2], -1)


@jax.custom_vjp
def mix_values(values: Array, mixture: Array) -> Array:
    """A convolution of already projected values, bias left out: ``[b, rows, columns, d]``.

    Mixing the heads' values and shifting them is the same as convolving with the mixed kernels.
    Written as multiply-adds with a derivative of its own: XLA's for the equivalent einsum
    transposes activations, which is slow on CPU.

    Args:
      values: ``[b, rows, columns, D]``, the value projection of the patch tokens.
      mixture: ``[heads, taps]``, of one tap or nine.
    """
    rows = jnp.repeat(mixture.T, values.shape[-1] // mixture.shape[0], axis=1)  # [taps, D]
    if len(rows) == 1:
        mixed = values * rows[0]
    else:
        mixed = _sum(_shifted(values, tap) * rows[tap] for tap in range(TAPS))
    return _sum(jnp.split(mixed, mixture.shape[0], axis=-1))


def _mix_forward(values: Array, mixture: Array) -> tuple[Array, tuple[Any, ...]]:
    return mix_values(values, mixture), (values, mixture)


def _mix_backward(saved: tuple[Any, ...], gradient: Array) -> tuple[Array, Array]:
    values, mixture = saved
    heads, taps = mixture.shape
    maps = [gradient]
    if taps == TAPS:
        maps = [_shifted(gradient, TAPS - 1 - tap) for tap in range(TAPS)]  # the transposed shifts
    by_head = [_sum(share * one for share, one in zip(row, maps, strict=True)) for row in mixture]
    split = values.reshape(-1, heads, gradient.shape[-1])
    wide = jnp.promote_types(mixture.dtype, jnp.float32)
    shares = [
        (split * one.reshape(-1, 1, gradient.shape[-1])).sum(0, dtype=wide).sum(-1) for one in maps
    ]
    return jnp.concatenate(by_head, -1), jnp.stack(shares, 1).astype(mixture.dtype)


mix_values.defvjp(_mix_forward, _mix_backward)


@jax.custom_vjp
def sum_shifted(taps: Array) -> Array:
    """A 3x3 convolution's nine projected maps, each shifted, summed: ``[b, rows, columns, 9, d]``
    to ``[b, rows, columns, d]``.
    """
    return _sum(_shifted(taps[:, :, :, tap], tap) for tap in range(TAPS))


def _sum_forward(taps: Array) -> tuple[Array, None]:
    return sum_shifted(taps), None


def _sum_backward(_: None, gradient: Array) -> tuple[Array]:
    return (jnp.stack([_shifted(gradient, TAPS - 1 - tap) for tap in range(TAPS)], axis=3),)


sum_shifted.defvjp(_sum_forward, _sum_backward)


def conv3x3(x: Array, kernel: Array, grid: tuple[int, int]) -> Array:
    """``x [b, patches, D]`` of a map convolved with ``kernel [D, 9, d]``, zero padding 1.

    One matrix product for all taps, then shifts: as many MACs as XLA's convolution, whose gradient
    above all is slow on CPU.
    """
    taps = dense(x, kernel.reshape(kernel.shape[0], -1))
    return sum_shifted(taps.reshape(x.shape[0], *grid, TAPS, -1)).reshape(
        *x.shape[:2], kernel.shape[-1]
    )


class _Conv(nnx.Module):
    """What both forms of a convolution do with class tokens: hand them through."""

    geometry: Geometry

    def __call__(self, x: Array, train: bool = False) -> Array:
        """Convolves the patches of normalised ``x [batch, tokens, D]``, if they are read."""
        tokens, patches = jnp.split(x, [self.geometry.prefix], axis=1)
        if self.geometry.class_only:
            return tokens
        return jnp.concatenate([tokens, self.convolve(patches, train)], axis=1)

    def convolve(self, x: Array, train: bool) -> Array:
        """The convolution branch on patch tokens ``[batch, patches, D]``."""
        raise NotImplementedError


class SharedConv(_Conv):
    """A convolution in shared form: the attention layer's own weights, mixed at every step."""

    def __init__(
        self,
        attention: Attention,
        head_logits: nnx.Param[Array],
        norm: BatchNorm,
        size: int,
        geometry: Geometry,
        temperature: float,
    ):
        self.v = attention.v
        self.out = attention.out
        self.head_logits = head_logits
        self.norm = norm
        self.size = size
        self.geometry = geometry
        self.temperature = temperature

    def kernels(self) -> tuple[Array, Array, Array, Array]:
        """Input kernel ``[D, taps, d]`` and bias ``[d]``, output kernel ``[d, D]`` and bias."""
        mixture = own_taps(head_mixture(self.head_logits[...], self.temperature), self.size)
        kernel, bias = tap_inputs(self.v, mixture)
        return kernel, bias.sum(0), tap_outputs(self.out, mixture), self.out.bias[...]

    def folded(self) -> "FoldedConv":
        """The same function as plain layers."""
        kernel, bias, out_kernel, out_bias = self.kernels()
        out = nnx.clone(self.out)
        out.kernel, out.bias = nnx.Param(out_kernel), nnx.Param(out_bias)
        return FoldedConv(kernel, bias, self.norm, out, self.geometry)

    def convolve(self, x: Array, train: bool) -> Array:
        dtype = self.v.dtype
        kernel, bias, out, out_bias = (cast(a, dtype) for a in self.kernels())
        y = _project(cast(x, dtype), kernel, self.geometry.grid) + unlearnt(bias, train)
        return dense(jax.nn.relu(self.norm(y, train)), out, out_bias)


class FoldedConv(_Conv):
    """The same function as plain layers: convolution, batch norm (or none), ReLU, 1x1."""

    def __init__(
        self, kernel: Array, bias: Array, norm: BatchNorm | None, out: Dense, geometry: Geometry
    ):
        self.kernel = nnx.Param(kernel)  # [D, taps, d]
        self.bias = nnx.Param(bias)  # [d]
        self.norm = norm
        self.out = out
        self.geometry = geometry

    def convolve(self, x: Array, train: bool) -> Array:
        return self.out(self.hidden(x, train))

    def hidden(self, x: Array, train: bool = False) -> Array:
        """What the output projection sees, ``[batch, patches, d]``."""
        dtype = self.out.dtype
        kernel, bias = cast(self.kernel[...], dtype), cast(self.bias[...], dtype)
        y = _project(cast(x, dtype), kernel, self.geometry.grid)
        y = y + bias if self.norm is None else self.norm(y + unlearnt(bias, train), train)
        return jax.nn.relu(y)

    def fold_norm(self) -> None:
        """Takes the batch norm, with its running statistics, into the kernel."""
        if self.norm is not None:
            scale = self.norm.scale[...] / jnp.sqrt(self.norm.var[...] + self.norm.EPSILON)
            self.kernel[...] = self.kernel[...] * scale
            self.bias[...] = (self.bias[...] - self.norm.mean[...]) * scale + self.norm.bias[...]
            self.norm = None


def _project(x: Array, kernel: Array, grid: tuple[int, int]) -> Array:
    return conv3x3(x, kernel, grid) if kernel.shape[1] == TAPS else dense(x, kernel[:, 0])
