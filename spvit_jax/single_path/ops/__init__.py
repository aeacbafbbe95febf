"""The operations that can stand in a block's attention layer, each in a file of its own.

To add one, write its file and its line here. The order is that of nesting: a gate says "at least
this operation", so that a dearer one stands behind a cheaper.
"""

from spvit_jax.single_path.ops.conv1x1 import CONV1X1
from spvit_jax.single_path.ops.conv3x3 import CONV3X3
from spvit_jax.single_path.ops.msa import Msa
from spvit_jax.single_path.ops.norm_skip import NormSkip
from spvit_jax.single_path.ops.op import Branch, Names, Op, Shared
from spvit_jax.single_path.ops.skip import Skip

OPS: dict[str, Op] = {op.name: op for op in (Skip(), NormSkip(), CONV1X1, CONV3X3, Msa())}
PAPER = ("skip", "conv1x1", "conv3x3", "msa")  # what the paper's search chooses from

__all__ = ["OPS", "PAPER", "Branch", "Names", "Op", "Shared"]
