"""Training any model of this package with a loss and batches of one's own."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
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
      ValueError: ``steps`` is below 1, a batch has no such arrays, or there are fewer batches than
        steps, and they can be gone through but once.
      TypeError: a batch is no dict, or ``loss`` does not return a value and a dict.
      NonFiniteLoss: the weights are no longer numbers; looked for where the loss shown is none.
    """
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}")
    # Imported late: a step alone does without bars and checkpoints.
    from spvit_jax.progress import Console

    optimizer = optimizer or _adamw(learning_rate, steps)
    mesh, graph, rule = make_mesh(), nnx.graphdef(model), Step(_returning(loss), optimizer)
    state = rule.initial(model, seed)
    shards = sharded(mesh, state)
    state, take = place(state, shards), partial(rule.program(graph, mesh, state), None)
    endless = _again(batches, steps)
    with Console(silent=not progress).bar(steps, 0, "fit") as bar:
        for number in range(1, steps + 1):
            batch = next(endless)
            _check(batch, mesh.size)
            state, metrics = take(state, jax.device_put(batch, batch_sharded(mesh)))
            if number % SHOWN == 0 or number == steps:  # reading a value waits for the device
                bar.show({"loss": metrics["loss"]})
                _check_finite(number, metrics["loss"], state.params)
            bar.update()
            after_step(number, metrics)
    params, stats = whole(mesh, (state.params, state.stats))
    trained: Model = nnx.merge(graph, params, stats, copy=True)
    return trained


def _returning(loss: Loss) -> Loss:
    """The loss, with an error that says what it should have returned."""

    def checked(model: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        value = loss(model, batch, key)
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
            if jnp.shape(value[0]) == ():
                return value
            kind = f"a value of the shape {jnp.shape(value[0])}; take its mean"
        else:
            kind = type(value).__name__ if not isinstance(value, jax.Array) else "an array alone"
        raise TypeError(f"loss must return (value, metrics), a scalar and a dict; got {kind}")

    return checked


def _check(batch: Any, devices: int) -> None:
    """Raises TypeError or ValueError unless it is a dict of arrays that devices can divide."""
    if not isinstance(batch, dict):
        raise TypeError(f"a batch must be a dict of arrays, got {type(batch).__name__}")
    for name, value in batch.items():
        if any(
            not isinstance(x, np.ndarray | jax.Array) or not x.ndim for x in jax.tree.leaves(value)
        ):
            raise TypeError(
                f"batch[{name!r}] must be an array whose first axis is the batch, got"
                f" {type(value).__name__}; np.asarray makes one of a list"
            )
    counts = {len(x) for x in jax.tree.leaves(batch)}
    if len(counts) != 1 or 0 in counts or max(counts) % devices:
        sizes = {name: [len(x) for x in jax.tree.leaves(value)] for name, value in batch.items()}
        raise ValueError(
            f"the arrays of a batch must be equally long, at least 1, and a multiple of the"
            f" {devices} devices; got {sizes}"
        )


def _check_finite(number: int, loss: jax.Array, params: nnx.State[Any, Any]) -> None:
    """Raises NonFiniteLoss where weights are lost; an optimizer may have left out a bad step."""
    if jnp.isfinite(loss) or all(jnp.isfinite(x).all() for x in jax.tree.leaves(params)):
        return
    from spvit_jax.training.loop import NonFiniteLoss

    raise NonFiniteLoss(
        f"the loss is {float(loss)} at step {number} and the weights are no longer finite; try a"
        " lower learning_rate, and look at the loss and the batches"
    )


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
