"""``Space``: what a search may choose from."""

import dataclasses
from typing import Any

import numpy as np

from spvit_jax.models import Geometry
from spvit_jax.single_path.axes import AXES, GATED, FfnAxis, TokensAxis
from spvit_jax.single_path.merging import Merges
from spvit_jax.single_path.ops import OPS, PAPER


class SpaceError(ValueError):
    """A search space that no model, or not this one, can have."""


@dataclasses.dataclass(frozen=True)
class Space:
    """The axes under gates, the operations, and which gate each FFN unit hangs on.

    Attributes:
      blocks: what each block of the dense model works on, less the tokens merged away.
      ops: the operations, from the cheapest to attention; a part of ``OPS`` in its order.
      axes: those that may be touched; the others stay as they are in the dense model.
      members: the gate of each FFN unit, one array per block; (): each unit has its own.

    Raises:
      SpaceError: no such axes or operations, or not in their order.
    """

    blocks: tuple[Geometry, ...]
    ops: tuple[str, ...] = PAPER
    axes: tuple[str, ...] = ("op", "ffn")
    members: tuple[np.ndarray, ...] = ()

    def __post_init__(self) -> None:
        if not self.gated or set(self.axes) - set(AXES) or len(set(self.axes)) < len(self.axes):
            raise SpaceError(f"axes must be different ones of {', '.join(AXES)}; got {self.axes!r}")
        merging, refused = TokensAxis(), ""
        if merging.name in self.axes:
            refused = min((merging.refuses(block) for block in self.blocks), key=len)
        if refused:
            raise SpaceError(f"axes: no tokens can be merged in this model: {refused}")
        offered = [name for name, op in OPS.items() if op.searched]
        ordered = tuple(op for op in offered if op in self.ops)
        if self.ops != ordered or self.ops[-1:] != ("msa",) or len(self.ops) < 2:
            raise SpaceError(
                f"ops must be two or more of {', '.join(offered)}, in this order and with msa,"
                f" which the dense model has; got {self.ops!r}"
            )

    @property
    def gated(self) -> tuple[str, ...]:
        """The axes under gates."""
        return tuple(name for name in self.axes if name in GATED)

    @property
    def merges(self) -> Merges:
        """How many tokens each block merges away; () where none does."""
        counts = tuple(block.merges for block in self.blocks)
        return counts if any(counts) else ()

    def gates(self, axis: str, i: int) -> int:
        """Counts the gate logits of an axis in block ``i``."""
        if axis == FfnAxis.name and self.members:
            return int(self.members[i].max()) + 1
        return AXES[axis].gates(self.blocks[i], self.ops)

    def spread(self, axis: str, i: int, own: Any) -> Any:
        """Gives each member of a group of block ``i`` its group's gate."""
        return own[self.members[i]] if axis == FfnAxis.name and self.members else own


def group_units(spec: Any, size: int, dense: Any = None) -> tuple[np.ndarray, ...]:
    """Puts FFN units under common gates, ``size`` to a gate.

    Args:
      spec: the dense model's.
      size: units per gate; has to divide those of every block.
      dense: the model, whose units of like magnitude come together; None: neighbours do.

    Returns:
      The gate of each unit, an array per block; () for 1.

    Raises:
      SpaceError: ``size`` does not divide the units of a block.
    """
    if size == 1:
        return ()
    members = []
    for i, geometry in enumerate(spec.blocks):
        if geometry.hidden % size:
            raise SpaceError(
                f"search.unit_group={size} does not divide the {geometry.hidden} FFN units of block"
                f" {i}; choose a divisor of that"
            )
        rank = np.arange(geometry.hidden)
        if dense is not None:
            strength = FfnAxis().strength(dense.blocks[i])
            rank = np.argsort(np.argsort(-strength, kind="stable"), kind="stable")
        members.append(rank // size)
    return tuple(members)
