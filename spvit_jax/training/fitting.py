"""Training any model of this package with a loss and batches of one's own."""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import jax
import optax
from flax import nnx

from spvit_jax.training.sharding import batch_sharded, make_mesh, place, sharded, whole
from spvit_jax.training.step import Batch, Loss, Metrics, Step

Model = TypeVar("Model", bound=nnx.Module)


def fit(
    model: Model,
    batches: Iterable[Batch],
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    steps: int,
    seed: int = 0,
    after_step: Callable[[int, Metrics], object] = lambda number, metrics: None,
) -> Model:
    """Trains a copy of ``model`` on all devices of this process.

        def loss(model, batch, key):
            (logits,) = model.heads(batch["images"], key=key, train=True)
            return optax.softmax_cross_entropy(logits, batch["targets"]).mean(), {}

        small = fit(small, batches, loss=loss, optimizer=optax.adamw(1e-4), steps=1000)

    Args:
      batches: dicts of arrays whose first axis is the batch, which the devices divide; any names.
      loss: ``(model, batch, key) -> (value, metrics)``; see ``Step``.
      optimizer: of the weights.
      steps: how many to take.
      seed: of the keys that ``loss`` is given.
      after_step: is given the number of each step, from 1, and its metrics: the loss's own, "loss"
        and "gradient_norm".

    Raises:
      ValueError: there are fewer batches than steps.
    """
    mesh, graph, rule = make_mesh(), nnx.graphdef(model), Step(loss, optimizer)
    state = rule.initial(model, seed)
    shards = sharded(mesh, state)
    state, take = place(state, shards), partial(rule.program(graph, mesh, state), None)
    number = 0
    for number, batch in enumerate(itertools.islice(batches, steps), start=1):
        state, metrics = take(state, jax.device_put(batch, batch_sharded(mesh)))
        after_step(number, metrics)
    if number < steps:
        raise ValueError(f"{steps} steps need as many batches; there were {number}")
    params, stats = whole(mesh, (state.params, state.stats))
    return nnx.merge(graph, params, stats, copy=True)
