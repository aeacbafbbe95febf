"""Nothing: the tokens stay as they are."""

from collections.abc import Mapping

import numpy as np

from spvit_jax.single_path.ops.op import Names, Op


class Skip(Op):
    """The cheapest operation."""

    name = "skip"
    label = "skip"
    colour = "#d9d9d9"
    norm1 = False

    def names(self, form: str) -> Names:
        return ()

    def found_in(self, block: Mapping[str, np.ndarray]) -> bool:
        """Anything may be a skip: it leaves no trace. Asked last."""
        return True
