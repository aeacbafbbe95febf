"""ViT and DeiT (Dosovitskiy et al. 2021, Touvron et al. 2021), with two, one or no class token."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.layers import Array, Dense, Geometry, cast
from spvit_jax.models.tokens import Tokens
from spvit_jax.models.transformer import Transformer, wide

TOKEN_INIT = nnx.initializers.normal(0.02)
POSITION_INIT = nnx.initializers.normal(0.5)  # on the scale of embedded patches: short trainings
# from scratch learn positions late otherwise
POOLS = ("token", "norm_average", "average_norm")


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """The shape of a dense ViT.

    Raises:
      ValueError: sizes that do not divide each other, or a pool without what it pools.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072  # FFN units of each block
    patch_size: int = 16
    image_size: int = 224
    classes: int = 1000
    class_token: bool = True
    distilled: bool = False  # DeiT's second token and head; logits are the mean of both heads
    pool: str = "token"  # what the head sees: the class token, or the average of the patches,
    # taken after the last norm ("norm_average") or before it ("average_norm", timm's fc_norm)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width; got {self.heads} and {self.width}")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"the patch size must divide the image size; got {self.patch_size} and"
                f" {self.image_size}; choose an image size that is a multiple of the patch size"
            )
        if self.pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}; got {self.pool!r}")
        if (self.pool == "token" and not self.class_token) or (
            self.distilled and self.pool != "token"
        ):
            raise ValueError(
                f'pool="token" needs a class token and distilled needs that pool; got {self}'
            )

    @property
    def prefix(self) -> int:
        """Class tokens before the patches."""
        return self.class_token + self.distilled

    @property
    def blocks(self) -> tuple[Geometry, ...]:
        """What each block works on; of the last the head reads class tokens alone, or patches."""
        grid = self.image_size // self.patch_size
        block = Geometry(self.width, self.heads, self.hidden, grid, self.prefix)
        last = dataclasses.replace(block, class_only=self.pool == "token")
        return (block,) * (self.depth - 1) + (last,)


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


class ViT(Transformer):
    """A vision transformer over class tokens and patches."""

    def _embedding(self, rngs: nnx.Rngs) -> None:
        width, prefix = self.spec.width, self.spec.prefix
        if prefix:
            self.tokens = nnx.Param(TOKEN_INIT(rngs.params(), (prefix, width)))
        positions = (self.spec.blocks[0].tokens, width)
        self.pos_embed = nnx.Param(POSITION_INIT(rngs.params(), positions))

    def _ending(self, rngs: nnx.Rngs) -> None:
        width, classes = self.spec.width, self.spec.classes
        self.norm = self.layer_norm(width, rngs)
        self.head = Dense(width, classes, dtype=self.dtype, rngs=rngs)
        if self.spec.distilled:
            self.head_dist = Dense(width, classes, dtype=self.dtype, rngs=rngs)

    def embed(self, images: Array) -> Array:
        """Images ``[batch, S*p, S*p, 3]`` as tokens ``[batch, prefix + S*S, width]``."""
        x = self.patches(images)
        if self.spec.prefix:
            shape = (x.shape[0], *self.tokens.shape)
            x = jnp.concatenate([jnp.broadcast_to(cast(self.tokens[...], x.dtype), shape), x], 1)
        return x + cast(self.pos_embed[...], x.dtype)

    def classify(self, tokens: Tokens) -> tuple[Array, ...]:
        """The logits of the class token's head and, in a distilled DeiT, of the second one's."""
        if not self.spec.distilled:
            return super().classify(tokens)
        x = self.features(tokens)
        return wide(self.head(x[:, 0])), wide(self.head_dist(x[:, 1]))

    def features(self, tokens: Tokens) -> Array:
        """What each head sees, ``[batch, heads, width]``; averages are those of all patches."""
        if self.spec.pool == "token":
            return self.norm(tokens.x[:, : self.spec.prefix])
        x, sizes = tokens.x[:, self.spec.prefix :], tokens.sizes
        sizes = None if sizes is None else sizes[:, self.spec.prefix :]
        if self.spec.pool == "norm_average":
            return _average(self.norm(x), sizes)
        return self.norm(_average(x, sizes))


def _average(x: Array, sizes: Array | None) -> Array:
    """Averages tokens ``[batch, n, D]`` that stand for so many: ``[batch, 1, D]``."""
    if sizes is None:
        return x.mean(1, keepdims=True)
    shares = sizes / sizes.sum(1, keepdims=True)
    return (x * shares[..., None].astype(x.dtype)).sum(1, keepdims=True)
