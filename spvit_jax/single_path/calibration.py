"""``Calibration``: the unlabelled images that scores and repairs look at, and how they run blocks.

A block is looked at by itself, compiled once for all blocks that are alike.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spvit_jax.models import Tokens

Array = jax.Array
HELD_OUT = 4  # one batch in so many is not fitted to: it chooses how much fits are damped


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Images in batches on the devices of a mesh.

    Attributes:
      batches: uint8 images ``[n, height, width, 3]`` and a mask ``[n]`` of those that count.
      normalise: makes them what the network expects; hashable.
      mesh: where they are, divided among all devices.
    """

    batches: tuple[tuple[Array, Array], ...]
    normalise: Callable[[Array], Array]
    mesh: Mesh

    @classmethod
    def of(
        cls,
        images: np.ndarray,
        normalise: Callable[[Array], Array],
        batch_size: int = 32,
        mesh: Mesh | None = None,
    ) -> "Calibration":
        """Takes uint8 images ``[n, height, width, 3]``; the last batch is filled up with blanks."""
        mesh = mesh or Mesh(np.array(jax.devices()), ("data",))
        size = -(-min(batch_size, len(images)) // mesh.size) * mesh.size
        rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

        def place(values: np.ndarray) -> Array:
            return jax.make_array_from_callback(values.shape, rows, lambda index: values[index])

        batches = []
        for start in range(0, len(images), size):
            part = images[start : start + size]
            mask = np.arange(size) < len(part)
            whole = np.zeros((size, *images.shape[1:]), images.dtype)
            whole[: len(part)] = part
            batches.append((place(whole), place(mask)))
        return cls(tuple(batches), normalise, mesh)

    def held_out(self, batch: int) -> bool:
        """Whether a batch only checks fits; none does where there are too few."""
        return len(self.batches) >= HELD_OUT and batch % HELD_OUT == HELD_OUT - 1

    def place(self, module: nnx.Module) -> "Placed":
        """Copies a module to every device."""
        graph, state = nnx.split(module)
        everywhere = NamedSharding(self.mesh, PartitionSpec())

        def copy(leaf: Array) -> Array:
            values = np.asarray(leaf)
            return jax.make_array_from_callback(values.shape, everywhere, lambda i: values[i])

        return Placed(graph, jax.tree.map(copy, state))

    def embed(self, model: nnx.Module) -> Iterator[Tokens]:
        """Runs a model's embedding: the tokens that enter its first block, batch by batch."""
        placed = self.place(model)
        for images, _ in self.batches:
            yield placed(_embed, images, static=(self.normalise,))


@dataclasses.dataclass(frozen=True)
class Placed:
    """A module whose arrays are on a mesh."""

    graph: nnx.GraphDef[Any]
    state: Any

    def __call__(
        self, function: Callable[..., Any], *arrays: Any, static: tuple[Any, ...] = ()
    ) -> Any:
        """Runs ``function(module, *arrays, *static)``, compiled, in float32 throughout."""
        with jax.default_matmul_precision("highest"):
            return _run(function, self.graph, static, self.state, arrays)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run(
    function: Callable[..., Any],
    graph: nnx.GraphDef[Any],
    static: tuple[Any, ...],
    state: Any,
    arrays: tuple[Any, ...],
) -> Any:
    return function(nnx.merge(graph, state), *arrays, *static)


def _embed(model: Any, images: Array, normalise: Callable[[Array], Array]) -> Tokens:
    return Tokens(model.embed(normalise(images)))


def starts_stage(spec: Any, i: int) -> bool:
    """Whether something happens between block ``i`` and the one before it: see ``enter``."""
    return i > 0 and spec.blocks[i].width != spec.blocks[i - 1].width


def enter(model: Any, tokens: Tokens, i: int) -> Tokens:
    """What enters block ``i``, for ``Placed`` to call."""
    return tokens._replace(x=model.enter(i, tokens.x))


def bare(model: Any) -> Any:
    """Copies a model without dropout and stochastic depth, so that blocks that are alike are equal.

    They are off without a random key anyway.
    """
    model = nnx.clone(model)
    for block in model.blocks:
        block.dropout = block.drop_path = block.ffn.dropout = 0.0
    return model


def mean_square(x: Array, mask: Array) -> Array:
    """The mean over masked elements and positions of the sum over features, ``[batch, n, D]``."""
    weight = mask[:, None].astype(x.dtype)
    total = (weight * jnp.square(x).sum(-1)).sum()
    return total / jnp.maximum(mask.sum() * x.shape[1], 1)
