"""The teacher of a distillation: a frozen network with a normalisation of its own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from spvit_jax.models import Classifier
from spvit_jax.training.normalise import Normalise

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A network from which a student learns.

    Its arrays are an argument of the step and not part of the training's state: no gradient, no
    optimiser, no checkpoint.
    """

    graph: nnx.GraphDef
    state: nnx.State
    normalise: Normalise

    def logits(self, state: nnx.State, images: Array, normalise: Normalise) -> Array:
        """``[batch, classes]`` for images the student's way, with the arrays given as ``state``."""
        return self._model(state)(self.normalise.convert(images, normalise))

    def stream(self, state: nnx.State, images: Array, normalise: Normalise) -> list[Array]:
        """The tokens that leave each block, unmerged; arguments as for ``logits``."""
        stream = self._model(state).stream(self.normalise.convert(images, normalise))
        return [tokens.unmerged() for tokens in stream]

    def _model(self, state: nnx.State) -> Any:
        return nnx.merge(self.graph, state, copy=True)


def freeze(model: Classifier, normalise: Normalise) -> Teacher:
    """``model`` as a teacher. Its kernels are kept in the dtype it computes in: half the memory
    in bfloat16, and the same logits.
    """
    graph, state = nnx.split(model)

    def narrow(path: tuple, leaf: nnx.Variable) -> nnx.Variable:
        return leaf.replace(leaf.get_value().astype(model.dtype)) if path[-1] == "kernel" else leaf

    if model.dtype is not None:
        leaves = [(path, narrow(path, leaf)) for path, leaf in nnx.to_flat_state(state)]
        state = nnx.from_flat_state(leaves)
    return Teacher(graph, jax.tree.map(jnp.asarray, state), normalise)
