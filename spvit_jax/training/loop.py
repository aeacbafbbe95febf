"""The loop every training runs: steps, metrics, evaluations, checkpoints, and stopping well."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spvit_jax import hosts
from spvit_jax.progress import Console
from spvit_jax.state import StateError
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.metrics import METRICS_FILE, MetricWriter, read_metrics
from spvit_jax.training.pace import Pace
from spvit_jax.training.sharding import place
from spvit_jax.training.step import Batch, TrainState
from spvit_jax.training.trace import Trace

Metrics = dict[str, float]
TakeStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]
EVALUATED = "top1"  # what every evaluation gives


class Interrupted(Exception):
    """The run was asked to stop and did; what was finished is saved."""


class NonFiniteLoss(RuntimeError):
    """A step gave a loss, a gradient or weights that are infinite or NaN."""


@dataclasses.dataclass(frozen=True)
class Loop:
    """How long to train, where the results go, and what to do along the way.

    Attributes:
      name: of the training, for the progress bar.
      folder: of its checkpoints and metrics, local or remote.
      steps: to have taken at the end.
      batch_size: images per step, for the rate.
      log_every: steps between points in the metrics.
      eval_steps: steps between evaluations; the last step is always evaluated.
      checkpoint_every: steps between checkpoints; the last step always has one.
      evaluate: metrics of a state, on held-out images; ``EVALUATED`` is one of them. May raise
        ``Interrupted``. None: there is nothing to evaluate by.
      should_stop: asked after every step.
      console: for the progress bar.
      describe: more metrics of a state, cheap, at every logged step.
      profile: folder for a ``jax.profiler`` trace of a few steps; "": none.
      unsaved: told whether steps have been taken that a stop saves.
    """

    name: str
    folder: str | os.PathLike[str]
    steps: int
    batch_size: int
    log_every: int
    eval_steps: int
    checkpoint_every: int
    evaluate: Callable[[TrainState], Metrics] | None
    should_stop: Callable[[], bool]
    console: Console
    describe: Callable[[TrainState], Metrics] = lambda state: {}
    profile: str = ""
    unsaved: Callable[[bool], None] = lambda steps: None

    def run(
        self,
        initial: TrainState,
        shards: TrainState,
        begin: Callable[[TrainState], tuple[TakeStep, Iterator[Batch]]],
    ) -> TrainState:
        """Takes the steps that are left, from the newest checkpoint; returns the last state.

        Args:
          initial: the state of step 0, as every process holds it.
          shards: the sharding of each of its arrays.
          begin: gives the step, and the batches from this state on. A training that has ended is
            only read, and then it is not asked.

        Raises:
          Interrupted: ``should_stop`` said so; the state is saved.
          NonFiniteLoss: nothing is saved after the last good checkpoint.
          CheckpointError: see ``Checkpoints``.
        """
        with Checkpoints(self.folder, self.checkpoint_every) as checkpoints:
            state = checkpoints.restore(initial, shards) or place(initial, shards)
            self._catch_up(state)
            if int(state.step) < self.steps:
                try:
                    state = self._train(state, *begin(state), checkpoints)
                finally:
                    self.unsaved(False)
        return state

    def _train(
        self,
        state: TrainState,
        step: TakeStep,
        batches: Iterator[Batch],
        checkpoints: Checkpoints,
    ) -> TrainState:
        """Metrics, evaluations and checkpoints are at the same steps however often it resumes."""
        start, pace, pending = int(state.step), Pace(), dict[str, jax.Array]()
        writer = MetricWriter(self.folder, start)
        bar = self.console.bar(self.steps, start, self.name, self.batch_size)
        with writer, bar, Trace(self.profile) as trace:
            for number in range(start + 1, self.steps + 1):
                trace.before_step()
                with pace.waiting():
                    batch = next(batches)
                state, metrics = step(state, batch)
                self.unsaved(True)
                self._check(number - 1, pending, checkpoints)  # while the device computes this one
                pending, last, cut = metrics, number == self.steps, False
                if self._evaluates(number) or number % self.log_every == 0:
                    values = self._check(number, metrics, checkpoints)
                    values |= self.describe(state) | pace.lap()
                    bar.show({"loss": values["loss"]})
                    if self.evaluate and self._evaluates(number):
                        with pace.paused():
                            self.unsaved(False)  # a compilation may take minutes
                            try:
                                values |= self.evaluate(state)
                            except Interrupted:  # ``_catch_up`` makes it
                                cut = True
                    self.unsaved(True)
                    writer.write(number, values)
                bar.update()
                stop = cut or (not last and self.should_stop())
                if last or stop or number % self.checkpoint_every == 0:
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

    def _evaluates(self, number: int) -> bool:
        """Whether step ``number`` is evaluated."""
        if self.evaluate is None:
            return False
        return number == self.steps or (self.eval_steps > 0 and number % self.eval_steps == 0)

    def _catch_up(self, state: TrainState) -> None:
        """Makes the evaluation of a restored state that an earlier run was stopped in, if any.

        Raises:
          Interrupted: by ``evaluate``; the next run makes it.
          StateError: the metrics are damaged.
        """
        number = int(state.step)
        with hosts.together(StateError):
            rows = self._rows(number) if jax.process_index() == 0 else []
        owed = any(row["step"] == number and EVALUATED not in row for row in rows)
        if hosts.from_first(owed and self._evaluates(number)) and self.evaluate:
            values = self.evaluate(state)
            with MetricWriter(self.folder, number) as writer:
                writer.amend(values)

    def _rows(self, number: int) -> list[dict[str, Any]]:
        """The lines of the metrics; none is gone of the steps up to ``number``.

        Where the file was removed it begins anew, and with a later step.

        Raises:
          StateError: it is damaged.
        """
        rows = read_metrics(self.folder)
        steps = range(1, number + 1)
        logged = [n for n in steps if self._evaluates(n) or n % self.log_every == 0]
        there = [row["step"] for row in rows if row["step"] <= number]
        file = f"{self.folder}/{METRICS_FILE}"
        if logged and not there:
            self.console.say(f"{file} is gone, and with it the numbers of {len(logged)} steps")
        elif there != logged[len(logged) - len(there) :]:
            raise StateError(
                f"{file} is damaged (it lacks lines up to step {number}); put it back, or remove"
                " it to go on without the lines that it has"
            )
        return rows

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
