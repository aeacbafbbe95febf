"""What every stage of a run works with, and what it does with it: train, evaluate, load."""

import dataclasses
import os
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from spvit_jax import hosts, pretrained
from spvit_jax.config import Budget, Config, ConfigError, Training
from spvit_jax.convert import About, about_of
from spvit_jax.convert import CheckpointError as PretrainedError
from spvit_jax.convert.fetch import fetch
from spvit_jax.data.errors import DataError
from spvit_jax.data.fingerprint import fingerprint
from spvit_jax.data.pipeline import (
    eval_batches,
    prefetch,
    steps_per_epoch,
    to_device,
    train_batches,
)
from spvit_jax.data.sources import Some, Source, open_source
from spvit_jax.export.images import LEAST
from spvit_jax.models import Classifier, RegNetSpec
from spvit_jax.progress import Console
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import ArchitectureError
from spvit_jax.single_path.budget import BudgetError
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.latency import TableError
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.schedules import schedule
from spvit_jax.single_path.score import ScoreError
from spvit_jax.single_path.space import SpaceError
from spvit_jax.state import StateError
from spvit_jax.training.checkpoint import CheckpointError
from spvit_jax.training.evaluate import Evaluator
from spvit_jax.training.loop import EVALUATED, Interrupted, Loop, Metrics, NonFiniteLoss, TakeStep
from spvit_jax.training.metrics import METRICS_FILE
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.recipe import Recipe
from spvit_jax.training.sharding import (
    batch_sharded,
    check_batch,
    local_rows,
    make_mesh,
    place,
    sharded,
    whole,
)
from spvit_jax.training.step import Batch, TrainState
from spvit_jax.training.teacher import Teacher
from spvit_jax.workdir import Workdir

USER_ERRORS = (  # whose message says what to do
    ArchitectureError,
    BudgetError,
    CheckpointError,
    ConfigError,
    DataError,
    hosts.HostError,
    NonFiniteLoss,
    OSError,
    PretrainedError,
    ScoreError,
    SpaceError,
    StateError,
    TableError,
)

Model = TypeVar("Model", bound=Classifier)
TRIAL_IMAGES = 512  # that candidates are repaired on: which is the best, fewer tell than how good


@dataclasses.dataclass(frozen=True)
class Context:
    """One configuration at work."""

    config: Config
    workdir: Workdir
    console: Console
    should_stop: Callable[[], bool]  # asked after each step, for one answer on every process
    profile: str  # folder for traces of each training; "": none
    spec: Any  # of the dense model
    train: Source
    test: Source
    mesh: Mesh

    @property
    def name(self) -> str:
        """The dense model's."""
        return self.config.model.variant or Path(self.config.model.checkpoint).stem

    @property
    def labelled(self) -> bool:
        """Whether the test images have labels and the model a head that can tell them."""
        return bool(self.test.class_names) and self.spec.classes > 0

    @property
    def about(self) -> About:
        """What its models are trained on, to be kept in their files."""
        data, names = self.config.data, self.test.class_names
        if not names and self.config.stage != "pretrain":
            names = about_of(pretrained.address(self.config.model.checkpoint)).class_names
        names = names[: self.spec.classes]
        return About(names, data.mean, data.std, data.crop_ratio)

    @property
    def evaluator(self) -> Evaluator:
        """What counts over the test images."""
        return Evaluator(self.test, self.config.data, self.mesh, self.should_stop)

    def announce(self, name: str, text: str) -> None:
        """Says that a stage begins which takes its time.

        Raises:
          Interrupted: the run is to stop before it.
        """
        if self.should_stop():
            raise Interrupted(f"stopped before {name}")
        self.console.stage(name, text)

    def go_on(self, what: str) -> None:
        """To be called in the midst of what takes its time.

        Raises:
          Interrupted: the run is to stop.
        """
        if self.should_stop():
            raise Interrupted(f"stopped during {what}, which begins again")


def open_context(
    config: Config,
    workdir: Workdir,
    console: Console,
    should_stop: Callable[[], bool],
    profile: str = "",
) -> Context:
    """Opens the data and the devices; what cannot work is an error now, not after an hour.

    Raises:
      USER_ERRORS: see there.
    """
    with hosts.together(*USER_ERRORS):
        train, test = (open_source(config.data, split) for split in _splits(config))
        seen: dict[str, Any] = {"data.train": fingerprint(train), "data.test": fingerprint(test)}
        spec: Any = pretrained.dense_spec(config, len(test.class_names))
        if config.stage in ("all", "search"):
            gating = Gating.of(config.search, config.budget, spec)
            gating.project(gating.initial())
            if config.merges:  # is there what it takes to price them?
                one = schedule(spec, "constant", 1)
                Gating.of(config.search, config.budget, spec, merges=one)
        if config.stage == "frontier":
            for share in config.frontier.budgets:
                gating = Gating.of(config.search, budget_at(config, share), spec)
                gating.project(gating.initial())
        pretrained.check_teachers(config, spec)
        check_labels(config, spec, test)
        if "int8.onnx" in config.export.formats and len(train) < LEAST:
            raise ConfigError(
                f"export.formats: int8.onnx needs {LEAST} training images, there are {len(train)};"
                " take dynamic.onnx, which needs none"
            )
        if config.judges and config.score.patch_weight and spec.blocks[-1].class_only:
            raise ConfigError(
                f"score.patch_weight={config.score.patch_weight:g} judges candidates by their"
                " patches, which nobody reads behind the last block of this model: its head sees"
                " class tokens alone; set it to 0"
            )
        seen |= _weights(config)
    hosts.agree(seen)
    workdir.began(seen)
    mesh = make_mesh(config.sharding.fsdp)
    for name in config.trainings:
        training = getattr(config, name)
        check_batch(name, training, jax.device_count())
        steps_per_epoch(len(train), training.batch_size)
    if config.tries:  # on the images that do not judge
        held = len(held_indices(config, len(train)))
        steps_per_epoch(len(train) - held, config.finetune.batch_size)
    return Context(config, workdir, console, should_stop, profile, spec, train, test, mesh)


def _weights(config: Config) -> dict[str, int]:
    """Checksums of the files of weights that a run begins from, under what to call them."""
    named = {} if config.stage == "pretrain" else {"model.checkpoint": config.model.checkpoint}
    if config.teacher.checkpoint:
        named["teacher.checkpoint"] = config.teacher.checkpoint
    found = {}
    for name, given in named.items():
        with open(fetch(pretrained.address(given)), "rb") as file:
            crc = 0
            while part := file.read(2**20):
                crc = zlib.crc32(part, crc)
        found[f"CRC-32 of what is in {name}"] = crc
    return found


def check_labels(config: Config, spec: Any, test: Source) -> None:
    """Raises ConfigError where a training wants labels, or logits, that there are not."""
    lacking = "the data has no labels" if not test.class_names else "the model has no head"
    if test.class_names and spec.classes:
        return
    if isinstance(spec, RegNetSpec):
        raise ConfigError(f"{lacking}, and a RegNetY is nothing but a classifier here")
    kinds = ("features", "soft", "hard") if spec.classes else ("features",)
    for name in config.trainings:
        training = getattr(config, name)
        if training.distillation not in kinds or training.distillation_weight < 1:
            raise ConfigError(
                f"{lacking}, and {name} would learn them; set {name}.distillation=features and"
                f" {name}.distillation_weight=1"
            )


def budget_at(config: Config, share: float) -> Budget:
    """The one budget of a point of ``frontier``."""
    return dataclasses.replace(config.budget, macs=share, params=0.0, latency="")


def _splits(config: Config) -> tuple[str, str]:
    """Names of the training and the test split; who does not train needs only the latter."""
    data = config.data
    return data.test_split if config.stage == "evaluate" else data.train_split, data.test_split


def load_dense(context: Context) -> Classifier:
    """The pretrained dense model."""
    notes: list[str] = []
    with hosts.together(*USER_ERRORS):
        dense = pretrained.load_dense(context.config, context.spec, notes)
    hosts.agree_on("model.checkpoint", nnx.state(dense))
    facts = [f"{context.name}: {count_parameters(dense):,} parameters"]
    if not isinstance(context.spec, RegNetSpec):
        run, published = prices.macs(context.spec), prices.published_macs(context.spec)
        facts.append(f"{run.dense:,} MACs, {published.dense:,} as published")
    context.console.stage("dense", ", ".join(facts))
    for note in notes:
        context.console.say(note)
    return dense


def calibration_indices(config: Config, images: int) -> np.ndarray:
    """Which of the training images are scored and repaired on: some, evenly spread."""
    count = min(config.score.images, images - len(held_indices(config, images)))
    return np.linspace(0, images - 1, count).round().astype(int)


def held_indices(config: Config, images: int) -> np.ndarray:
    """Which of the training images judge candidates; none where there is only one.

    They are spread evenly among those that are not scored; a fifth of the images at most.
    """
    if not config.judges:
        return np.zeros(0, int)
    count = max(min(config.shortlist.images, images // 5), 1)
    scored = np.linspace(0, images - 1, min(config.score.images, images - count))
    others = np.setdiff1d(np.arange(images), scored.round().astype(int))
    return others[np.linspace(0, len(others) - 1, count).round().astype(int)]


def trial_indices(config: Config, images: int) -> np.ndarray:
    """Which of the scored images candidates are repaired on while they are compared."""
    scored = calibration_indices(config, images)
    some = np.linspace(0, len(scored) - 1, min(len(scored), TRIAL_IMAGES))
    return scored[some.round().astype(int)]


def calibrate(context: Context, indices: np.ndarray | None = None) -> Calibration:
    """Images of the training split as evaluation sees them; their labels are left behind.

    ``indices`` says which; None: ``calibration_indices``.
    """
    config, mesh = context.config, context.mesh
    if indices is None:
        indices = calibration_indices(config, len(context.train))
    size = -(-min(config.score.batch_size, len(indices)) // mesh.size) * mesh.size
    batches = eval_batches(
        Some(context.train, indices),
        config.data,
        batch_size=size,
        rows=local_rows(mesh, size),
        image_size=context.spec.image_size,
    )
    placed = (to_device(batch, batch_sharded(mesh)) for batch in batches)
    pairs = tuple((batch["image"], batch["mask"]) for batch in placed)
    return Calibration(pairs, Normalise(config.data.mean, config.data.std), mesh)


def load_teacher(context: Context, training: Training) -> Teacher | None:
    """The teacher of a training that distils; None of any other."""
    if training.distillation == "none":
        return None
    with hosts.together(*USER_ERRORS):
        features = training.distillation == "features"
        teacher = pretrained.load_teacher(context.config, context.spec, features)
    hosts.agree_on("teacher.checkpoint", teacher.state)
    name = context.config.teacher.checkpoint or f"{context.name}, dense"
    context.console.say(f"teacher   {name}: {training.distillation} distillation")
    return teacher


def fit(
    context: Context,
    name: str,
    model: Model,
    training: Training,
    *,
    gating: Gating | None = None,
    steps: int = 0,
) -> tuple[Model, Gates]:
    """Trains ``model`` as ``training`` says, or goes on with it, in the folder ``name``.

    Args:
      context: of the run.
      name: of the folder, inside the workdir, for checkpoints and metrics.
      model: stays as it is.
      training: of the config, or one like it.
      gating: of a search.
      steps: to take; 0: as many as ``training.epochs`` has.

    Returns:
      The model and the gate logits at the end. A training that has ended is only read, and then
      no teacher is loaded.

    Raises:
      Interrupted, NonFiniteLoss, CheckpointError: see ``Loop``.
    """
    config, mesh, spec, graph = context.config, context.mesh, model.spec, nnx.graphdef(model)
    images = len(context.train)
    recipe = Recipe.of(config, training, images, spec.classes, gating=gating, steps=steps)
    evaluator = context.evaluator
    counting = evaluator.step(model) if context.labelled else None

    def begin(state: TrainState) -> tuple[TakeStep, Iterator[Batch]]:
        context.workdir.forget(f"{name}/{METRICS_FILE}")
        teacher = load_teacher(context, training)
        program, frozen = recipe.program(graph, mesh, state, teacher), None
        if teacher:
            frozen = place(teacher.state, sharded(mesh, teacher.state))
        batches = train_batches(
            context.train,
            config.data,
            batch_size=recipe.batch_size,
            rows=local_rows(mesh, recipe.batch_size),
            image_size=spec.image_size,
            seed=config.seed,
            start_step=int(state.step),
        )
        return partial(program, frozen), prefetch(batches, batch_sharded(mesh))

    def evaluate(state: TrainState) -> Metrics:
        assert counting is not None
        gates = gating.decide(state.gates) if gating else None
        found = evaluator.count(counting, spec, state.weights, state.stats, gates)
        return {EVALUATED: found.top1}

    def describe(state: TrainState) -> Metrics:
        return gating.metrics(jax.device_get(state.gates)) if gating else {}

    loop = Loop(
        name=name,
        folder=context.workdir / name,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        log_every=config.log_every,
        eval_steps=recipe.steps_in(config.eval_every),
        checkpoint_every=config.checkpoint_every,
        evaluate=evaluate if counting else None,
        should_stop=context.should_stop,
        console=context.console,
        describe=describe,
        profile=context.profile and os.path.join(context.profile, name),
        unsaved=hosts.unsaved(context.should_stop),
    )
    initial = recipe.initial(model)
    state = loop.run(initial, sharded(mesh, initial), begin)
    context.workdir.keep(f"{name}/{METRICS_FILE}")
    weights, stats, gates = whole(mesh, (state.weights, state.stats, state.gates))
    return nnx.merge(graph, weights, stats, copy=True), gates
