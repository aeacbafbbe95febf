"""How near a model's features are to another's, without labels; and features for probes."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.data.errors import DataError
from spvit_jax.data.pipeline import eval_batches, to_device
from spvit_jax.data.sources import Source
from spvit_jax.training.evaluate import Evaluator
from spvit_jax.training.loop import Interrupted
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import batch_sharded, local_rows, place, replicated

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Distance:
    """How far features are from others of the same images; see ``Quality``."""

    images: int
    cosine: float
    worst: float  # of all images
    error: float


def distances(
    evaluator: Evaluator, model: Any, other: Any, after_batch: Any = lambda: None
) -> tuple[Distance, Distance | None]:
    """Compares what the heads of both see of the test images, and the patches where these are read.

    Raises:
      Interrupted: the run is to stop.
      DataError: no image can be decoded.
    """
    kinds = (_heads,) if model.spec.blocks[-1].class_only else (_heads, _patches)
    mesh, normalise = evaluator.mesh, Normalise(evaluator.data.mean, evaluator.data.std)
    (graph, one), (other_graph, two) = nnx.split(model), nnx.split(other)

    def step(one: Any, two: Any, batch: dict[str, Array]) -> list[tuple[Array, ...]]:
        images = normalise(batch["image"])
        mine, theirs = nnx.merge(graph, one), nnx.merge(other_graph, two)
        ends = mine.stream(images)[-1], theirs.stream(images)[-1]
        return [_sums(kind(mine, ends[0]), kind(theirs, ends[1]), batch["mask"]) for kind in kinds]

    run = jax.jit(step, out_shardings=replicated(mesh))
    states = [place(s, jax.tree.map(lambda _: replicated(mesh), s)) for s in (one, two)]
    rows: list[Any] = []
    for batch in batches(evaluator, evaluator.test, model.spec.image_size):
        rows.append(jax.device_get(run(*states, batch)))
        after_batch()
    results = [_distance([row[kind] for row in rows]) for kind in range(len(kinds))]
    return results[0], results[1] if len(results) > 1 else None


def features(evaluator: Evaluator, model: Any, source: Source) -> tuple[Any, Any]:
    """What the head sees, or would see, of a source's images ``[n, D]``, and their labels."""
    mesh, normalise = evaluator.mesh, Normalise(evaluator.data.mean, evaluator.data.std)
    graph, state = nnx.split(model)

    def step(state: Any, batch: dict[str, Array]) -> tuple[Array, ...]:
        network = nnx.merge(graph, state)
        seen = network.features(network.stream(normalise(batch["image"]))[-1])[:, 0]
        return seen, batch["label"], batch["mask"]

    run = jax.jit(step, out_shardings=replicated(mesh))
    placed = place(state, jax.tree.map(lambda _: replicated(mesh), state))
    rows, labels = [], []
    for batch in batches(evaluator, source, model.spec.image_size):
        seen, label, mask = jax.device_get(run(placed, batch))
        rows.append(np.asarray(seen, np.float64)[mask])
        labels.append(np.asarray(label)[mask])
    return np.concatenate(rows), np.concatenate(labels)


def batches(evaluator: Evaluator, source: Source, size: int) -> Iterator[Any]:
    """The images of a source on the devices, a batch at a time.

    Raises:
      Interrupted: the run is to stop.
    """
    loader = eval_batches(
        source,
        evaluator.data,
        batch_size=evaluator.batch_size,
        rows=local_rows(evaluator.mesh, evaluator.batch_size),
        image_size=size,
    )
    for batch in loader:
        if evaluator.should_stop():
            raise Interrupted("stopped during an evaluation, which begins again")
        yield to_device(batch, batch_sharded(evaluator.mesh))


def _heads(model: Any, tokens: Any) -> Array:
    return model.features(tokens)


def _patches(model: Any, tokens: Any) -> Array:
    return model.patch_features(tokens)


def _sums(mine: Array, theirs: Array, mask: Array) -> tuple[Array, ...]:
    """Sums over ``[batch, n, D]``: cosines of images, the worst, and what an error is made of."""
    mine, theirs = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (mine, theirs))
    norms = jnp.linalg.norm(mine, axis=-1) * jnp.linalg.norm(theirs, axis=-1)
    tiny = jnp.finfo(norms.dtype).tiny
    cosines = ((mine * theirs).sum(-1) / jnp.maximum(norms, tiny)).mean(-1)
    weight = mask[:, None, None].astype(mine.dtype)
    return (
        jnp.where(mask, cosines, 0).sum(),
        jnp.where(mask, cosines, jnp.inf).min(),
        (weight * jnp.square(mine - theirs)).sum(),
        (weight * jnp.square(theirs)).sum(),
        (weight * theirs).sum((0, 1)),
        mask.sum(),
        jnp.asarray(mine.shape[1]),
    )


def _distance(rows: list[Any]) -> Distance:
    columns = zip(*rows, strict=True)
    cosines, worst, off, power, total, images, each = (np.asarray(c, float) for c in columns)
    count = images.sum()
    if not count:
        raise DataError("none of the test images can be decoded; the warnings above say why")
    variance = power.sum() - (total.sum(0) ** 2).sum() / (count * each[0])
    error = off.sum() / max(variance, np.finfo(float).tiny)
    return Distance(int(count), float(cosines.sum() / count), float(worst.min()), float(error))
