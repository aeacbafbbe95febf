"""Swin (Liu et al. 2021): attention in shifted windows, on a map that shrinks stage by stage.

Maps are flattened row by row, ``[batch, patches, D]``, as a ViT's patches are: the same blocks,
and so the same search and pruning, serve both. Windows, shift and relative position bias are
matters of attention alone; a convolution in its place works on the whole unshifted map.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.models.geometry import Geometry, check_numbers
from spvit_jax.models.layers import INIT, Array, Attention, Dense, attention, cast, dense, take
from spvit_jax.models.tokens import Tokens
from spvit_jax.models.transformer import Transformer
from spvit_jax.sizes import Size, as_size, shown, sides

MASKED = -100.0  # added to logits between tokens that only the cyclic shift made neighbours
POSITION_INIT = nnx.initializers.truncated_normal(0.02)


@dataclasses.dataclass(frozen=True)
class SwinSpec:
    """The shape of a dense Swin; tuples have one entry per stage.

    Raises:
      ValueError: numbers that are none or not above 0, or sizes that do not divide each other.
    """

    width: int = 96  # of the first stage; each later one is twice as wide
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    hidden: tuple[int, ...] = (384, 768, 1536, 3072)  # FFN units of each block
    window: int = 7  # tokens per side; along a side of a map that is shorter, so many
    patch_size: int = 4
    image_size: Size = 224  # pixels: a side of a square, or height and width
    classes: int = 1000  # 0: no head; features are what the model is for
    epsilon: float = 1e-5  # of the norms
    channels: int = 3  # of an image: 1 is grey, 3 are RGB

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_size(self.image_size))
        check_numbers(self)
        if not len(self.depths) == len(self.heads) == len(self.hidden) > 0:
            raise ValueError(f"depths, heads and hidden need one entry a stage; got {self}")
        for stage, heads in enumerate(self.heads):
            if (self.width << stage) % heads:
                raise ValueError(
                    f"heads must divide the width; got {heads} and {self.width << stage} in stage"
                    f" {stage}"
                )
        self._check_windows()

    def _check_windows(self) -> None:
        step = self.patch_size * self.window << (len(self.depths) - 1)
        height, width = pixels = sides(self.image_size)
        wrong = [
            n for n, side in zip(("height", "width"), pixels, strict=True) if not self._fits(side)
        ]
        near = (s if self._fits(s) else max(round(s / step), 1) * step for s in pixels)
        if wrong:
            which = "" if height == width else f" for their {' and '.join(wrong)}"
            raise ValueError(
                f"windows of {self.window}x{self.window} tokens cannot divide the maps of"
                f" {height}x{width} images with patches of {self.patch_size} in"
                f" {len(self.depths)} stages; choose a multiple of {step} pixels{which}, such as"
                f" {shown(as_size(tuple(near)))}"
            )

    def _fits(self, side: int) -> bool:
        """Whether windows divide the maps of each stage along a side of so many pixels."""
        stages = len(self.depths)
        maps = [side // self.patch_size >> stage for stage in range(stages)]
        return (
            maps[-1] > 0
            and side % (self.patch_size << (stages - 1)) == 0
            and all(tokens % min(self.window, tokens) == 0 for tokens in maps)
        )

    def grid(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's map."""
        height, width = sides(self.image_size)
        return height // self.patch_size >> stage, width // self.patch_size >> stage

    def windows(self, stage: int) -> tuple[int, int]:
        """Rows and columns of a stage's windows."""
        rows, columns = self.grid(stage)
        return min(self.window, rows), min(self.window, columns)

    @property
    def blocks(self) -> tuple[Geometry, ...]:
        """What each block works on. Every second one shifts its windows, if there are several."""
        geometries = []
        for stage, depth in enumerate(self.depths):
            grid, window = self.grid(stage), self.windows(stage)
            down, right = (w // 2 if w < g else 0 for w, g in zip(window, grid, strict=True))
            for i in range(depth):
                shift = (down, right) if i % 2 else (0, 0)
                width, heads = self.width << stage, self.heads[stage]
                hidden = self.hidden[stage]
                geometries.append(Geometry(width, heads, hidden, grid, window=window, shift=shift))
        return tuple(geometries)


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
        table = (relative_positions(window_of(geometry)), geometry.heads)
        self.position_bias = nnx.Param(POSITION_INIT(rngs.params(), table))

    def attend(self, q: Array, k: Array, values: Array, tokens: Tokens | None = None) -> Array:
        """Averages values within windows, where nothing is merged."""
        q, k, v = (to_windows(a, self.geometry, self.heads) for a in (q, k, values))
        out = jax.vmap(attention)(q, k, v, self.bias()[:, None])
        return from_windows(out, self.geometry)

    def keep_heads(self, kept: tuple[int, ...]) -> None:
        super().keep_heads(kept)
        self.position_bias = nnx.Param(take(self.position_bias[...], kept, axis=1))

    def bias(self) -> Array:
        """What is added to the logits of each window, ``[windows, heads, tokens, tokens]``."""
        index = relative_position_index(window_of(self.geometry))
        bias = self.position_bias[...][index].transpose(2, 0, 1)
        if not any(self.geometry.shift):
            return jnp.broadcast_to(bias, (self.geometry.windows, *bias.shape))
        return bias + shift_mask(self.geometry)[:, None].astype(bias.dtype)


def to_windows(x: Array, geometry: Geometry, heads: int) -> Array:
    """``[batch, patches, D]`` as shifted windows ``[windows, batch, tokens, heads, head_dim]``."""
    (rows, columns), (high, wide), (down, right) = (
        geometry.grid,
        window_of(geometry),
        geometry.shift,
    )
    x = x.reshape(x.shape[0], rows, columns, -1)
    if down or right:
        x = jnp.roll(x, (-down, -right), (1, 2))
    x = x.reshape(x.shape[0], rows // high, high, columns // wide, wide, -1)
    x = x.transpose(1, 3, 0, 2, 4, 5)
    return x.reshape(geometry.windows, -1, high * wide, heads, x.shape[-1] // heads)


def from_windows(x: Array, geometry: Geometry) -> Array:
    """The inverse of ``to_windows``."""
    (rows, columns), (high, wide) = geometry.grid, window_of(geometry)
    width = x.shape[-2] * x.shape[-1]
    x = x.reshape(rows // high, columns // wide, -1, high, wide, width)
    x = x.transpose(2, 0, 3, 1, 4, 5).reshape(-1, rows, columns, width)
    if any(geometry.shift):
        x = jnp.roll(x, geometry.shift, (1, 2))
    return x.reshape(-1, rows * columns, width)


def window_of(geometry: Geometry) -> tuple[int, int]:
    """Rows and columns of the windows that a block's attention runs in."""
    return geometry.window or geometry.grid


def relative_positions(window: tuple[int, int]) -> int:
    """How many positions two tokens of a window may have to each other: rows of a bias table."""
    return math.prod(2 * side - 1 for side in window)


def relative_position_index(window: tuple[int, int]) -> np.ndarray:
    """The row of the bias table for each query and key of a window, ``[tokens, tokens]``."""
    high, wide = window
    y, x = np.divmod(np.arange(high * wide), wide)
    down, right = y[:, None] - y, x[:, None] - x
    return (down + high - 1) * (2 * wide - 1) + right + wide - 1


def shift_mask(geometry: Geometry) -> np.ndarray:
    """``MASKED`` between tokens of a window that come from opposite borders of the map, else 0.

    ``[windows, tokens, tokens]``.
    """
    (rows, columns), (high, wide) = geometry.grid, window_of(geometry)
    down, right = map(_parts, geometry.grid, window_of(geometry), geometry.shift)
    regions = (3 * down[:, None] + right).reshape(rows // high, high, columns // wide, wide)
    regions = regions.swapaxes(1, 2).reshape(geometry.windows, -1)
    return np.where(regions[:, :, None] == regions[:, None], 0.0, MASKED)


def _parts(side: int, window: int, shift: int) -> np.ndarray:
    """Which of three parts of a map each row, or column, is in: only the shift joins them."""
    place = np.arange(side)
    return np.where(place < side - window, 0, np.where(place < side - shift, 1, 2))


class PatchMerging(nnx.Module):
    """The end of a stage: each 2x2 patches become one, twice as wide."""

    def __init__(
        self, norm: nnx.LayerNorm, width: int, grid: tuple[int, int], dtype, rngs: nnx.Rngs
    ):
        self.norm = norm
        self.kernel = nnx.Param(INIT(rngs.params(), (4 * width, 2 * width)))
        self.grid = grid
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """``[batch, n, D]`` to ``[batch, n / 4, 2 D]``; a 2x2 square is read column by column."""
        rows, columns = self.grid[0] // 2, self.grid[1] // 2
        x = x.reshape(x.shape[0], rows, 2, columns, 2, -1).transpose(0, 1, 3, 4, 2, 5)
        x = self.norm(x.reshape(x.shape[0], rows * columns, -1))
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

    def _merging(self, width: int, grid: tuple[int, int], rngs: nnx.Rngs) -> PatchMerging:
        return PatchMerging(self.layer_norm(4 * width, rngs), width, grid, self.dtype, rngs)

    def embed(self, images: Array) -> Array:
        """Images ``[batch, height, width, 3]`` as normalised patches ``[batch, patches, D]``."""
        return self.embed_norm(self.patches(images))

    def enter(self, i: int, x: Array) -> Array:
        """Merges patches at the end of a stage."""
        ends = np.cumsum(self.spec.depths)[:-1].tolist()
        return self.merges[ends.index(i)](x) if i in ends else x

    def features(self, tokens: Tokens) -> Array:
        """What the one head sees, the average of the last map: ``[batch, 1, width]``."""
        return self.norm(tokens.x).mean(1, keepdims=True)
