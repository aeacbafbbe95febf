"""The norm alone: what released skips compute, ``x + norm1(x)``. No search offers it."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Identity
from spvit_jax.single_path.ops.op import Names, Op


class NormSkip(Op):
    """A skip of the released code. One whose norm is all zero is a true skip."""

    name = "norm_skip"
    label = "norm skip"
    colour = "#a6a6a6"
    searched = False

    def parameters(self, geometry: Geometry) -> int:
        return 2 * geometry.width

    def pruned(self, mixer: Any) -> Identity:
        return Identity()

    def names(self, form: str) -> Names:
        return ()

    def found_in(self, block: Mapping[str, np.ndarray]) -> bool:
        return any(block[name].any() for name in ("norm1.weight", "norm1.bias") if name in block)
