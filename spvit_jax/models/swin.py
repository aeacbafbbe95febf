"""Swin (Liu et al. 2021): attention in shifted windows, on a map that shrinks stage by stage.

Maps are flattened row by row, ``[batch, S*S, width]``, as a ViT's patches are: the same blocks,
and so the same search and pruning, serve both. Windows, shift and relative position bias are
matters of attention alone; a convolution in its place works on the whole unshifted map.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.models.layers import (
    INIT,
    Array,
    Attention,
    Dense,
    Geometry,
    attention,
    cast,
    dense,
)
from spvit_jax.models.tokens import Tokens
from spvit_jax.models.transformer import Transformer

MASKED = -100.0  # added to logits between tokens that only the cyclic shift made neighbours
POSITION_INIT = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class SwinSpec:
    """The shape of a dense Swin; tuples have one entry a stage.

    Raises:
      ValueError: sizes that do not divide each other.
    """

    width: int = 96  # of the first stage; each later one is twice as wide
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    hidden: tuple[int, ...] = (384, 768, 1536, 3072)  # FFN units of each block
    window: int = 7  # tokens a side
    patch_size: int = 4
    image_size: int = 224
    classes: int = 1000  # 0: no head; features are what the model is for
    epsilon: float = 1e-5  # of the norms
    channels: int = 3  # of an image: 1 is grey, 3 are RGB

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.heads) == len(self.hidden) > 0:
            raise ValueError(f"depths, heads and hidden need one entry a stage; got {self}")
        for stage, heads in enumerate(self.heads):
            if (self.width << stage) % heads:
                raise ValueError(
                    f"heads must divide the width; got {heads} and {self.width << stage} in stage"
                    f" {stage}"
                )
        step = self.patch_size * self.window << (len(self.depths) - 1)
        last = self.grid(len(self.depths) - 1)
        parts = self.patch_size << (len(self.depths) - 1)
        fits = [self.grid(s) % self._window(s) == 0 for s in range(len(self.depths))]
        if not last or self.image_size % parts or not all(fits):
            raise ValueError(
                f"windows of {self.window}x{self.window} tokens cannot divide the maps of"
                f" {self.image_size}x{self.image_size} images with patches of {self.patch_size} in"
                f" {len(self.depths)} stages; choose a multiple of {step} pixels, such as"
                f" {max(round(self.image_size / step), 1) * step}"
            )

    def grid(self, stage: int) -> int:
        """Tokens a side of a stage's map."""
        return self.image_size // self.patch_size >> stage

    def _window(self, stage: int) -> int:
        return max(min(self.window, self.grid(stage)), 1)

    @property
    def blocks(self) -> tuple[Geometry, ...]:
        """What each block works on. Every second one shifts its windows, if there are several."""
        found = []
        for stage, depth in enumerate(self.depths):
            grid, window = self.grid(stage), self._window(stage)
            for i in range(depth):
                shift = window // 2 if i % 2 and window < grid else 0
                width, heads = self.width << stage, self.heads[stage]
                hidden = self.hidden[stage]
                found.append(Geometry(width, heads, hidden, grid, window=window, shift=shift))
        return tuple(found)


VARIANTS = {
    "swin_tiny_patch4_window7_224": SwinSpec(),
    "swin_small_patch4_window7_224": SwinSpec(depths=(2, 2, 18, 2)),
    "swin_base_patch4_window7_224": SwinSpec(
        width=128,
        depths=(2, 2, 18, 2),
        heads=(4, 8, 16, 32),
        hidden=(512, 1024, 2048, 4096),
    ),
    "swin_base_patch4_window12_384": SwinSpec(
        width=128,
        depths=(2, 2, 18, 2),
        heads=(4, 8, 16, 32),
        hidden=(512, 1024, 2048, 4096),
        window=12,
        image_size=384,
    ),
    "swin_fashion_mnist": SwinSpec(
        width=32,
        depths=(2, 4),
        heads=(2, 4),
        hidden=(128, 256),
        patch_size=2,
        image_size=28,
        classes=10,
    ),
}


class WindowAttention(Attention):
    """Attention within windows, each pair of tokens biased by its relative position."""

    def __init__(self, geometry: Geometry, *, dtype: jnp.dtype | None, rngs: nnx.Rngs):
        super().__init__(geometry, dtype=dtype, rngs=rngs)
        self.geometry = geometry
        table = ((2 * geometry.window - 1) ** 2, geometry.heads)
        self.position_bias = nnx.Param(POSITION_INIT(rngs.params(), table))

    def attend(self, q: Array, k: Array, values: Array, tokens: Tokens | None = None) -> Array:
        """Averages values within windows, where nothing is merged."""
        q, k, v = (to_windows(a, self.geometry, self.heads) for a in (q, k, values))
        out = jax.vmap(attention)(q, k, v, self.bias()[:, None])
        return from_windows(out, self.geometry)

    def keep_heads(self, kept: tuple[int, ...]) -> None:
        super().keep_heads(kept)
        self.position_bias = nnx.Param(self.position_bias[...][:, list(kept)])

    def bias(self) -> Array:
        """What is added to the logits of each window, ``[windows, heads, w*w, w*w]``."""
        index = relative_position_index(self.geometry.window)
        bias = self.position_bias[...][index].transpose(2, 0, 1)
        if self.geometry.shift == 0:
            return jnp.broadcast_to(bias, (self.geometry.windows, *bias.shape))
        return bias + shift_mask(self.geometry)[:, None].astype(bias.dtype)


def to_windows(x: Array, geometry: Geometry, heads: int) -> Array:
    """``[batch, S*S, D]`` as shifted windows ``[windows, batch, w*w, heads, head_dim]``."""
    count, window = geometry.grid // geometry.window, geometry.window
    x = x.reshape(x.shape[0], geometry.grid, geometry.grid, -1)
    if geometry.shift:
        x = jnp.roll(x, (-geometry.shift, -geometry.shift), (1, 2))
    x = x.reshape(x.shape[0], count, window, count, window, -1).transpose(1, 3, 0, 2, 4, 5)
    return x.reshape(count**2, -1, window**2, heads, geometry.head_dim)


def from_windows(x: Array, geometry: Geometry) -> Array:
    """The inverse of ``to_windows``."""
    count, window, grid = geometry.grid // geometry.window, geometry.window, geometry.grid
    width = x.shape[-2] * x.shape[-1]
    x = x.reshape(count, count, -1, window, window, width).transpose(2, 0, 3, 1, 4, 5)
    x = x.reshape(-1, grid, grid, width)
    if geometry.shift:
        x = jnp.roll(x, (geometry.shift, geometry.shift), (1, 2))
    return x.reshape(-1, grid * grid, width)


def relative_position_index(window: int) -> np.ndarray:
    """The row of the bias table for each query and key of a window, ``[w*w, w*w]``."""
    y, x = np.divmod(np.arange(window**2), window)
    down, right = y[:, None] - y, x[:, None] - x
    return (down + window - 1) * (2 * window - 1) + right + window - 1


def shift_mask(geometry: Geometry) -> np.ndarray:
    """``MASKED`` between tokens of a window that come from opposite borders of the map, else 0.

    ``[windows, w*w, w*w]``.
    """
    grid, window, shift = geometry.grid, geometry.window, geometry.shift
    place = np.arange(grid)
    part = np.where(place < grid - window, 0, np.where(place < grid - shift, 1, 2))
    regions = 3 * part[:, None] + part
    count = grid // window
    regions = regions.reshape(count, window, count, window).swapaxes(1, 2).reshape(count**2, -1)
    return np.where(regions[:, :, None] == regions[:, None], 0.0, MASKED)


class PatchMerging(nnx.Module):
    """The end of a stage: each 2x2 patches become one, twice as wide."""

    def __init__(self, norm: nnx.LayerNorm, width: int, grid: int, dtype, rngs: nnx.Rngs):
        self.norm = norm
        self.kernel = nnx.Param(INIT(rngs.params(), (4 * width, 2 * width)))
        self.grid = grid
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """``[batch, S*S, D]`` to ``[batch, S*S/4, 2 D]``; a 2x2 square is read column by column."""
        half = self.grid // 2
        x = x.reshape(x.shape[0], half, 2, half, 2, -1).transpose(0, 1, 3, 4, 2, 5)
        x = self.norm(x.reshape(x.shape[0], half * half, -1))
        return dense(cast(x, self.dtype), cast(self.kernel[...], self.dtype))


class Swin(Transformer):
    """A Swin transformer."""

    def _embedding(self, rngs: nnx.Rngs) -> None:
        self.embed_norm = self.layer_norm(self.spec.width, rngs)

    def _ending(self, rngs: nnx.Rngs) -> None:
        spec, last = self.spec, self.spec.blocks[-1].width
        self.merges = nnx.List(
            self._merging(spec.width << stage, spec.grid(stage), rngs)
            for stage in range(len(spec.depths) - 1)
        )
        self.norm = self.layer_norm(last, rngs)
        if spec.classes:
            self.head = Dense(last, spec.classes, dtype=self.dtype, rngs=rngs)

    def _mixer(self, geometry: Geometry, rngs: nnx.Rngs) -> WindowAttention:
        return WindowAttention(geometry, dtype=self.dtype, rngs=rngs)

    def _merging(self, width: int, grid: int, rngs: nnx.Rngs) -> PatchMerging:
        return PatchMerging(self.layer_norm(4 * width, rngs), width, grid, self.dtype, rngs)

    def embed(self, images: Array) -> Array:
        """Images ``[batch, S*p, S*p, 3]`` as normalised patches ``[batch, S*S, width]``."""
        return self.embed_norm(self.patches(images))

    def enter(self, i: int, x: Array) -> Array:
        """Merges patches at the end of a stage."""
        ends = np.cumsum(self.spec.depths)[:-1].tolist()
        return self.merges[ends.index(i)](x) if i in ends else x

    def features(self, tokens: Tokens) -> Array:
        """What the one head sees, the average of the last map: ``[batch, 1, width]``."""
        return self.norm(tokens.x).mean(1, keepdims=True)
