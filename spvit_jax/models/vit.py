"""ViT and DeiT (Dosovitskiy et al. 2021, Touvron et al. 2021), with one or two class tokens."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.layers import (
    Array,
    Attention,
    Block,
    Dense,
    Geometry,
    Mlp,
    cast,
    dropout,
    split_key,
)

LAYER_NORM_EPSILON = 1e-6
TOKEN_INIT = nnx.initializers.normal(0.02)
POSITION_INIT = nnx.initializers.normal(0.5)  # on the scale of embedded patches: short trainings
# from scratch learn positions late otherwise


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """The shape of a dense ViT.

    Raises:
      ValueError: heads do not divide the width, or patches the image.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072  # FFN units of each block
    patch_size: int = 16
    image_size: int = 224
    classes: int = 1000
    distilled: bool = False  # DeiT's second token and head; logits are the mean of both heads
    temperature: float = 0.01  # alpha of the head mixture, as released for DeiT

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width; got {self.heads} and {self.width}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"the patch size must divide the image size; got {self.patch_size} and"
                f" {self.image_size}; choose an image size that is a multiple of the patch size"
            )

    @property
    def prefix(self) -> int:
        """Class tokens before the patches."""
        return 2 if self.distilled else 1

    @property
    def blocks(self) -> tuple[Geometry, ...]:
        """What each block works on."""
        grid = self.image_size // self.patch_size
        block = Geometry(self.width, self.heads, self.hidden, grid, self.prefix)
        return (block,) * self.depth

    @property
    def fixed_macs(self) -> int:
        """MACs outside the blocks: patch embedding and heads."""
        patches = (self.image_size // self.patch_size) ** 2
        embedding = patches * self.width * 3 * self.patch_size**2
        return embedding + self.width * self.classes * self.prefix


_TINY = ViTSpec(width=192, heads=3, hidden=768)
_SMALL = ViTSpec(width=384, heads=6, hidden=1536)
VARIANTS = {
    "deit_tiny_patch16_224": _TINY,
    "deit_small_patch16_224": _SMALL,
    "deit_base_patch16_224": ViTSpec(),
    "deit_tiny_distilled_patch16_224": dataclasses.replace(_TINY, distilled=True),
    "deit_small_distilled_patch16_224": dataclasses.replace(_SMALL, distilled=True),
    "deit_base_distilled_patch16_224": ViTSpec(distilled=True),
    "vit_base_patch16_224": ViTSpec(),
    "deit_fashion_mnist": ViTSpec(
        width=64, depth=6, heads=4, hidden=256, patch_size=4, image_size=28, classes=10
    ),
}


class ViT(nnx.Module):
    """A vision transformer. Its blocks may be replaced: the search and pruning do just that."""

    def __init__(
        self,
        spec: ViTSpec,
        *,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        self.spec = spec
        self.dropout = dropout
        self.dtype = dtype
        self.remat = remat
        width, patch = spec.width, spec.patch_size
        geometry = spec.blocks[0]
        self.patch_embed = Dense(3 * patch**2, width, dtype=dtype, rngs=rngs)
        self.tokens = nnx.Param(TOKEN_INIT(rngs.params(), (spec.prefix, width)))
        self.pos_embed = nnx.Param(POSITION_INIT(rngs.params(), (geometry.tokens, width)))
        depth = max(spec.depth - 1, 1)
        self.blocks = nnx.List(
            self._block(geometry, dropout, drop_path * i / depth, rngs) for i in range(spec.depth)
        )
        self.norm = self._norm(rngs)
        self.head = Dense(width, spec.classes, dtype=dtype, rngs=rngs)
        if spec.distilled:
            self.head_dist = Dense(width, spec.classes, dtype=dtype, rngs=rngs)

    def _norm(self, rngs: nnx.Rngs) -> nnx.LayerNorm:
        return nnx.LayerNorm(
            self.spec.width,
            epsilon=LAYER_NORM_EPSILON,
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=jnp.result_type(float),  # float64 where everything is
            rngs=rngs,
        )

    def _block(self, geometry: Geometry, dropout: float, drop: float, rngs: nnx.Rngs) -> Block:
        width, hidden = geometry.width, geometry.hidden
        return Block(
            self._norm(rngs),
            Attention(geometry, dtype=self.dtype, rngs=rngs),
            self._norm(rngs),
            Mlp(width, hidden, dropout=dropout, dtype=self.dtype, rngs=rngs),
            dropout=dropout,
            drop_path=drop,
        )

    def embed(self, images: Array) -> Array:
        """Images ``[batch, S*p, S*p, 3]`` as tokens ``[batch, prefix + S*S, width]``."""
        patch = self.spec.patch_size
        batch, height, width, _ = images.shape
        if height != self.spec.image_size or width != self.spec.image_size:
            raise ValueError(
                f"expected {self.spec.image_size}x{self.spec.image_size} images, got"
                f" {height}x{width}; resize them, or build the model with that image size"
            )
        grid = height // patch
        patches = images.reshape(batch, grid, patch, grid, patch, 3).swapaxes(2, 3)
        x = self.patch_embed(patches.reshape(batch, grid * grid, 3 * patch**2))
        tokens = jnp.broadcast_to(cast(self.tokens[...], x.dtype), (batch, *self.tokens.shape))
        return jnp.concatenate([tokens, x], axis=1) + cast(self.pos_embed[...], x.dtype)

    def __call__(
        self,
        images: Array,
        gates: tuple | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Logits ``[batch, classes]`` of normalised images ``[batch, height, width, 3]``.

        Args:
          gates: one ``BlockGates`` a block, for a supernet only.
          key: for dropout and stochastic depth; None switches both off.
          train: batch norm uses the batch's statistics and updates its own.
        """
        keys = split_key(key, len(self.blocks) + 1)
        x = dropout(self.embed(images), self.dropout, keys[-1])
        for i, block in enumerate(self.blocks):
            arguments = (x,) if gates is None else (x, gates[i])
            x = apply_block(block, arguments, keys[i], train, self.remat)
        x = self.norm(x[:, : self.spec.prefix])
        logits = self.head(x[:, 0])
        if self.spec.distilled:
            logits = (logits + self.head_dist(x[:, 1])) / 2
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def apply_block(
    block: Block, arguments: tuple, key: Array | None, train: bool, remat: bool
) -> Array:
    """A block's output, recomputed in the backward pass if ``remat``."""

    def call(block: Block, arguments: tuple, key: Array | None) -> Array:
        return block(*arguments, key=key, train=train)

    return (nnx.remat(call) if remat else call)(block, arguments, key)
