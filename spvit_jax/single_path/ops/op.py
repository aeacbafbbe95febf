"""What an operation says of itself, and what a search hands it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from spvit_jax.models import tokens
from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Array

Names = tuple[tuple[str, str, str], ...]  # ours and theirs, below the mixer and the block, and how
# one becomes the other: a key of what ``convert.blocks.kinds`` returns


class Shared(NamedTuple):
    """What a block's attention layer computes once, for all operations."""

    x: Array  # [batch, tokens, D], normalised
    values: Array  # [batch, tokens, D], their value projection, bias left out
    mixture: Array  # [heads, 9], the heads' shares of each tap


class Branch(NamedTuple):
    """An operation under a gate, before the one output projection that all of them share."""

    kernel: Array  # [k, D], times the gate
    patches: Array | None  # [batch, patches, k]; None where no patch is read
    tokens: Array | None  # [batch, prefix, k]; None: the class tokens pass, as ``x`` has them


class Op:
    """Something that can stand in a block's attention layer; by itself, nothing at all.

    Attributes:
      name: in an architecture's JSON.
      label: in figures.
      colour: there; told apart by colour-blind eyes too.
      norm1: whether it looks at the tokens through the block's first norm.
      searched: whether a search may offer it.
      keyed: whether it has keys, by which tokens are merged; else they are by the FFN's input.
      size: taps per side, where it is a convolution that least squares may fit; else 0.
    """

    name: str
    label: str
    colour: str
    norm1 = True
    searched = True
    keyed = False
    size = 0

    def fits(self, geometry: Geometry) -> bool:
        """Whether it can stand there: a map of which tokens are merged is none any more."""
        return True

    def macs(self, geometry: Geometry) -> int:
        """Counts multiply-accumulates per image as the folded model runs, heads left out."""
        return 0

    def published_macs(self, geometry: Geometry) -> int:
        """Counts them as the paper does, norms and heads left out."""
        return 0

    def merging(self, geometry: Geometry) -> int:
        """Counts the multiply-accumulates of the tokens' merging behind it."""
        width = geometry.key_dim if self.keyed else geometry.width
        prefix, merges = geometry.prefix, geometry.merges
        return tokens.macs(geometry.patches, prefix, merges, geometry.width, width)

    def parameters(self, geometry: Geometry) -> int:
        """Counts the parameters of the folded form, its ``norm1`` among them, heads left out."""
        return 0

    def parts(self, geometry: Geometry) -> Any:
        """Makes the module that a search trains beside the shared weights; None: needs none."""
        return None

    def branch(self, mixer: Any, shared: Shared, gate: Array, heads: Array, train: bool) -> Any:
        """Computes the operation from the shared weights.

        Args:
          mixer: the ``SinglePathAttention``.
          shared: what it has computed for all operations.
          gate: how far this operation is chosen, 0..1.
          heads: how far each head of attention is, ``[heads]``.
          train: as for a batch norm.

        Returns:
          A ``Branch``; None: nothing is added.
        """
        return None

    def pruned(self, mixer: Any) -> Any:
        """Takes the module that stands here once it is chosen; None: a skip, without ``norm1``."""
        return None

    def folded(self, module: Any, batch_norm: bool) -> Any:
        """Folds that module, its batch norm too if asked, into plain layers."""
        return module

    def names(self, form: str) -> Names | None:
        """Says how the released code calls the arrays of a form; None: it has no such operation.

        Args:
          form: ``shared`` or ``folded``, of the module itself; ``supernet``, of ``parts``.
        """
        return None

    def found_in(self, block: Mapping[str, np.ndarray]) -> bool:
        """Whether the arrays of a block in PyTorch are of this operation."""
        return False
