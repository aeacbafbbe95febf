"""Multiply-accumulates of a model under gates, as the paper and its release count them.

One function for soft, sampled and decided gates: on integer NumPy gates the count is an exact
integer. The formula leaves out the class token's share of the FFNs; ``class_token_macs`` is what
that amounts to, so that the count can be checked against the traced program.
"""

from typing import Any

import numpy as np

from spvit_jax.models import Geometry
from spvit_jax.single_path.gates import BlockGates, Gates


def op_macs(block: Geometry) -> dict[str, int]:
    """MACs of each operation that can stand in a block's attention layer, norms left out."""
    dim, head_dim, patches = block.width, block.head_dim, block.patches
    window = block.tokens // block.windows
    return {
        "skip": 0,
        "conv1x1": 2 * dim * head_dim * patches,
        "conv3x3": 10 * dim * head_dim * patches,
        "msa": block.windows * (4 * window * dim**2 + 2 * window**2 * dim),
    }


def unit_macs(block: Geometry) -> int:
    """MACs of one FFN unit, over the patch tokens."""
    return 2 * block.patches * block.width


def cost(spec: Any, gates: Gates) -> Any:
    """MACs of a network with the given gates; kernel gates nested.

    Args:
      spec: the dense model's; gives ``blocks`` and ``fixed_macs``.
      gates: integer NumPy arrays for an exact count, or JAX arrays.
    """
    total = spec.fixed_macs + sum(2 * b.width * b.tokens for b in spec.blocks)
    total = np.asarray(total).astype(gates[0].kernel.dtype)
    for block, gate in zip(spec.blocks, gates, strict=True):
        steps = np.diff(list(op_macs(block).values())).astype(gate.kernel.dtype)
        total = total + (steps * gate.kernel).sum() + unit_macs(block) * gate.ffn.sum()
    return total


def dense_macs(spec: Any) -> int:
    """MACs of the dense model."""
    ones = tuple(BlockGates(np.ones(3, np.int64), np.ones(b.hidden, np.int64)) for b in spec.blocks)
    return int(cost(spec, ones))


def class_token_macs(spec: Any, ffn_widths: tuple[int, ...]) -> int:
    """What the class tokens add to the FFNs, which ``cost`` leaves out."""
    pairs = zip(spec.blocks, ffn_widths, strict=True)
    return sum(2 * block.prefix * block.width * width for block, width in pairs)
