"""The supernet: a dense model whose attention layers contain their convolutions.

With hard gates a block computes exactly what its pruned form will. Gates multiply parameters,
not activations: choosing an operation is choosing which weights to use, so a gated FFN or
projection costs what the dense one does.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.layers import (
    Array,
    Attention,
    BatchNorm,
    Block,
    Geometry,
    cast,
    dense,
    split_key,
)
from spvit_jax.single_path.gates import BlockGates
from spvit_jax.single_path.sharing import CENTRE, TAPS, head_mixture, mix_values, tap_outputs

Model = TypeVar("Model", bound=Any)  # a network with ``spec`` and ``blocks``


class SinglePathAttention(nnx.Module):
    """MSA, 3x3, 1x1 and skip in one set of weights."""

    def __init__(self, attention: Attention, geometry: Geometry, temperature: float):
        self.attention = attention
        self.head_logits = nnx.Param(jnp.ones((geometry.heads, TAPS)))
        self.norm1x1 = BatchNorm(geometry.head_dim)
        self.norm3x3 = BatchNorm(geometry.head_dim)
        self.geometry = geometry
        self.temperature = temperature

    def __call__(self, x: Array, gates: Array, train: bool) -> Array:
        """``gates [3]``, nested, on normalised tokens ``[batch, prefix + S*S, D]``."""
        attention, prefix = self.attention, self.geometry.prefix
        kernel, bias = attention.v.weights()
        x = cast(x, attention.v.dtype)
        values = dense(x, kernel)  # computed once, for all branches
        mixture = head_mixture(self.head_logits[...], self.temperature)
        attended = attention.attend(x, values + bias)
        conv1, conv3 = self._convolutions(values[:, prefix:], cast(mixture, x.dtype), train)

        use_msa = gates[2]
        use_conv3 = gates[1] * (1 - gates[2])
        use_conv1 = gates[0] * (1 - gates[1]) * (1 - gates[2])
        outputs = tap_outputs(attention.out, mixture)
        out, out_bias = attention.out.kernel[...], attention.out.bias[...]
        patch_kernel = jnp.concatenate(
            [use_msa * out, use_conv3 * outputs.sum(0), use_conv1 * outputs[CENTRE]]
        )
        branches = jnp.concatenate([attended[:, prefix:], conv3, conv1], axis=-1)
        any_branch = use_msa + use_conv3 + use_conv1
        patches = dense(branches, cast(patch_kernel, x.dtype), cast(any_branch * out_bias, x.dtype))
        if prefix == 0:
            return patches
        msa_kernel, msa_bias = cast(use_msa * out, x.dtype), cast(use_msa * out_bias, x.dtype)
        passed = (use_conv3 + use_conv1).astype(x.dtype) * x[:, :prefix]
        tokens = dense(attended[:, :prefix], msa_kernel, msa_bias) + passed
        return jnp.concatenate([tokens, patches], axis=1)

    def _convolutions(self, values: Array, mixture: Array, train: bool) -> tuple[Array, Array]:
        """Both hidden maps ``[batch, S*S, d]``, of values ``[batch, S*S, D]`` without bias."""
        geometry = self.geometry
        batch, grid, heads = values.shape[0], geometry.grid, geometry.heads
        conv1, conv3 = mix_values(values.reshape(batch, grid, grid, -1), mixture)
        head_bias = cast(self.attention.v.bias[...], values.dtype).reshape(heads, -1)
        bias = jnp.einsum("hd,ht->td", head_bias, mixture)
        conv1 = self.norm1x1(conv1 + bias[CENTRE], train)
        conv3 = self.norm3x3(conv3 + bias.sum(0), train)
        flat = (batch, grid * grid, geometry.head_dim)
        return jax.nn.relu(conv1).reshape(flat), jax.nn.relu(conv3).reshape(flat)


class SinglePathBlock(Block):
    """A block of the supernet: gates choose its operation and its FFN units."""

    def __init__(self, block: Block, geometry: Geometry, temperature: float):
        mixer = SinglePathAttention(block.mixer, geometry, temperature)
        super().__init__(
            block.norm1,
            mixer,
            block.norm2,
            block.ffn,
            dropout=block.dropout,
            drop_path=block.drop_path,
        )

    def __call__(  # type: ignore[override]  # a gated block cannot stand where a plain one is
        self, x: Array, gates: BlockGates, *, key: Array | None = None, train: bool = False
    ) -> Array:
        keys = split_key(key, 5)
        x = x + self.residual(self.mixer(self.norm1(x), gates.kernel, train), keys[:2])
        return x + self.residual(self.ffn(self.norm2(x), gates.ffn, keys[2]), keys[3:])


def supernet(dense_model: Model) -> Model:
    """The dense model, its weights kept, with every block made a ``SinglePathBlock``."""
    model = nnx.clone(dense_model)
    for i, geometry in enumerate(model.spec.blocks):
        model.blocks[i] = SinglePathBlock(model.blocks[i], geometry, model.spec.temperature)
    return model
