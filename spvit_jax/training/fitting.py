"""Training any model of this package with a loss and batches of one's own."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

import jax
import optax
from flax import nnx

from spvit_jax.training.optim import decay_mask
from spvit_jax.training.sharding import batch_sharded, make_mesh, place, sharded, whole
from spvit_jax.training.step import Batch, Loss, Metrics, Step

Model = TypeVar("Model", bound=nnx.Module)
SHOWN = 10  # steps between losses in the bar


def fit(
    model: Model,
    batches: Iterable[Batch],
    *,
    loss: Loss,
    steps: int,
    learning_rate: float = 1e-4,
    optimizer: optax.GradientTransformation | None = None,
    seed: int = 0,
    progress: bool = True,
    after_step: Callable[[int, Metrics], object] = lambda number, metrics: None,
) -> Model:
    """Trains a copy of ``model`` on all devices of this process.

        def loss(model, batch, key):
            (logits,) = model.heads(batch["images"], key=key, train=True)
            return optax.softmax_cross_entropy(logits, batch["targets"]).mean(), {}

        small = fit(small, batches, loss=loss, steps=1000)

    Args:
      model: of any form; stays as it is.
      batches: dicts of arrays whose first axis is the batch, which the devices divide; any names.
        A list, or what else can be gone through again, is, as often as the steps take.
      loss: ``(model, batch, key) -> (value, metrics)``; see ``Step``.
      steps: how many to take.
      learning_rate: the peak of AdamW's, reached after a twentieth of the steps and then falling to
        0 along a cosine; its weight decay is 0.05, of kernels alone.
      optimizer: of the weights, in place of that.
      seed: of the keys that ``loss`` is given.
      progress: whether a bar shows steps and loss.
      after_step: is given the number of each step, from 1, and its metrics: the loss's own, "loss"
        and "gradient_norm".

    Raises:
      ValueError: there are fewer batches than steps, and they can be gone through but once.
    """
    from spvit_jax.progress import Console  # a step alone does without bars

    optimizer = optimizer or _adamw(learning_rate, steps)
    mesh, graph, rule = make_mesh(), nnx.graphdef(model), Step(loss, optimizer)
    state = rule.initial(model, seed)
    shards = sharded(mesh, state)
    state, take = place(state, shards), partial(rule.program(graph, mesh, state), None)
    endless = _again(batches, steps)
    with Console(silent=not progress).bar(steps, 0, "fit") as bar:
        for number in range(1, steps + 1):
            state, metrics = take(state, jax.device_put(next(endless), batch_sharded(mesh)))
            if number % SHOWN == 0 or number == steps:  # reading a value waits for the device
                bar.show({"loss": metrics["loss"]})
            bar.update()
            after_step(number, metrics)
    params, stats = whole(mesh, (state.params, state.stats))
    trained: Model = nnx.merge(graph, params, stats, copy=True)
    return trained


def _adamw(peak: float, steps: int) -> optax.GradientTransformation:
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, max(steps // 20, 1), max(steps, 2))
    return optax.adamw(rate, weight_decay=0.05, mask=decay_mask)


def _again(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    """The batches, from the first again after the last; ValueError where that cannot be."""
    count = 0
    while True:
        before = count
        for batch in batches:
            count += 1
            yield batch
        if count == before:
            raise ValueError(f"{steps} steps need as many batches; there were {count}")
