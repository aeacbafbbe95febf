"""The stages of a run and what they hand each other.

Every stage is "restore the newest checkpoint, take the steps that are left": running the same
command again goes on where it stopped, and a finished stage is only read. Between stages there
are three things: a model, gate logits, an ``Architecture``.
"""

import dataclasses
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.config import Config, ConfigError, Training
from spvit_jax.convert import load_dense
from spvit_jax.convert.native import save_model
from spvit_jax.data.pipeline import (
    eval_batches,
    prefetch,
    steps_per_epoch,
    to_device,
    train_batches,
)
from spvit_jax.data.sources import open_source
from spvit_jax.measure import measure
from spvit_jax.models import VARIANTS, ViT, ViTSpec
from spvit_jax.progress import Console
from spvit_jax.report import Result, figure, table
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.budget import budget_loss, project
from spvit_jax.single_path.cost import cost, dense_macs
from spvit_jax.single_path.gates import Gates, decide, initial_logits
from spvit_jax.single_path.prune import count_parameters, fold, prune
from spvit_jax.single_path.supernet import supernet
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.loop import Loop, Metrics
from spvit_jax.training.metrics import MetricWriter, read_metrics
from spvit_jax.training.optim import optimizer, schedule
from spvit_jax.training.sharding import batch_sharded, data_mesh, replicated
from spvit_jax.training.step import (
    Objective,
    TrainState,
    init_state,
    make_eval_step,
    make_train_step,
)

PACKAGED = Path(__file__).parent / "models" / "packaged"
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def run(config: Config, workdir: Path, console: Console, should_stop: Callable[[], bool]) -> None:
    """Runs ``config.stage`` in ``workdir``, from the start or from where it was.

    Raises:
      Interrupted: ``should_stop`` said so; the same call goes on.
      ConfigError and the errors of sources, checkpoints and architectures: bad input.
    """
    claim(config, workdir)
    finished = workdir / "result.json"
    if finished.exists():
        console.stage("finished", f"{workdir} holds a finished run; its result:")
        console.say(table(Result.from_json(finished.read_text())))
        return
    run = Run(config, workdir, console, should_stop)
    if config.stage == "pretrain":
        run.pretrain()
    elif config.stage == "evaluate":
        run.top1("dense", run.dense())
    elif config.stage == "search":
        run.decide(run.search(run.dense())[1])
    else:
        run.compress()


def claim(config: Config, workdir: Path) -> None:
    """Makes ``workdir`` this configuration's, and notes the library versions.

    Raises:
      ConfigError: it cannot be written, or belongs to a run with another configuration.
    """
    file = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if file.exists():
            changed = _differences(json.loads(file.read_text()), dataclasses.asdict(config))
            if changed:
                raise ConfigError(
                    f"{workdir} belongs to a run with another configuration"
                    f" ({'; '.join(changed)}); go on with that one or choose another --workdir"
                )
        write_json(file, dataclasses.asdict(config))
        write_json(workdir / "versions.json", {name: metadata.version(name) for name in LIBRARIES})
    except OSError as error:
        raise ConfigError(
            f"cannot write to --workdir={workdir} ({error.strerror}); choose a folder you own"
        ) from error


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """Every field of two configurations that differs, as ``name: old, now new``."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{path}{name}.")
        elif json.dumps(old) != json.dumps(new):
            found.append(f"{path}{name}: {old}, now {new}")
    return found


def write_json(path: Path, values: Any) -> None:
    """A JSON file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(values, indent=1) + "\n")
    temporary.replace(path)


class Run:
    """One configuration at work: its data, mesh and dense spec, and a method a stage."""

    def __init__(
        self, config: Config, workdir: Path, console: Console, should_stop: Callable[[], bool]
    ):
        self.config = config
        self.workdir = workdir
        self.console = console
        self.should_stop = should_stop
        self.mesh = data_mesh()
        self.test = open_source(config.data, config.data.test_split)
        self.spec = self._spec()

    def _spec(self) -> ViTSpec:
        model = self.config.model
        if model.variant not in VARIANTS:
            raise ConfigError(
                f"model.variant must be one of {', '.join(VARIANTS)}; got {model.variant!r}"
            )
        spec = VARIANTS[model.variant]
        classes = model.classes or len(self.test.class_names)
        if classes < len(self.test.class_names):
            raise ConfigError(
                f"model.classes={classes}, but the data has {len(self.test.class_names)} classes;"
                " set it to 0"
            )
        size = model.image_size or spec.image_size
        return dataclasses.replace(spec, image_size=size, classes=classes)

    @property
    def target_macs(self) -> int:
        """The budget F*, in MACs."""
        search = self.config.search
        if search.target_gmacs > 0:
            return round(search.target_gmacs * 1e9)
        return round(search.target_ratio * dense_macs(self.spec))

    def dense(self) -> ViT:
        """The pretrained dense model."""
        model = self.config.model
        if not model.checkpoint:
            raise ConfigError(
                "model.checkpoint is empty: search and pruning start from pretrained weights;"
                " give a .pth or .safetensors file, or an https:// or hf-hub: address"
            )
        address = model.checkpoint
        if address.startswith("packaged:"):
            address = str(PACKAGED / f"{address.removeprefix('packaged:')}.safetensors")
        dense, notes = load_dense(address, self.spec, **self._model_options())
        for note in notes:
            self.console.say(note)
        macs, parameters = dense_macs(self.spec), count_parameters(dense)
        self.console.stage(
            "dense", f"{model.variant}: {parameters:,} parameters, {macs:,} MACs, from {address}"
        )
        return dense

    def _model_options(self) -> dict[str, Any]:
        model = self.config.model
        return {
            "dropout": model.dropout,
            "drop_path": model.drop_path,
            "dtype": None if model.dtype == "float32" else jnp.dtype(model.dtype),
            "remat": model.remat,
        }

    def pretrain(self) -> None:
        """Trains the dense model from scratch; its weights go to ``pretrained.safetensors``."""
        model = ViT(self.spec, rngs=nnx.Rngs(self.config.seed), **self._model_options())
        model, _ = self.fit("pretrain", model, self.config.pretrain)
        save_timm(self.workdir / "pretrained.safetensors", model)
        self.top1("pretrained", model)

    def search(self, dense: ViT) -> tuple[ViT, Gates]:
        """Trains weights and gates under the budget; the supernet and its gate logits."""
        search, target = self.config.search, self.target_macs
        self.console.stage("search", f"{search.epochs:g} epochs towards {target:,} MACs")

        def penalty(logits: Gates) -> jax.Array:
            return budget_loss(self.spec, logits, target / 1e9, search.budget_lambda)

        def describe(state: TrainState) -> Metrics:
            return search_metrics(self.spec, jax.device_get(state.gates), target)

        return self.fit(
            "search",
            supernet(dense),
            search,
            gates=initial_logits(self.spec.blocks),
            gate_learning_rate=search.gate_learning_rate,
            penalty=penalty,
            describe=describe,
        )

    def decide(self, logits: Gates) -> Architecture:
        """The architecture of the gate logits, written to ``architecture.json``."""
        variant = self.config.model.variant
        threshold = architectures.from_gates(decide(logits), variant)
        projected = project(logits, self.spec, self.target_macs, variant)
        found = projected if self.config.search.decision == "project" else threshold
        found.save(self.workdir / "architecture.json")
        threshold.save(self.workdir / "architecture_threshold.json")
        self.console.stage(
            "decide",
            f"{' '.join(found.ops)}; {found.macs(self.spec):,} MACs"
            f" (plain threshold: {threshold.macs(self.spec):,})",
        )
        return found

    def compress(self) -> None:
        """Search (or a given architecture), prune, fine-tune, fold, evaluate, measure."""
        dense = self.dense()
        dense_top1 = self.top1("dense", dense)
        if self.config.stage == "finetune":
            found = architectures.load(self._given_architecture())
            found.check(self.spec)
            searched, target, threshold, decision = None, None, None, "given"
        else:
            searched, logits = self.search(dense)
            found = self.decide(logits)
            plain = architectures.load(self.workdir / "architecture_threshold.json")
            target, threshold = self.target_macs, plain.macs(self.spec)
            decision = self.config.search.decision
        from_search = self.config.finetune.start == "searched" and searched is not None
        pruned = prune(searched if from_search else dense, found)
        decided_top1 = self.top1("decided", pruned)
        tuning = self.config.finetune
        self.console.stage("finetune", f"{tuning.epochs:g} epochs from the {tuning.start} weights")
        pruned, _ = self.fit("finetune", pruned, tuning)
        folded = fold(pruned, batch_norm=True)
        save_model(self.workdir / "pruned.safetensors", folded, "deploy", found)
        result = Result(
            model=self.config.model.variant,
            ops=found.ops,
            ffn_widths=found.widths,
            dense_ffn_widths=tuple(block.hidden for block in self.spec.blocks),
            target_macs=target,
            dense_macs=dense_macs(self.spec),
            pruned_macs=found.macs(self.spec),
            threshold_macs=threshold,
            decision=decision,
            dense_top1=dense_top1,
            decided_top1=decided_top1,
            pruned_top1=self.top1("pruned", folded),
            dense_params=count_parameters(dense),
            shared_params=count_parameters(pruned),
            folded_params=count_parameters(fold(pruned)),
            timings=self._timings(dense, folded),
            measure_batch=self.config.measure_batch,
            device=jax.devices()[0].device_kind,
            seed=self.config.seed,
        )
        self._report(result)

    def _given_architecture(self) -> str:
        if not self.config.finetune.architecture:
            raise ConfigError(
                "stage=finetune needs finetune.architecture: the JSON of a search, or one of"
                " configs/architectures/"
            )
        return self.config.finetune.architecture

    def _timings(self, dense: ViT, folded: ViT) -> dict[str, Any]:
        self.console.stage("measure", f"latency, and throughput at {self.config.measure_batch}")
        return measure(
            {"dense": dense, "pruned": folded},
            image_size=self.spec.image_size,
            batch_size=self.config.measure_batch,
            seconds=self.config.measure_seconds,
        )

    def _report(self, result: Result) -> None:
        metrics = self.workdir / "search"
        trajectory = read_metrics(metrics) if metrics.exists() else []
        figure(result, trajectory, self.workdir / "report.png")
        (self.workdir / "table.txt").write_text(table(result) + "\n")
        write_json(self.workdir / "result.json", json.loads(result.to_json()))
        self.console.say(table(result))
        self.console.stage("finished", f"report.png and pruned.safetensors are in {self.workdir}")

    def fit(
        self,
        name: str,
        model: ViT,
        training: Training,
        *,
        gates: Gates = (),
        gate_learning_rate: float = 0.0,
        penalty: Callable[[Gates], jax.Array] | None = None,
        describe: Callable[[TrainState], Metrics] = lambda state: {},
    ) -> tuple[ViT, Gates]:
        """Trains ``model`` as ``training`` says; the model and gate logits at the end."""
        data, everywhere = self.config.data, replicated(self.mesh)
        train = open_source(data, data.train_split)
        per_epoch = steps_per_epoch(train, training.batch_size)
        steps = max(round(training.epochs * per_epoch), 1)
        rate = schedule(training, steps, per_epoch)
        optimiser = optimizer(training, rate, gate_learning_rate)
        objective = self._objective(training, penalty)
        graph = nnx.graphdef(model)
        seed = self.config.seed
        state = init_state(
            model, optimiser, gates=gates, seed=seed, average=training.ema_decay > 0
        )
        evaluation = make_eval_step(graph, objective, self.mesh)

        def evaluate(state: TrainState) -> Metrics:
            params = state.params if state.average is None else state.average
            chosen = decide(state.gates) if state.gates else None
            return {"top1": self._accuracy(evaluation, params, state.stats, chosen)}

        with Checkpoints(self.workdir / name, self.config.checkpoint_every) as checkpoints:
            state = checkpoints.restore(state, everywhere) or jax.device_put(state, everywhere)
            start = int(state.step)
            loop = Loop(
                name=name,
                steps=steps,
                batch_size=training.batch_size,
                log_every=self.config.log_every,
                eval_steps=round(self.config.eval_every * per_epoch),
                evaluate=evaluate,
                should_stop=self.should_stop,
                describe=describe,
            )
            batches = train_batches(
                train,
                batch_size=training.batch_size,
                image_size=self.spec.image_size,
                augment=data.augment,
                seed=seed,
                start_step=start,
                workers=data.workers,
            )
            with MetricWriter(self.workdir / name, start) as writer:
                step = make_train_step(graph, optimiser, objective, self.mesh)
                device_batches = prefetch(batches, batch_sharded(self.mesh))
                state = loop.run(state, step, device_batches, checkpoints, writer, self.console)
        params = state.params if state.average is None else state.average
        return nnx.merge(graph, params, state.stats, copy=True), state.gates

    def _objective(
        self, training: Training, penalty: Callable[[Gates], jax.Array] | None = None
    ) -> Objective:
        return Objective(
            mean=self.config.data.mean,
            std=self.config.data.std,
            label_smoothing=training.label_smoothing,
            penalty=penalty,
            accumulation=training.accumulation,
            ema_decay=training.ema_decay,
        )

    def top1(self, name: str, model: ViT) -> float:
        """Top-1 on the test split, a fraction; measured once, then read from ``NAME.json``."""
        file = self.workdir / f"{name}.json"
        if not file.exists():
            graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
            evaluation = make_eval_step(graph, self._objective(self.config.finetune), self.mesh)
            write_json(file, {"top1": self._accuracy(evaluation, params, stats, None)})
        top1 = json.loads(file.read_text())["top1"]
        self.console.stage("evaluate", f"{name}: top-1 {top1:.2%} of {len(self.test):,} images")
        return top1

    def _accuracy(
        self, step: Callable, params: nnx.State, stats: nnx.State, gates: Gates | None
    ) -> float:
        data = self.config.data
        batches = eval_batches(
            self.test,
            batch_size=data.eval_batch_size,
            image_size=self.spec.image_size,
            crop_ratio=data.crop_ratio,
            workers=data.workers,
        )
        sharding = batch_sharded(self.mesh)
        counts = [step(params, stats, gates, to_device(batch, sharding)) for batch in batches]
        return sum(int(count) for count in counts) / len(self.test)


def search_metrics(spec: ViTSpec, logits: Gates, target: int) -> Metrics:
    """What the trajectory shows: MACs under the plain threshold, and gate probabilities."""
    values = {"macs": float(cost(spec, decide(logits))), "target_macs": float(target)}
    for i, block in enumerate(logits):
        kernel, ffn = (1 / (1 + np.exp(-np.asarray(x))) for x in block)
        values |= {f"kernel_probability/{i}/{j}": float(p) for j, p in enumerate(kernel)}
        values[f"ffn_probability/{i}"] = float(ffn.mean())
    return values
