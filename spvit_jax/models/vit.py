"""ViT (Dosovitskiy et al. 2021) and what became of it: DeiT, CLIP, DINOv2 and v3, SigLIP, MAE, …

They differ in options of one network: class tokens and registers, norms, activation, how positions
are said, and what the head sees.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.activations import ACTIVATIONS
from spvit_jax.models.geometry import Geometry, check_numbers
from spvit_jax.models.layers import Array, Attention, Dense, Mlp, cast
from spvit_jax.models.pooling import AttentionPool
from spvit_jax.models.rotary import KINDS, Rotary
from spvit_jax.models.tokens import Tokens
from spvit_jax.models.transformer import Transformer, wide
from spvit_jax.sizes import Size, as_size, shown, sides

TOKEN_INIT = nnx.initializers.normal(0.02)
POSITION_INIT = nnx.initializers.normal(0.5)  # on the scale of embedded patches: short trainings
# from scratch learn positions late otherwise
POOLS = ("token", "norm_average", "average_norm", "attention")


@dataclasses.dataclass(frozen=True)
class ViTSpec:
    """The shape of a dense ViT.

    Raises:
      ValueError: numbers that are none or not above 0, sizes that do not divide each other, a pool
        without what it pools, or an option that there is not.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072  # FFN units of each block
    patch_size: int = 16
    image_size: Size = 224  # pixels: a side of a square, or height and width
    classes: int = 1000  # 0: no head; features are what the model is for
    class_token: bool = True
    distilled: bool = False  # DeiT's second token and head; logits are the mean of both heads
    registers: int = 0  # tokens behind the class tokens that nobody reads (DINOv2 with registers)
    pool: str = "token"  # what the head sees: the class token, an average of the patches, taken
    # after the last norm ("norm_average") or before it ("average_norm", timm's fc_norm), or what
    # a learnt query finds in all tokens ("attention", SigLIP)
    patches: bool = False  # whether the patches that leave the last block are read as well
    positions: bool = True  # a learnt embedding of each place
    rotary: str = ""  # queries and keys turned by their place: one of rotary.KINDS; "": not
    rotary_base: float = 100.0  # of the geometric series of wavelengths
    rotary_grid: int = 16  # of "eva": a side of the map it was trained on
    norm_pre: bool = False  # a norm before the blocks (CLIP)
    qk_norm: bool = False  # norms of each head's queries and keys
    gated: bool = False  # each FFN unit is multiplied by another one, its gate (SwiGLU)
    activation: str = "gelu"  # of FFN units, or of the gate of each: one of ACTIVATIONS
    epsilon: float = 1e-6  # of the norms
    channels: int = 3  # of an image: 1 is grey, 3 are RGB

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_size(self.image_size))
        check_numbers(self)
        if self.width % self.heads:
            raise ValueError(f"heads must divide the width; got {self.heads} and {self.width}")
        if any(side % self.patch_size for side in sides(self.image_size)):
            raise ValueError(
                f"the patch size must divide the image size; got {self.patch_size} and"
                f" {shown(self.image_size)}; choose an image size that is a multiple of the patch"
                " size, in height and in width"
            )
        for name, options in (
            ("pool", POOLS), ("activation", tuple(ACTIVATIONS)), ("rotary", ("", *KINDS))
        ):  # fmt: skip
            if getattr(self, name) not in options:
                raise ValueError(
                    f"{name} must be one of {', '.join(options)}; got {getattr(self, name)!r}"
                )
        if self.rotary and self.width // self.heads % 4:
            raise ValueError(
                f"rotary positions need heads of a multiple of 4 features; got width {self.width}"
                f" and {self.heads} heads"
            )
        if (self.pool == "token" and not self.class_token) or (
            self.distilled and self.pool != "token"
        ):
            raise ValueError(
                f'pool="token" needs a class token and distilled needs that pool; got {self}'
            )

    @property
    def prefix(self) -> int:
        """Class tokens and registers before the patches."""
        return self.class_token + self.distilled + self.registers

    @property
    def blocks(self) -> tuple[Geometry, ...]:
        """What each block works on; of the last, class tokens alone may be read."""
        height, width = sides(self.image_size)
        block = Geometry(
            self.width,
            self.heads,
            self.hidden,
            grid=(height // self.patch_size, width // self.patch_size),
            prefix=self.prefix,
            registers=self.registers,
            gated=self.gated,
            qk_norm=self.qk_norm,
            rotary=bool(self.rotary),
        )
        alone = self.pool == "token" and not self.patches
        last = dataclasses.replace(block, class_only=alone)
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
        spec = self.spec
        if spec.prefix:
            self.tokens = nnx.Param(TOKEN_INIT(rngs.params(), (spec.prefix, spec.width)))
        if spec.positions:
            shape = (spec.blocks[0].tokens, spec.width)
            self.pos_embed = nnx.Param(POSITION_INIT(rngs.params(), shape))
        if spec.norm_pre:
            self.norm_pre = self.layer_norm(spec.width, rngs)

    def _mixer(self, geometry: Geometry, rngs: nnx.Rngs) -> Attention:
        spec, norms, rotary = self.spec, None, None
        if spec.qk_norm:
            one, other = (self.layer_norm(geometry.head_dim, rngs) for _ in range(2))
            norms = one, other
        if spec.rotary:
            rotary = Rotary(
                spec.rotary, spec.rotary_base, geometry.grid, spec.rotary_grid, geometry.prefix
            )
        return Attention(geometry, norms=norms, rotary=rotary, dtype=self.dtype, rngs=rngs)

    def _ffn(self, geometry: Geometry, rngs: nnx.Rngs) -> Mlp:
        return Mlp(
            geometry,
            activation=self.spec.activation,
            dropout=self.dropout,
            dtype=self.dtype,
            rngs=rngs,
        )

    def _ending(self, rngs: nnx.Rngs) -> None:
        spec, dtype = self.spec, self.dtype
        self.norm = self.layer_norm(spec.width, rngs)
        if spec.pool == "attention":
            last = dataclasses.replace(spec.blocks[-1], gated=False)
            norm = self.layer_norm(spec.width, rngs)
            self.pool = AttentionPool(
                last, norm, activation=spec.activation, dtype=dtype, rngs=rngs
            )
        if spec.classes:
            self.head = Dense(spec.width, spec.classes, dtype=dtype, rngs=rngs)
        if spec.classes and spec.distilled:
            self.head_dist = Dense(spec.width, spec.classes, dtype=dtype, rngs=rngs)

    def embed(self, images: Array) -> Array:
        """Images ``[batch, height, width, 3]`` as tokens ``[batch, prefix + patches, D]``."""
        x, spec = self.patches(images), self.spec
        if spec.prefix:
            shape = (x.shape[0], *self.tokens.shape)
            x = jnp.concatenate([jnp.broadcast_to(cast(self.tokens[...], x.dtype), shape), x], 1)
        if spec.positions:
            x = x + cast(self.pos_embed[...], x.dtype)
        return self.norm_pre(x) if spec.norm_pre else x

    def classify(self, tokens: Tokens) -> tuple[Array, ...]:
        """The logits of the class token's head and, in a distilled DeiT, of the second one's."""
        if not self.spec.distilled or not self.spec.classes:
            return super().classify(tokens)
        x = self.features(tokens)
        return wide(self.head(x[:, 0])), wide(self.head_dist(x[:, 1]))

    def features(self, tokens: Tokens) -> Array:
        """What each head sees, ``[batch, heads, width]``; averages are those of all patches."""
        if self.spec.pool == "token":
            return self.norm(tokens.x[:, : self.spec.prefix - self.spec.registers])
        if self.spec.pool == "attention":
            return self.pool(self.norm(tokens.x), tokens)
        x, sizes = tokens.x[:, self.spec.prefix :], tokens.sizes
        sizes = None if sizes is None else sizes[:, self.spec.prefix :]
        if self.spec.pool == "norm_average":
            return _average(self.norm(x), sizes)
        return self.norm(_average(x, sizes))

    def patch_features(self, tokens: Tokens) -> Array:
        """As every transformer's; not normalised where that norm is of the average alone."""
        if self.spec.pool == "average_norm":
            return tokens.unmerged()[:, self.spec.prefix :]
        return super().patch_features(tokens)


def _average(x: Array, sizes: Array | None) -> Array:
    """Averages tokens ``[batch, n, D]`` that stand for so many: ``[batch, 1, D]``."""
    if sizes is None:
        return x.mean(1, keepdims=True)
    shares = sizes / sizes.sum(1, keepdims=True)
    return (x * shares[..., None].astype(x.dtype)).sum(1, keepdims=True)
