"""What ViT and Swin share: a classifier's interface, patches, and blocks that may be replaced."""

from numbers import Real
from typing import Any

import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Array, Attention, Block, Dense, Mlp, dropout, split_key
from spvit_jax.models.tokens import Tokens
from spvit_jax.sizes import sides


class Classifier(nnx.Module):
    """A network from images to logits, by way of one head or several."""

    spec: Any
    dtype: jnp.dtype | None  # of the computation; None: that of the parameters
    architecture: Any = None  # what a pruned model kept of the dense one of ``spec``
    about: Any = None  # what it was trained on, as far as it is known: see ``convert.About``

    def __repr__(self) -> str:
        """Says in a line what it is; the words are the business of what prices and prunes it."""
        from spvit_jax.single_path.describe import described

        return described(self)

    __str__ = __repr__

    def heads(
        self,
        images: Array,
        extras: tuple | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, ...]:
        """The logits ``[batch, classes]`` of each head; arguments as for a call."""
        raise NotImplementedError

    def __call__(
        self,
        images: Array,
        extras: tuple | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Array:
        """Logits ``[batch, classes]`` of normalised images ``[batch, height, width, 3]``.

        Args:
          extras: one more argument per block, where blocks were replaced by ones that take one.
          key: for dropout and stochastic depth; None switches both off.
          train: batch norm uses the batch's statistics and updates its own.
        """
        return mean_logits(self.heads(images, extras, key=key, train=train))


def mean_logits(heads: tuple[Array, ...]) -> Array:
    """What a classifier says with all its heads; one head's logits as they are."""
    return sum(heads[1:], heads[0]) / len(heads)


def check_model(model: object) -> None:
    """Raises TypeError unless it is a network, as where the name of its file is given."""
    if not isinstance(model, Classifier):
        raise TypeError(
            f"expected a model, such as spvit.load(…) gives, got {type(model).__name__}"
        )


def check_options(
    dropout: float = 0.0, drop_path: float = 0.0, dtype: Any = None, **others: Any
) -> None:
    """Raises ValueError unless a network can be regularised and compute so; others are free."""
    for name, share in (("dropout", dropout), ("drop_path", drop_path)):
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 <= share < 1:
            raise ValueError(f"{name} must be in [0, 1), got {share!r}")
    try:
        floats = dtype is None or jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:  # no dtype at all
        floats = False
    if not floats:
        raise ValueError(f"dtype must be of floating-point numbers, such as bfloat16; got {dtype}")


class Transformer(Classifier):
    """Patches, then residual blocks. The search and pruning replace ``blocks`` one by one."""

    norm: nnx.LayerNorm  # the last one
    head: Dense

    def __init__(
        self,
        spec: Any,
        *,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        dtype: jnp.dtype | None = None,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        check_options(dropout, drop_path, dtype)
        self.spec = spec
        self.dropout = dropout
        self.dtype = dtype
        self.remat = remat
        inputs, width = spec.channels * spec.patch_size**2, spec.blocks[0].width
        self.patch_embed = Dense(inputs, width, dtype=dtype, rngs=rngs)
        self._embedding(rngs)
        last = max(len(spec.blocks) - 1, 1)
        self.blocks = nnx.List(
            self._block(geometry, drop_path * i / last, rngs)
            for i, geometry in enumerate(spec.blocks)
        )
        self._ending(rngs)

    def _embedding(self, rngs: nnx.Rngs) -> None:
        """Makes what an embedding needs besides ``patch_embed``."""

    def _ending(self, rngs: nnx.Rngs) -> None:
        """Makes what comes between and after the blocks."""

    def layer_norm(self, width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
        """A layer norm over ``width`` features, with the exact variance."""
        return nnx.LayerNorm(
            width,
            epsilon=self.spec.epsilon,
            use_fast_variance=False,
            dtype=self.dtype,
            param_dtype=jnp.result_type(float),  # float64 where everything is
            rngs=rngs,
        )

    def _mixer(self, geometry: Geometry, rngs: nnx.Rngs) -> Attention:
        """Makes a block's attention."""
        return Attention(geometry, dtype=self.dtype, rngs=rngs)

    def _ffn(self, geometry: Geometry, rngs: nnx.Rngs) -> Mlp:
        """Makes a block's FFN."""
        return Mlp(geometry, dropout=self.dropout, dtype=self.dtype, rngs=rngs)

    def _block(self, geometry: Geometry, drop_path: float, rngs: nnx.Rngs) -> Block:
        return Block(
            self.layer_norm(geometry.width, rngs),
            self._mixer(geometry, rngs),
            self.layer_norm(geometry.width, rngs),
            self._ffn(geometry, rngs),
            geometry=geometry,
            dropout=self.dropout,
            drop_path=drop_path,
        )

    def patches(self, images: Array) -> Array:
        """Embedded patches ``[batch, patches, width]``, row by row.

        Raises:
          ValueError: the images have another size than the spec says.
        """
        wanted, patch, channels = (
            sides(self.spec.image_size),
            self.spec.patch_size,
            self.spec.channels,
        )
        batch, height, width, has = images.shape
        if (height, width) != wanted:
            raise ValueError(
                f"expected {wanted[0]}x{wanted[1]} images, got {height}x{width}; resize them, or"
                " build the model with that image size"
            )
        if has != channels:
            raise ValueError(f"expected images of {channels} channels, got {has}; convert them")
        rows, columns = height // patch, width // patch
        split = images.reshape(batch, rows, patch, columns, patch, channels).swapaxes(2, 3)
        return self.patch_embed(split.reshape(batch, rows * columns, channels * patch**2))

    def embed(self, images: Array) -> Array:
        """Images as the tokens that enter the first block."""
        raise NotImplementedError

    def enter(self, i: int, x: Array) -> Array:
        """What enters block ``i``, of what left the one before it, or the embedding."""
        return x

    def features(self, tokens: Tokens) -> Array:
        """What each head sees, ``[batch, heads, width]``, of what left the last block."""
        raise NotImplementedError

    def classify(self, tokens: Tokens) -> tuple[Array, ...]:
        """The logits of each head, of what left the last block; or, without one, the features."""
        seen = self.features(tokens)[:, 0]
        return (wide(self.head(seen) if self.spec.classes else seen),)

    def patch_features(self, tokens: Tokens) -> Array:
        """What left the last block of every embedded patch, normalised: ``[batch, patches, D]``.

        Raises:
          ValueError: nobody reads them, so that they are not there.
        """
        last = self.spec.blocks[-1]
        if last.class_only:
            raise ValueError("patches do not leave the last block; build it with patches=True")
        return self.norm(tokens.unmerged())[:, last.prefix :]

    def stream(
        self,
        images: Array,
        extras: tuple | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> list[Tokens]:
        """What leaves each block; arguments as for a call."""
        keys = split_key(key, len(self.blocks) + 1)
        tokens, stream = Tokens(dropout(self.embed(images), self.dropout, keys[-1])), []
        for i in range(len(self.blocks)):
            entering = tokens._replace(x=self.enter(i, tokens.x))
            tokens = self.run_block(i, entering, extras, keys[i], train)
            stream.append(tokens)
        return stream

    def heads(
        self,
        images: Array,
        extras: tuple | None = None,
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> tuple[Array, ...]:
        """The logits ``[batch, classes]`` of each head; arguments as for a call."""
        return self.classify(self.stream(images, extras, key=key, train=train)[-1])

    def run_block(
        self, i: int, tokens: Tokens, extras: tuple | None, key: Array | None, train: bool
    ) -> Tokens:
        """Block ``i`` on its tokens; recomputed in the backward pass if ``remat``."""

        def call(block: Block, arguments: tuple, key: Array | None) -> Tokens:
            return block(*arguments, key=key, train=train)

        arguments = (tokens,) if extras is None else (tokens, extras[i])
        return (nnx.remat(call) if self.remat else call)(self.blocks[i], arguments, key)


def wide(logits: Array) -> Array:
    """Logits in float32 at least, whatever they were computed in."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
