"""The stages of a run and what they hand each other.

Every stage is "restore the newest checkpoint, take the steps that are left": running the same
command again goes on where it stopped, and what is finished is only read. Between stages there
are three things: a model, gate logits, an ``Architecture``.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spvit_jax import evaluation, hosts, pretrained
from spvit_jax.config import STAGES, Config, ConfigError, Training
from spvit_jax.convert import About, about_of, save, save_torch
from spvit_jax.convert import CheckpointError as PretrainedError
from spvit_jax.data.errors import DataError
from spvit_jax.data.fingerprint import fingerprint
from spvit_jax.data.pipeline import steps_per_epoch
from spvit_jax.data.sources import open_source
from spvit_jax.measure import measure
from spvit_jax.models import MODELS, Classifier, RegNetSpec
from spvit_jax.progress import Console
from spvit_jax.report import Held, Result, figure, table
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture, ArchitectureError
from spvit_jax.single_path.budget import BudgetError
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.latency import TableError
from spvit_jax.single_path.prices import cost, count_parameters
from spvit_jax.single_path.prune import fold, form, prune
from spvit_jax.single_path.space import SpaceError
from spvit_jax.single_path.supernet import supernet
from spvit_jax.training.checkpoint import CheckpointError
from spvit_jax.training.fit import Trainer
from spvit_jax.training.loop import Interrupted, Metrics, NonFiniteLoss
from spvit_jax.training.metrics import read_metrics
from spvit_jax.training.sharding import check_batch, host, make_mesh
from spvit_jax.training.step import TrainState
from spvit_jax.training.teacher import Teacher
from spvit_jax.workdir import Workdir, versions

RESULT = {  # the last file of each stage
    "all": "result.json",
    "finetune": "result.json",
    "search": "architecture.json",
    "pretrain": "pretrained.json",
    "evaluate": "evaluation.json",
}
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
    SpaceError,
    TableError,
)


def run(
    config: Config,
    workdir: str | os.PathLike,
    console: Console,
    should_stop: Callable[[], bool],
    *,
    profile: str = "",
) -> None:
    """Runs ``config.stage`` in ``workdir``, from the start or from where it was.

    Args:
      config: what to do, the same on every process.
      workdir: a folder that all processes see, or ``gs://``.
      console: where it says what it does.
      should_stop: asked after each step, for the same answer on every process.
      profile: folder for a ``jax.profiler`` trace of each training; "": none.

    Raises:
      Interrupted: ``should_stop`` said so; the same call goes on.
      USER_ERRORS: bad input, or a disk that does not write.
    """
    hosts.agree({"config": dataclasses.asdict(config)} | versions())
    files = Workdir(workdir)
    files.claim(config)
    result = files / RESULT[config.stage]
    if files.exists(result.name):
        console.stage("finished", f"before this run; nothing is left to do, see {result}")
        if result.name == "result.json":
            console.say(table(Result.from_json(result.read_text())))
        if result.name == "evaluation.json":
            console.say(evaluation.summary(evaluation.Report.from_json(result.read_text())))
        return
    with jax.default_device(host()):  # of models; trainings and measurements choose their own
        stages = Run(config, files, console, should_stop, profile)
        getattr(stages, config.stage)()
    hosts.from_first(None)  # no process ends before process 0 has written everything
    console.stage("finished", f"{RESULT[config.stage]} and all else is in {workdir}")


class Run:
    """One configuration at work: its data and dense spec, and a method for each stage."""

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        console: Console,
        should_stop: Callable[[], bool],
        profile: str = "",
    ):
        self.config = config
        self.workdir = workdir
        self.console = console
        self.should_stop = should_stop
        with hosts.together(*USER_ERRORS):
            train, test = (open_source(config.data, s) for s in _splits(config))
            seen = {"data.train": fingerprint(train), "data.test": fingerprint(test)}
            self.spec: Any = pretrained.dense_spec(config, len(test.class_names))
            if "search" in STAGES[config.stage]:  # a budget that cannot be is an error now
                gating = Gating.of(config.search, config.budget, self.spec)
                gating.project(gating.initial())
        hosts.agree(seen)
        self.name = config.model.variant or Path(config.model.checkpoint).stem
        self.trainer = Trainer(
            config,
            workdir,
            make_mesh(config.sharding.fsdp),
            train,
            test,
            self.spec.image_size,
            console,
            should_stop,
            profile,
        )
        for name in STAGES[config.stage]:  # now, and not after an hour of another stage
            training = getattr(config, name)
            check_batch(name, training, jax.device_count())
            steps_per_epoch(len(train), training.batch_size)

    def stage(self, name: str, text: str) -> None:
        """Announces a stage that takes its time, unless the run is to stop before it."""
        if self.should_stop():
            raise Interrupted(f"stopped before {name}")
        self.console.stage(name, text)

    def all(self) -> None:
        """Search, decide, prune, fine-tune, fold, evaluate, measure."""
        dense = self._dense()
        dense_top1 = self._top1("dense", dense)
        gating = self._gating(dense)
        searched, logits = self._search(dense, gating)
        found, budgets = self._decide(gating, logits)
        start = searched if self.config.finetune.start == "searched" else dense
        self._compress(
            dense,
            start,
            found,
            budgets=budgets,
            candidates=gating.space.ops,
            decision=self.config.search.decision,
            dense_top1=dense_top1,
        )

    def search(self) -> None:
        """Search and decide: ends with ``architecture.json``."""
        dense = self._dense()
        gating = self._gating(dense)
        self._decide(gating, self._search(dense, gating)[1])

    def finetune(self) -> None:
        """As ``all``, of a given architecture and from the pretrained weights."""
        with hosts.together(*USER_ERRORS):
            found = architectures.load(self.config.finetune.architecture)
            found.check(self.spec)
        text = np.frombuffer(found.to_json().encode(), np.uint8)
        hosts.agree_on("finetune.architecture", text)
        dense = self._dense()
        self._compress(
            dense,
            dense,
            found,
            budgets=(),
            candidates=(),
            decision="given",
            dense_top1=self._top1("dense", dense),
        )

    def evaluate(self) -> None:
        """Top-1, top-5 and each class of the model in the checkpoint, dense or pruned."""
        config, names = self.config, self.trainer.test.class_names
        notes: list[str] = []
        with hosts.together(*USER_ERRORS):
            network = pretrained.load_trained(config, self.spec, notes)
        hosts.agree_on("model.checkpoint", nnx.state(network))
        about = about_of(pretrained.address(config.model.checkpoint))
        notes += pretrained.check_about(about, config, names)
        parameters, file = count_parameters(network), config.model.checkpoint
        self.console.stage("model", f"{file}: {form(network)}, {parameters:,} parameters")
        for note in notes:
            self.console.say(note)
        data = f"{config.data.source}, {config.data.test_split}"
        self.stage("evaluate", f"{len(self.trainer.test):,} images of {data}")
        trainer = dataclasses.replace(self.trainer, image_size=network.spec.image_size)
        counts = trainer.evaluate(network)
        model = Path(file).stem
        found = evaluation.report(counts, names, model=model, form=form(network), data=data)
        title = f"{model}: top-1 {counts.top1:.2%} of {counts.images:,} images"
        write = self.workdir.write
        write("confusion.png", lambda path: evaluation.figure(counts, names, title, path))
        write("evaluation.txt", lambda path: path.write_text(evaluation.table(found) + "\n"))
        self.workdir.write_json("evaluation.json", dataclasses.asdict(found))
        self.console.say(evaluation.summary(found))

    def pretrain(self) -> None:
        """Trains the dense model from scratch; its weights go to ``pretrained.safetensors``."""
        training = self.config.pretrain
        network = MODELS[type(self.spec)]
        model = network(
            self.spec, rngs=nnx.Rngs(self.config.seed), **pretrained.options(self.config, self.spec)
        )
        self.stage("pretrain", f"{training.epochs:g} epochs from scratch")
        teacher = self._teacher(training)
        model, _ = self.trainer.fit("pretrain", model, training, teacher=teacher)
        self.workdir.write("pretrained.safetensors", lambda path: save_torch(model, path))
        self._top1("pretrained", model)

    def _dense(self) -> Classifier:
        """The pretrained dense model."""
        notes: list[str] = []
        with hosts.together(*USER_ERRORS):
            dense = pretrained.load_dense(self.config, self.spec, notes)
        hosts.agree_on("model.checkpoint", nnx.state(dense))
        facts = [f"{self.name}: {count_parameters(dense):,} parameters"]
        if not isinstance(self.spec, RegNetSpec):
            run, published = prices.macs(self.spec), prices.published_macs(self.spec)
            facts.append(f"{run.dense:,} MACs, {published.dense:,} as published")
        self.console.stage("dense", ", ".join(facts))
        for note in notes:
            self.console.say(note)
        return dense

    def _teacher(self, training: Training) -> Callable[[], Teacher] | None:
        """What loads the teacher of a training that distils."""
        if training.distillation == "none":
            return None

        def load() -> Teacher:
            with hosts.together(*USER_ERRORS):
                teacher = pretrained.load_teacher(self.config, self.spec)
            hosts.agree_on("teacher.checkpoint", teacher.state)
            name = self.config.teacher.checkpoint or f"{self.name}, dense"
            self.console.say(f"teacher   {name}: {training.distillation} distillation")
            return teacher

        return load

    def _top1(self, name: str, model: Classifier) -> float:
        """Top-1 on the test split, a fraction; measured once, then read from ``NAME.json``."""
        found = self.workdir.read_json(f"{name}.json")
        if found is None:
            counts = self.trainer.evaluate(model)
            found = {"top1": counts.top1, "top5": counts.top5, "images": counts.images}
            self.workdir.write_json(f"{name}.json", found)
        top1, images = found["top1"], found.get("images", len(self.trainer.test))
        self.console.stage("evaluate", f"{name}: top-1 {top1:.2%} of {images:,} images")
        return top1

    def _gating(self, dense: Classifier) -> Gating:
        """What the search chooses from and within."""
        with hosts.together(*USER_ERRORS):
            gating = Gating.of(self.config.search, self.config.budget, self.spec, dense)
        hosts.agree_on("budget.latency", [budget.prices.blocks for budget in gating.budgets])
        return gating

    def _search(self, dense: Classifier, gating: Gating) -> tuple[Classifier, Gates]:
        """Trains weights and gates under the budgets; the supernet and its gate logits."""
        search = self.config.search
        budgets = ", ".join(f"{b.target:,.8g} {b.prices.unit}" for b in gating.budgets)
        self.stage("search", f"{search.epochs:g} epochs towards {budgets}")

        def describe(state: TrainState) -> Metrics:
            return gating.metrics(jax.device_get(state.gates))

        return self.trainer.fit(
            "search",
            supernet(dense, gating.space.ops),
            search,
            gating=gating,
            describe=describe,
            teacher=self._teacher(search),
        )

    def _decide(self, gating: Gating, logits: Gates) -> tuple[Architecture, tuple[Held, ...]]:
        """The architecture of the gate logits, as the config decides, and what it costs."""
        variant = self.config.model.variant
        threshold = gating.threshold(logits, variant)
        found = threshold
        if self.config.search.decision == "project":
            found = gating.project(logits, variant)
        held = tuple(
            Held(
                budget.prices.unit,
                budget.target,
                budget.prices.dense,
                *(
                    cost(budget.prices, a.gates(self.spec, gating.space.ops)).item()
                    for a in (found, threshold)
                ),
            )
            for budget in gating.budgets
        )
        self.console.stage(
            "decide",
            "; ".join(
                [architectures.describe(found, self.spec)]
                + [f"{h.found:,.8g} {h.unit} (plain threshold: {h.threshold:,.8g})" for h in held]
            ),
        )
        self.workdir.write("architecture_threshold.json", threshold.save)
        self.workdir.write("architecture.json", found.save)
        return found, held

    def _compress(
        self, dense: Classifier, start: Classifier, found: Architecture, **known: Any
    ) -> None:
        """Prunes, fine-tunes, folds, evaluates and measures; ``known`` is of the ``Result``."""
        pruned = prune(start, found)
        decided_top1 = self._top1("decided", pruned)
        tuning = self.config.finetune
        self.stage("finetune", f"{tuning.epochs:g} epochs from the {tuning.start} weights")
        pruned, _ = self.trainer.fit("finetune", pruned, tuning, teacher=self._teacher(tuning))
        folded = fold(pruned, batch_norm=True)
        data = self.config.data
        about = About(self.trainer.test.class_names, data.mean, data.std, data.crop_ratio)
        self.workdir.write("pruned.safetensors", lambda path: save(folded, path, about=about))
        blocks, run = self.spec.blocks, prices.macs(self.spec)
        published = prices.published_macs(self.spec)
        self._report(
            Result(
                model=self.name,
                ops=found.ops,
                heads=found.head_counts(self.spec),
                dense_heads=tuple(block.heads for block in blocks),
                ffn_widths=found.widths,
                dense_ffn_widths=tuple(block.hidden for block in blocks),
                dense_macs=run.dense,
                pruned_macs=found.price(run, self.spec),
                dense_published_macs=published.dense,
                pruned_published_macs=found.price(published, self.spec),
                decided_top1=decided_top1,
                pruned_top1=self._top1("pruned", folded),
                dense_params=count_parameters(dense),
                shared_params=count_parameters(pruned),
                folded_params=count_parameters(fold(pruned)),
                timings=self._timings(dense, folded),
                measure_batch=self.config.measure_batch,
                device=jax.devices()[0].device_kind,
                seed=self.config.seed,
                **known,
            )
        )

    def _timings(self, dense: Classifier, folded: Classifier) -> dict[str, Any]:
        self.stage("measure", f"latency, and throughput at {self.config.measure_batch}")
        return measure(
            {"dense": dense, "pruned": folded},
            image_size=self.spec.image_size,
            batch_size=self.config.measure_batch,
            seconds=self.config.measure_seconds,
        )

    def _report(self, result: Result) -> None:
        trajectory = read_metrics(self.workdir / "search")
        self.workdir.write("report.png", lambda path: figure(result, trajectory, path))
        self.workdir.write("table.txt", lambda path: path.write_text(table(result) + "\n"))
        self.workdir.write_json("result.json", json.loads(result.to_json()))
        self.console.say(table(result))


def _splits(config: Config) -> tuple[str, str]:
    """Names of the training and the test split; who does not train needs only the latter."""
    data = config.data
    return data.train_split if STAGES[config.stage] else data.test_split, data.test_split
