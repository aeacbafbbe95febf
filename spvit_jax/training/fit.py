"""One optimisation from start to end, or from its newest checkpoint: what every stage calls."""

import dataclasses
import os
from collections.abc import Callable
from typing import TypeVar

from flax import nnx
from jax.sharding import Mesh

from spvit_jax.config import Config, Training
from spvit_jax.data.errors import DataError
from spvit_jax.data.pipeline import eval_batches, prefetch, to_device, train_batches
from spvit_jax.data.sources import Source
from spvit_jax.models import Classifier
from spvit_jax.progress import Console
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.evaluate import EvalStep, Evaluation, make_eval_step, no_totals
from spvit_jax.training.loop import EVALUATED, Interrupted, Loop, Metrics
from spvit_jax.training.metrics import MetricWriter
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import batch_sharded, local_rows, place, sharded, whole
from spvit_jax.training.step import TrainState, make_train_step
from spvit_jax.training.task import Task
from spvit_jax.training.teacher import Teacher
from spvit_jax.workdir import Workdir

Model = TypeVar("Model", bound=Classifier)


@dataclasses.dataclass(frozen=True)
class Trainer:
    """What all stages of a run train and evaluate with."""

    config: Config
    workdir: Workdir
    mesh: Mesh
    train: Source
    test: Source
    image_size: int
    console: Console
    should_stop: Callable[[], bool]
    profile: str = ""  # folder for traces of each training; "": none

    def fit(
        self,
        name: str,
        model: Model,
        training: Training,
        *,
        gating: Gating | None = None,
        describe: Callable[[TrainState], Metrics] = lambda state: {},
        teacher: Callable[[], Teacher] | None = None,
    ) -> tuple[Model, Gates]:
        """Trains ``model`` as ``training`` says, in the folder ``name``.

        A training that has ended is only read, and then no ``teacher`` is asked for. ``describe``
        gives more metrics of a state.

        Returns:
          The model and the gate logits at the end.

        Raises:
          Interrupted, NonFiniteLoss, CheckpointError: see ``Loop`` and ``Checkpoints``.
        """
        task = Task.of(self.config, training, len(self.train), gating)
        graph, state = nnx.graphdef(model), task.initial(model)
        shards = sharded(self.mesh, state)
        with Checkpoints(self.workdir / name, self.config.checkpoint_every) as checkpoints:
            state = checkpoints.restore(state, shards) or place(state, shards)
            loop = self._loop(name, task, model, describe)
            loop.catch_up(state, self.workdir / name)
            if int(state.step) < task.steps:
                taught = teacher() if teacher else None
                step = make_train_step(
                    graph, task.optimiser, task.objective, self.mesh, state, taught
                )
                state = self._run(loop, step, state, checkpoints)
        weights, stats, gates = whole(self.mesh, (_weights(state), state.stats, state.gates))
        return nnx.merge(graph, weights, stats, copy=True), gates

    @property
    def _eval_batch(self) -> int:
        """Images of an evaluation's batch: as configured, or a few more for all devices' sake."""
        return -(-self.config.data.eval_batch_size // self.mesh.size) * self.mesh.size

    @property
    def _normalise(self) -> Normalise:
        return Normalise(self.config.data.mean, self.config.data.std)

    def _loop(
        self,
        name: str,
        task: Task,
        model: Classifier,
        describe: Callable[[TrainState], Metrics],
    ) -> Loop:
        params = nnx.state(model, nnx.Param)
        step = make_eval_step(nnx.graphdef(model), self._normalise, self.mesh, params)
        classes = model.spec.classes

        def evaluate(state: TrainState) -> Metrics:
            gating = task.objective.gating
            gates = gating.decide(state.gates) if gating else None
            weights = _weights(state)
            found = self._evaluate(step, classes, weights, state.stats, gates, self._go_on)
            return {EVALUATED: found.top1}

        return Loop(
            name=name,
            steps=task.steps,
            batch_size=task.training.batch_size,
            log_every=self.config.log_every,
            eval_steps=task.evaluation_steps(self.config.eval_every),
            evaluate=evaluate,
            should_stop=self.should_stop,
            describe=describe,
            profile=self.profile and os.path.join(self.profile, name),
        )

    def _run(
        self, loop: Loop, step: Callable, state: TrainState, checkpoints: Checkpoints
    ) -> TrainState:
        start = int(state.step)
        batches = train_batches(
            self.train,
            self.config.data,
            batch_size=loop.batch_size,
            rows=local_rows(self.mesh, loop.batch_size),
            image_size=self.image_size,
            seed=self.config.seed,
            start_step=start,
        )
        on_devices = prefetch(batches, batch_sharded(self.mesh))
        with MetricWriter(self.workdir / loop.name, start) as writer:
            return loop.run(state, step, on_devices, checkpoints, writer, self.console)

    def evaluate(self, model: Classifier) -> Evaluation:
        """What ``model`` makes of the test images: each of them, once, on all devices.

        Raises:
          Interrupted: ``should_stop`` said so.
          DataError: an image cannot be decoded, or with ``data.on_error`` "skip" none can.
        """
        states = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        params, stats = place(states, sharded(self.mesh, states))
        step = make_eval_step(nnx.graphdef(model), self._normalise, self.mesh, params)
        batches = -(-len(self.test) // self._eval_batch)
        with self.console.bar(batches, 0, "evaluate", images=self._eval_batch) as bar:

            def after_batch() -> None:
                self._go_on()
                bar.update()

            return self._evaluate(step, model.spec.classes, params, stats, None, after_batch)

    def _go_on(self) -> None:
        """To be called after each batch of an evaluation, which takes long."""
        if self.should_stop():
            raise Interrupted("stopped during an evaluation, which begins again")

    def _evaluate(
        self,
        step: EvalStep,
        classes: int,
        params: nnx.State,
        stats: nnx.State,
        gates: Gates | None,
        after_batch: Callable[[], None],
    ) -> Evaluation:
        totals, size = no_totals(classes, self.mesh), self._eval_batch
        batches = eval_batches(
            self.test,
            self.config.data,
            batch_size=size,
            rows=local_rows(self.mesh, size),
            image_size=self.image_size,
        )
        for batch in batches:
            on_devices = to_device(batch, batch_sharded(self.mesh))
            totals = step(totals, params, stats, gates, on_devices)
            after_batch()
        found = Evaluation.of(totals, len(self.test))
        if not found.images:
            raise DataError(
                f"none of the {len(self.test):,} test images can be decoded; see the warnings, and"
                " check data.source"
            )
        return found


def _weights(state: TrainState) -> nnx.State:
    """Those that are evaluated and handed on: the average, where there is one."""
    return state.params if state.average is None else state.average
