"""The supernet: a dense model whose attention layers contain their other operations.

With hard gates a block computes exactly what its pruned form will. Gates multiply parameters,
not activations: choosing an operation is choosing which weights to use, so a gated FFN, head or
projection costs what the dense one does.
"""

from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Array, Attention, Block, cast, dense, split_key
from spvit_jax.models.tokens import Tokens
from spvit_jax.single_path.ops import OPS, PAPER, Branch, Shared
from spvit_jax.single_path.sharing import TAPS, TEMPERATURES, head_mixture

Model = TypeVar("Model", bound=Any)  # a network with ``spec`` and ``blocks``


class SinglePathAttention(nnx.Module):
    """Attention, convolutions and skip in one set of weights."""

    def __init__(
        self, attention: Attention, geometry: Geometry, ops: tuple[str, ...], temperature: float
    ):
        self.attention = attention
        self.head_logits = nnx.Param(jnp.ones((geometry.heads, TAPS)))
        parts = {name: OPS[name].parts(geometry) for name in ops}
        self.parts = nnx.Dict({name: part for name, part in parts.items() if part is not None})
        self.ops = ops
        self.geometry = geometry
        self.temperature = temperature

    def __call__(self, x: Array, gates: dict[str, Array], train: bool) -> Array:
        """Mixes normalised tokens ``[batch, tokens, D]`` to ``[batch, read, D]``.

        Args:
          gates: of this block: ``op``, nested, and ``heads``, nested in attention's.
        """
        kernel, _ = self.attention.v.weights()
        x = cast(x, self.attention.v.dtype)
        values = dense(x, kernel)  # computed once, for all branches
        shared = Shared(x, values, head_mixture(self.head_logits[...], self.temperature))
        chosen = []
        for name, gate in zip(self.ops, shares(gates["op"]), strict=True):
            branch = OPS[name].branch(self, shared, gate, gates["heads"], train)
            if branch is not None:
                chosen.append((gate, branch))
        parts = [self._tokens(x, chosen)] if self.geometry.prefix else []
        if not self.geometry.class_only:
            parts.append(self._project([b.patches for _, b in chosen], chosen, x.dtype))
        return jnp.concatenate(parts, axis=1)

    def _tokens(self, x: Array, chosen: list[tuple[Array, Branch]]) -> Array:
        """What becomes of the tokens before the map: some operations mix them, else they pass."""
        mixing = [(gate, b) for gate, b in chosen if b.tokens is not None]
        passing = sum((gate for gate, b in chosen if b.tokens is None), jnp.zeros(()))
        tokens = x[:, : min(self.geometry.prefix, self.geometry.read)]
        mixed = self._project([b.tokens for _, b in mixing], mixing, x.dtype)
        return mixed + passing.astype(x.dtype) * tokens

    def _project(
        self, inputs: list[Any], chosen: list[tuple[Array, Branch]], dtype: jnp.dtype
    ) -> Array:
        """One output projection of all branches side by side."""
        kernel = jnp.concatenate([b.kernel for _, b in chosen])
        bias = sum(gate for gate, _ in chosen) * self.attention.out.bias[...]
        return dense(jnp.concatenate(inputs, axis=-1), cast(kernel, dtype), cast(bias, dtype))


def shares(gates: Array) -> list[Array]:
    """How far each operation is chosen: its own gate is open, and every dearer one is shut."""
    opened = [jnp.ones_like(gates[0]), *gates]
    parts, dearer = [], jnp.ones_like(gates[0])
    for gate in reversed(opened):
        parts.append(gate * dearer)
        dearer = dearer * (1 - gate)
    return parts[::-1]


class SinglePathBlock(Block):
    """A block of the supernet: gates choose its operation, its heads and its FFN units."""

    def __init__(self, block: Block, geometry: Geometry, ops: tuple[str, ...], temperature: float):
        mixer = SinglePathAttention(block.mixer, geometry, ops, temperature)
        super().__init__(
            block.norm1,
            mixer,
            block.norm2,
            block.ffn,
            geometry=geometry,
            dropout=block.dropout,
            drop_path=block.drop_path,
        )
        self.geometry = geometry

    def __call__(  # type: ignore[override]  # a gated block cannot stand where a plain one is
        self,
        tokens: Tokens,
        gates: dict[str, Array],
        *,
        key: Array | None = None,
        train: bool = False,
    ) -> Tokens:
        keys, x = split_key(key, 5), tokens.x
        branch = self.mixer(self.norm1(x), gates, train)
        read = x[:, : self.read] + self.residual(branch, keys[:2])
        units = self.ffn.units(self.norm2(read), keys[2])
        kernel, bias = self.ffn.fc2.weights()
        branch = dense(units, gates["ffn"][:, None].astype(kernel.dtype) * kernel, bias)
        return Tokens(read + self.residual(branch, keys[3:]))

    def plain(self) -> Block:
        """The same norms and FFN, ungated, around the mixer: what pruning cuts down."""
        return Block(
            self.norm1,
            self.mixer,
            self.norm2,
            self.ffn,
            geometry=self.geometry,
            dropout=self.dropout,
            drop_path=self.drop_path,
        )


def supernet(
    dense_model: Model, ops: tuple[str, ...] = PAPER, temperature: float | None = None
) -> Model:
    """Makes every block of a dense model, its weights kept, a ``SinglePathBlock``.

    Args:
      dense_model: stays as it is.
      ops: what a block may choose from, in the order of ``OPS``.
      temperature: of the head mixture; None: as released for the family.

    Raises:
      ValueError: the model is pruned already, or a supernet.
    """
    if dense_model.architecture is not None or any(
        isinstance(block, SinglePathBlock) for block in dense_model.blocks
    ):
        raise ValueError("a supernet is made of a dense model; this one is pruned, or a supernet")
    model = nnx.clone(dense_model)
    if temperature is None:
        temperature = TEMPERATURES[type(model.spec)]
    for i, geometry in enumerate(model.spec.blocks):
        model.blocks[i] = SinglePathBlock(model.blocks[i], geometry, ops, temperature)
    return model
