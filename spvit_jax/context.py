"""``Context``: what every stage of a run works with, opened and checked before the first step."""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from spvit_jax import hosts, pretrained, teachers
from spvit_jax.config import Budget, Config, ConfigError
from spvit_jax.convert import About, about_of
from spvit_jax.convert import CheckpointError as PretrainedError
from spvit_jax.convert.fetch import INDEX, fetch, shards_of
from spvit_jax.data.errors import DataError
from spvit_jax.data.fingerprint import fingerprint, numbered
from spvit_jax.data.pipeline import steps_per_epoch
from spvit_jax.data.sources import Source, open_source
from spvit_jax.export.images import LEAST
from spvit_jax.models import Classifier, RegNetSpec
from spvit_jax.portions import held_indices
from spvit_jax.progress import Console
from spvit_jax.remote import public
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path import latency as latencies
from spvit_jax.single_path.architecture import ArchitectureError
from spvit_jax.single_path.budget import BudgetError
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.latency import TableError
from spvit_jax.single_path.schedules import schedule
from spvit_jax.single_path.score import ScoreError
from spvit_jax.single_path.space import SpaceError
from spvit_jax.state import StateError
from spvit_jax.training.checkpoint import CheckpointError
from spvit_jax.training.evaluate import Evaluator
from spvit_jax.training.loop import Interrupted, NonFiniteLoss
from spvit_jax.training.sharding import check_batch, make_mesh
from spvit_jax.workdir import BEGAN, Workdir

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


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a run begins from, where it is at hand; elsewhere the configuration says it."""

    train: Source
    test: Source
    dense: Classifier | None = None  # None: model.checkpoint


class Beginning:
    """What a run begins from, opened when it is asked for."""

    def __init__(self, config: Config, inputs: Inputs | None):
        self.config, self.inputs = config, inputs

    @functools.cached_property
    def train(self) -> Source:
        """The training images; who does not train needs only the test images."""
        data = self.config.data
        split = data.test_split if self.config.stage == "evaluate" else data.train_split
        return self.inputs.train if self.inputs else open_source(data, split)

    @functools.cached_property
    def test(self) -> Source:
        """The test images."""
        data = self.config.data
        return self.inputs.test if self.inputs else open_source(data, data.test_split)

    @property
    def dense(self) -> Classifier | None:
        """The dense model, where it is at hand."""
        return self.inputs.dense if self.inputs else None

    @functools.cached_property
    def spec(self) -> Any:
        """The dense model's."""
        if self.dense is not None:
            return self.dense.spec
        return pretrained.dense_spec(self.config, len(self.test.class_names))

    @property
    def fresh(self) -> bool:
        """Whether the dense model gets a head yet untrained: its checkpoint has none such."""
        stage, classes = self.config.stage, self.spec.classes
        if self.dense is not None or stage in pretrained.TRAINED_ONLY or not classes:
            return False
        return pretrained.classes_known(self.config) != classes

    def looks(self) -> dict[str, Callable[[], Any]]:
        """How to see what it is now, by what to call it; to be compared by ``Workdir.began``."""
        looks: dict[str, Callable[[], Any]] = {
            "data.train": lambda: fingerprint(self.train),
            "data.test": lambda: fingerprint(self.test),
            "dense model": lambda: latencies.described(self.spec),
        }
        for name, checkpoint in self._named().items():
            looks[f"CRC-32 of what is in {name}"] = functools.partial(_checksum, checkpoint)
        if teachers.distils(self.config):
            looks["teacher"] = lambda: _teacher(self.config, self.spec)
        file, table = self.config.finetune.architecture, self.config.budget.latency
        if self.config.stage == "finetune":
            name = "CRC-32 of what is in finetune.architecture"
            looks[name] = lambda: _architecture(file, self.spec)
        if self.config.stage in ("all", "search") and table:
            looks["CRC-32 of the table of budget.latency"] = lambda: _table(table)
        if self.dense is not None:
            known = (self.dense.about or About()).class_names
            looks["CRC-32 of the model"] = lambda: hosts.checksum(nnx.state(self.dense))
            looks["class names of the model"] = lambda: numbered(known)
        return looks

    def _named(self) -> dict[str, str]:
        """The checkpoints of the configuration, by the names of their fields."""
        config, named = self.config, dict[str, str]()
        if self.dense is None and config.stage != "pretrain":
            named["model.checkpoint"] = config.model.checkpoint
        if config.teacher.checkpoint:
            named["teacher.checkpoint"] = config.teacher.checkpoint
        return named


def _checksum(checkpoint: str) -> int:
    """The CRC-32 of the file of weights at an address of the config, of an index' files as well."""
    path, crc = fetch(pretrained.address(checkpoint)), 0
    shards = shards_of(path) if path.name.endswith(INDEX) else []
    for part in (path, *(path.parent / name for name in shards)):
        with open(part, "rb") as file:
            while some := file.read(2**20):
                crc = zlib.crc32(some, crc)
    return crc


def _teacher(config: Config, student: Any) -> dict[str, Any]:
    """What a teacher's file, and those beside it, say that its arrays do not."""
    about = about_of(config.teacher.checkpoint)
    spec = latencies.described(teachers.teacher_spec(config, student))
    return {**spec, "mean": about.mean, "std": about.std}


def _architecture(file: str, spec: Any) -> int:
    """The CRC-32 of what is in a file that has an architecture of the dense model ``spec``."""
    architecture = architectures.load(file)
    architecture.check(spec)
    return zlib.crc32(architecture.to_json().encode())


def _table(latency: str) -> int:
    """The CRC-32 of what is in the table of a budget of latency, ``TABLE.json:SHARE``."""
    return zlib.crc32(latencies.load(latency.rpartition(":")[0]).to_json().encode())


def look_again(
    config: Config, workdir: Workdir, console: Console, inputs: Inputs | None = None
) -> None:
    """Compares what a finished run began from with what is there; says what is there no more.

    Raises:
      ConfigError: something has changed.
      StateError: what it began from was noted, and the note is damaged.
    """
    before = workdir.read_json(BEGAN, dict[str, Any])
    first = jax.process_index() == 0
    now, gone = hosts.from_first(_seen_again(config, inputs) if first else None)
    for problem in gone:
        console.say(f"what the run began from is not compared: {problem}")
    if before is not None:
        workdir.began({name: now.get(name, old) for name, old in before.items()})


def _seen_again(config: Config, inputs: Inputs | None) -> tuple[dict[str, Any], list[str]]:
    """What can be seen of a finished run's beginning, and why other things cannot."""
    seen, gone = dict[str, Any](), list[str]()
    for name, look in Beginning(config, inputs).looks().items():
        try:
            seen[name] = look()
        except USER_ERRORS as error:
            gone += [] if str(error) in gone else [str(error)]
    return seen, gone


@dataclasses.dataclass(frozen=True)
class Context:
    """One configuration at work."""

    config: Config
    workdir: Workdir
    console: Console
    should_stop: Callable[[], bool]  # asked after each step, for one answer on every process
    profile: str  # folder for traces of each training; "": none
    spec: Any  # of the dense model
    inputs: Inputs
    mesh: Mesh
    fresh: bool = False  # the dense model's head, which is yet to be trained

    @property
    def train(self) -> Source:
        """The images that are trained, scored and repaired on."""
        return self.inputs.train

    @property
    def test(self) -> Source:
        """The images that say how good a model is."""
        return self.inputs.test

    @property
    def name(self) -> str:
        """The dense model's."""
        model, kind = self.config.model, type(self.spec).__name__.removesuffix("Spec")
        return model.variant or Path(public(model.checkpoint)).stem or kind

    @property
    def labelled(self) -> bool:
        """Whether the test images have labels and the model a head that can tell them."""
        return bool(self.test.class_names) and self.spec.classes > 0

    @property
    def about(self) -> About:
        """What its models are trained on, to be kept in their files."""
        data, names = self.config.data, self.test.class_names
        if not names and self.inputs.dense is not None:
            names = (self.inputs.dense.about or About()).class_names
        elif not names and self.config.stage != "pretrain":
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
    inputs: Inputs | None = None,
) -> Context:
    """Opens the data and the devices; what cannot work is an error now, not after an hour.

    Raises:
      USER_ERRORS: see there.
    """
    with hosts.together(*USER_ERRORS):
        begins = Beginning(config, inputs)
        train, test, spec = begins.train, begins.test, begins.spec
        _check_budgets(config, spec)
        if begins.dense is None or config.teacher.checkpoint:
            for note in teachers.check_teachers(config, spec, test.class_names):
                console.say(note)
        check_labels(config, spec, test)
        _check_images(config, spec, len(train))
        fresh = begins.fresh
        seen = {name: look() for name, look in begins.looks().items()}
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
    inputs = Inputs(train, test, begins.dense)
    return Context(config, workdir, console, should_stop, profile, spec, inputs, mesh, fresh)


def _check_budgets(config: Config, spec: Any) -> None:
    """Raises BudgetError or SpaceError where a stage has a space or a budget that cannot be."""
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


def _check_images(config: Config, spec: Any, images: int) -> None:
    """Raises ConfigError where something wants more of the training images than they have."""
    if "int8.onnx" in config.export.formats and images < LEAST:
        raise ConfigError(
            f"export.formats: int8.onnx needs {LEAST} training images, there are {images};"
            " take dynamic.onnx, which needs none"
        )
    if config.judges and config.score.patch_weight and spec.blocks[-1].class_only:
        raise ConfigError(
            f"score.patch_weight={config.score.patch_weight:g} judges candidates by their"
            " patches, which nobody reads behind the last block of this model: its head sees"
            " class tokens alone; set it to 0"
        )


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
