"""Pruning, folding and counting: surgery on a model's blocks, returning a new model.

dense or supernet -> ``prune`` -> shared form -> ``fold`` -> folded, with or without batch norm.
"""

from typing import Any, TypeVar

import jax.numpy as jnp
from flax import nnx

from spvit_jax.models.layers import Attention, BatchNorm, Block, Geometry, Identity
from spvit_jax.single_path.architecture import (
    NORM_SKIP,
    Architecture,
    ArchitectureError,
    by_magnitude,
)
from spvit_jax.single_path.sharing import KERNEL_SIZES, TAPS, FoldedConv, SharedConv
from spvit_jax.single_path.supernet import SinglePathAttention

Model = TypeVar("Model", bound=Any)  # a network with ``spec`` and ``blocks``


def prune(model: Model, architecture: Architecture) -> Model:
    """The network of ``architecture``, its weights slices of ``model``'s; shared form.

    From a dense model convolutions start with equal head shares and a fresh batch norm, as the
    released code does; from a supernet they keep what search has learnt.

    Raises:
      ArchitectureError: the architecture does not fit the model.
    """
    architecture.check(model.spec)
    architecture = by_magnitude(architecture, model)
    model = nnx.clone(model)
    for i, geometry in enumerate(model.spec.blocks):
        block, op, units = model.blocks[i], architecture.ops[i], architecture.ffn[i]
        whole = block.ffn.fc1.kernel.shape[1] == geometry.hidden
        if not (whole and isinstance(block.mixer, Attention | SinglePathAttention)):
            raise ArchitectureError("prune a dense model or a supernet, not a pruned model")
        _keep_units(block.ffn, jnp.asarray(units, int))
        norm1, mixer = _mixer(op, block, geometry, model.spec.temperature)
        model.blocks[i] = Block(
            norm1,
            mixer,
            block.norm2,
            block.ffn,
            dropout=block.dropout,
            drop_path=block.drop_path,
        )
    return model


def _keep_units(ffn: Any, units: jnp.ndarray) -> None:
    ffn.fc1.kernel = nnx.Param(ffn.fc1.kernel[...][:, units])
    ffn.fc1.bias = nnx.Param(ffn.fc1.bias[...][units])
    ffn.fc2.kernel = nnx.Param(ffn.fc2.kernel[...][units])


def _mixer(op: str, block: Any, geometry: Geometry, temperature: float) -> tuple[Any, Any]:
    """norm1 and mixer of a pruned block."""
    if op == "skip":
        return None, None
    if op == NORM_SKIP:
        return block.norm1, Identity()
    searched = isinstance(block.mixer, SinglePathAttention)
    attention = block.mixer.attention if searched else block.mixer
    if op == "msa":
        return block.norm1, attention
    if searched:
        head_logits = block.mixer.head_logits[...]
        norm = block.mixer.norm1x1 if op == "conv1x1" else block.mixer.norm3x3
    else:
        head_logits = jnp.ones((geometry.heads, TAPS))
        norm = BatchNorm(geometry.head_dim)
    size = KERNEL_SIZES[op]
    return block.norm1, SharedConv(attention, head_logits, norm, size, geometry, temperature)


def fold(model: Model, *, batch_norm: bool = False) -> Model:
    """The same function with every convolution as plain layers.

    Args:
      model: a pruned model, shared or folded.
      batch_norm: fold the batch norms too, with their running statistics: for deployment.
    """
    model = nnx.clone(model)
    for block in model.blocks:
        if isinstance(block.mixer, SharedConv):
            block.mixer = _folded(block.mixer)
        if batch_norm and isinstance(block.mixer, FoldedConv) and block.mixer.norm is not None:
            _fold_norm(block.mixer, block.mixer.norm)
    return model


def _folded(conv: SharedConv) -> FoldedConv:
    kernel, bias, out_kernel, out_bias = conv.kernels()
    out = nnx.clone(conv.out)
    out.kernel, out.bias = nnx.Param(out_kernel), nnx.Param(out_bias)
    return FoldedConv(kernel, bias, conv.norm, out, conv.geometry)


def _fold_norm(conv: FoldedConv, norm: BatchNorm) -> None:
    scale = norm.scale[...] / jnp.sqrt(norm.var[...] + norm.EPSILON)
    conv.kernel[...] = conv.kernel[...] * scale
    conv.bias[...] = (conv.bias[...] - norm.mean[...]) * scale + norm.bias[...]
    conv.norm = None


def count_parameters(model: nnx.Module) -> int:
    """Trainable numbers; running statistics are not counted."""
    return sum(p.size for p in nnx.to_flat_state(nnx.state(model, nnx.Param)).leaves)
