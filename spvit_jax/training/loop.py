"""The loop every stage runs: steps, metrics, evaluations, checkpoints, and stopping well."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from spvit_jax.progress import Bar, Console
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.metrics import MetricWriter
from spvit_jax.training.step import Batch, TrainState

Metrics = dict[str, float]


class Interrupted(Exception):
    """The run was asked to stop and did; what was finished is saved."""


class NonFiniteLoss(RuntimeError):
    """A step gave a loss, a gradient or weights that are infinite or NaN."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """How long to train and what to do along the way.

    Attributes:
      name: of the stage, for the progress bar.
      steps: to have taken at the end.
      batch_size: images a step, for the rate.
      log_every: steps between points in the metrics.
      eval_steps: steps between evaluations; the last step is always evaluated.
      evaluate: metrics of a state, on held-out images.
      describe: more metrics of a state, cheap, at every logged step.
      should_stop: asked after every step.
    """

    name: str
    steps: int
    batch_size: int
    log_every: int
    eval_steps: int
    evaluate: Callable[[TrainState], Metrics]
    should_stop: Callable[[], bool]
    describe: Callable[[TrainState], Metrics] = lambda state: {}

    def run(
        self,
        state: TrainState,
        step: Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]],
        batches: Iterator[Batch],
        checkpoints: Checkpoints,
        writer: MetricWriter,
        console: Console,
    ) -> TrainState:
        """Takes the steps that are left; returns the last state.

        Raises:
          Interrupted: ``should_stop`` said so; the state is saved.
          NonFiniteLoss: nothing is saved after the last good checkpoint.
        """
        start = int(state.step)
        pending: dict[str, jax.Array] = {}
        with console.bar(self.steps, start, self.name, self.batch_size) as bar:
            for number in range(start + 1, self.steps + 1):
                state, metrics = step(state, next(batches))
                self._check(number - 1, pending, checkpoints)  # while the device computes this one
                pending = metrics
                self._record(number, state, metrics, checkpoints, writer, bar)
                last = number == self.steps
                stop = self.should_stop() and not last
                if last or stop or number % checkpoints.every == 0:
                    self._check(number, metrics, checkpoints)
                    self._check(number, _not_finite(state), checkpoints)
                    writer.flush()
                    checkpoints.save(number, state, wait=last or stop)
                if stop:
                    raise Interrupted(
                        f"{self.name} stopped after step {number} of {self.steps}, which is saved"
                    )
        return state

    def _record(
        self,
        number: int,
        state: TrainState,
        metrics: dict[str, jax.Array],
        checkpoints: Checkpoints,
        writer: MetricWriter,
        bar: Bar,
    ) -> None:
        """Metrics and evaluation where due: at the same steps however often a run is resumed."""
        evaluate = number == self.steps or (self.eval_steps > 0 and number % self.eval_steps == 0)
        if evaluate or number % self.log_every == 0:
            values = self._check(number, metrics, checkpoints) | self.describe(state)
            bar.show({"loss": values["loss"]})
            if evaluate:
                values |= self.evaluate(state)
            writer.write(number, values)
        bar.update()

    def _check(self, number: int, metrics: Mapping[str, Any], checkpoints: Checkpoints) -> Metrics:
        """The metrics of step ``number`` as numbers; NonFiniteLoss if one is not finite."""
        values = {name: float(value) for name, value in metrics.items()}
        if all(math.isfinite(value) for value in values.values()):
            return values
        kept = checkpoints.steps
        raise NonFiniteLoss(
            f"{self.name}: step {number} gave "
            + ", ".join(f"{name} {value:g}" for name, value in values.items())
            + (f"; the checkpoint of step {kept[-1]} is kept" if kept else "; no checkpoint yet")
            + f" in {checkpoints.directory}. Lower the learning rate or set clip_norm, and start"
            " in another --workdir"
        )


def _not_finite(state: TrainState) -> Metrics:
    """The parts of a state that hold infinities or NaN, each with the first of them."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        values = np.asarray(leaf)
        finite = np.isfinite(values)
        if not finite.all():
            found[jax.tree_util.keystr(path)] = float(values[~finite][0])
    return found
