"""The loop every stage runs: steps, metrics, evaluations, checkpoints, and stopping well."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spvit_jax import hosts
from spvit_jax.progress import Bar, Console
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.metrics import MetricWriter, read_metrics
from spvit_jax.training.pace import Pace
from spvit_jax.training.step import Batch, TrainState
from spvit_jax.training.trace import Trace

Metrics = dict[str, float]
EVALUATED = "top1"  # of an evaluation; NaN where the run was stopped in the midst of it


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
      evaluate: metrics of a state, on held-out images; ``EVALUATED`` is one of them. May raise
        ``Interrupted``.
      should_stop: asked after every step.
      describe: more metrics of a state, cheap, at every logged step.
      profile: folder for a ``jax.profiler`` trace of a few steps; "": none.
    """

    name: str
    steps: int
    batch_size: int
    log_every: int
    eval_steps: int
    evaluate: Callable[[TrainState], Metrics]
    should_stop: Callable[[], bool]
    describe: Callable[[TrainState], Metrics] = lambda state: {}
    profile: str = ""

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
        bar = console.bar(self.steps, start, self.name, self.batch_size)
        pace, trace = Pace(), Trace(self.profile)
        with bar, trace:
            for number in range(start + 1, self.steps + 1):
                trace.before_step()
                with pace.waiting():
                    batch = next(batches)
                state, metrics = step(state, batch)
                self._check(number - 1, pending, checkpoints)  # while the device computes this one
                pending = metrics
                cut = self._record(number, state, metrics, checkpoints, writer, bar, pace)
                last = number == self.steps
                stop = cut or (self.should_stop() and not last)
                if last or stop or number % checkpoints.every == 0:
                    self._check(number, metrics, checkpoints)
                    with pace.paused():
                        self._check(number, _not_finite(state), checkpoints)
                        writer.flush()
                        checkpoints.save(number, state, wait=last or stop)
                if stop:
                    raise Interrupted(
                        f"{self.name} stopped after step {number} of {self.steps}, which is saved"
                    )
        return state

    def catch_up(self, state: TrainState, directory: str | os.PathLike[str]) -> None:
        """Makes the evaluation of a restored state that an earlier run was stopped in, if any.

        Raises:
          Interrupted: by ``evaluate``; the next run makes it.
        """
        step = int(state.step)
        rows = read_metrics(directory) if jax.process_index() == 0 else []
        owed = any(row["step"] == step and math.isnan(row.get(EVALUATED, 0)) for row in rows)
        if hosts.from_first(owed):
            values = self.evaluate(state)
            with MetricWriter(directory, step) as writer:
                writer.amend(values)

    def _record(
        self,
        number: int,
        state: TrainState,
        metrics: dict[str, jax.Array],
        checkpoints: Checkpoints,
        writer: MetricWriter,
        bar: Bar,
        pace: Pace,
    ) -> bool:
        """Metrics and evaluation where due: at the same steps however often a run is resumed.

        Returns whether the evaluation was stopped; ``catch_up`` makes it then.
        """
        cut = False
        evaluate = number == self.steps or (self.eval_steps > 0 and number % self.eval_steps == 0)
        if evaluate or number % self.log_every == 0:
            values = self._check(number, metrics, checkpoints) | self.describe(state) | pace.lap()
            bar.show({"loss": values["loss"]})
            if evaluate:
                with pace.paused():
                    try:
                        values |= self.evaluate(state)
                    except Interrupted:
                        values[EVALUATED], cut = math.nan, True
            writer.write(number, values)
        bar.update()
        return cut

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
    """The parts of a state that hold infinities or NaN, by name, each with their sum."""
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    sums = map(float, jax.device_get(_sums_of_not_finite(jax.tree.leaves(state))))
    return {path: value for path, value in zip(paths, sums, strict=True) if value != 0}


@jax.jit
def _sums_of_not_finite(leaves: list[jax.Array]) -> list[jax.Array]:
    return [jnp.where(jnp.isfinite(leaf), 0, leaf).sum() for leaf in leaves]
