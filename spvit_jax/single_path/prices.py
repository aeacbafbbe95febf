"""What gates cost: a base, and what every gate adds to it, in MACs, parameters or milliseconds.

Cost is linear in nested gates, so one function serves soft, sampled and decided ones, whatever the
unit; on integer NumPy gates a count is an exact integer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from spvit_jax.models import MODELS, Geometry, SwinSpec, pooling
from spvit_jax.single_path.axes import GATED, Axis
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.merging import Dims, Merges, merged
from spvit_jax.single_path.ops import OPS


@dataclasses.dataclass(frozen=True)
class Prices:
    """The price of a model by its gates.

    Attributes:
      unit: for messages and tables.
      base: of the model with every gate shut.
      blocks: what each gate adds, for each block an array by axis, shaped as nested gates are.
    """

    unit: str
    base: Any
    blocks: tuple[dict[str, np.ndarray], ...]

    @property
    def dense(self) -> Any:
        """The price of the dense model."""
        return self.base + sum(p.sum().item() for block in self.blocks for p in block.values())


def cost(prices: Prices, gates: Gates) -> Any:
    """Prices nested gates: integer NumPy arrays for an exact count, or JAX arrays."""
    total = _for(gates[0]["op"], np.asarray(prices.base))
    for price, block in zip(prices.blocks, gates, strict=True):
        for axis, gate in block.items():
            total = total + (_for(gate, price[axis]) * gate).sum()
    return total


def _for(gate: Any, price: np.ndarray) -> np.ndarray:
    """A price in the gates' dtype; milliseconds stay what they are beside integer gates."""
    return price if gate.dtype.kind == "i" else price.astype(gate.dtype)


def macs(spec: Any, ops: tuple[str, ...] = (), merges: Merges = (), dims: Dims = ()) -> Prices:
    """Multiply-accumulates per image, as the folded program runs them.

    Args:
      spec: the dense model's.
      ops: what the gates choose from; (): all of ``OPS``.
      merges: the tokens that each block merges away; (): none.
      dims: the features of the heads' keys and values in each block; (): all.
    """
    ops, blocks = ops or tuple(OPS), merged(spec, merges, dims)
    base = _embedding_and_head(spec, blocks) + sum(
        OPS[ops[0]].macs(b) + OPS[ops[0]].merging(b) for b in blocks
    )
    return Prices("MACs", base, _blocks(blocks, ops, lambda axis, *of: axis.macs(*of)))


def published_macs(
    spec: Any, ops: tuple[str, ...] = (), merges: Merges = (), dims: Dims = ()
) -> Prices:
    """Multiply-accumulates by the paper's formula, for its tables and its searches.

    Norms count as a multiplication per feature and the class tokens' share of FFNs is left out;
    what nobody reads is counted.
    """
    ops, blocks = ops or tuple(OPS), merged(spec, merges, dims)
    base = _embedding_and_head(spec, blocks) + _published_norms(spec, blocks)
    base += sum(OPS[ops[0]].published_macs(b) + OPS[ops[0]].merging(b) for b in blocks)
    block_prices = _blocks(blocks, ops, lambda axis, *of: axis.published_macs(*of))
    return Prices("MACs (as published)", base, block_prices)


def parameters(
    spec: Any, ops: tuple[str, ...] = (), merges: Merges = (), dims: Dims = ()
) -> Prices:
    """Parameters of the folded model, batch norms folded too; merging has none."""
    ops = ops or tuple(OPS)

    def parts(blocks: tuple[Geometry, ...]) -> Prices:
        return Prices("parameters", 0, _blocks(blocks, ops, lambda axis, *of: axis.parameters(*of)))

    base = _dense_parameters(spec) - parts(spec.blocks).dense
    return dataclasses.replace(parts(merged(spec, (), dims)), base=base)


def _blocks(
    blocks: tuple[Geometry, ...],
    ops: tuple[str, ...],
    price: Callable[[Axis, Any, tuple[Any, ...]], np.ndarray],
) -> tuple[dict[str, np.ndarray], ...]:
    return tuple({name: price(axis, b, ops) for name, axis in GATED.items()} for b in blocks)


def _embedding_and_head(spec: Any, blocks: tuple[Geometry, ...]) -> int:
    """MACs outside the blocks: patch embedding, patch merging, pooling, heads."""
    first, last = blocks[0], blocks[-1]
    total = (
        first.patches * first.width * spec.channels * spec.patch_size**2 + last.width * spec.classes
    )
    if isinstance(spec, SwinSpec):
        for stage in range(len(spec.depths) - 1):
            total += math.prod(spec.grid(stage + 1)) * 8 * (spec.width << stage) ** 2
        return total
    if spec.pool == "attention":
        total += pooling.macs(last)
    return total + spec.distilled * last.width * spec.classes


def _published_norms(spec: Any, blocks: tuple[Geometry, ...]) -> int:
    """What the paper's formula counts for norms, as released."""
    total = sum(block.width * (2 * block.tokens - block.merges) for block in blocks)
    if not isinstance(spec, SwinSpec):
        return total
    stages = len(spec.depths)
    maps = [math.prod(spec.grid(stage)) * (spec.width << stage) for stage in range(stages)]
    last = (spec.width << (stages - 1)) * math.prod(spec.grid(0)) // 2**stages
    return total + maps[0] + sum(maps[:-1]) + last


@functools.cache
def _dense_parameters(spec: Any) -> int:
    return count_parameters(nnx.eval_shape(lambda: MODELS[type(spec)](spec, rngs=nnx.Rngs(0))))


def count_parameters(model: nnx.Module) -> int:
    """Counts trainable numbers; running statistics are none."""
    return sum(p.size for p in nnx.to_flat_state(nnx.state(model, nnx.Param)).leaves)
