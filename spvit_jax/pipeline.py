"""The stages of a run and what they hand each other.

Every stage is a function over a ``Context``: "restore the newest checkpoint, take the steps that
are left". Running the same command again goes on where it stopped, and what is finished is only
read. Between stages there are three things: a model, gate logits, an ``Architecture``.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spvit_jax import evaluation, frontier, hosts, pretrained
from spvit_jax.calibrated import repaired, score
from spvit_jax.config import Config
from spvit_jax.context import (
    USER_ERRORS,
    Context,
    calibrate,
    fit,
    load_dense,
    open_context,
)
from spvit_jax.convert import about_of, save, save_torch
from spvit_jax.exported import write_files
from spvit_jax.judged import evaluate, judge, quality
from spvit_jax.measure import measure
from spvit_jax.merges import Schedules
from spvit_jax.models import MODELS, Classifier
from spvit_jax.progress import Console
from spvit_jax.quality import Quality
from spvit_jax.report import Held, Result, figure, table
from spvit_jax.shortlist import shortlist
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.budget import Budget
from spvit_jax.single_path.candidates import candidates
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.prices import cost, count_parameters
from spvit_jax.single_path.prior import scored_logits
from spvit_jax.single_path.prune import fold, form, prune
from spvit_jax.single_path.score import Scores
from spvit_jax.single_path.supernet import supernet
from spvit_jax.training.loop import Interrupted
from spvit_jax.training.metrics import read_metrics
from spvit_jax.training.sharding import host
from spvit_jax.trials import Tried
from spvit_jax.workdir import Workdir, versions

__all__ = ["STAGES", "USER_ERRORS", "Interrupted", "run"]


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
    with files.locked():
        note = files.claim(config)
        if note:
            console.say(note)
        _run(config, files, console, should_stop, profile)


def _run(
    config: Config,
    files: Workdir,
    console: Console,
    should_stop: Callable[[], bool],
    profile: str,
) -> None:
    """Runs a stage in a folder that is its own."""
    stage = STAGES[config.stage]
    if files.exists(stage.result):
        found = files.finished(stage.result, stage.kind, stage.others)
        result = files / stage.result
        console.stage("finished", f"before this run; nothing is left to do, see {result}")
        if stage.summary:
            console.say(stage.summary(found))
        return
    with jax.default_device(host()):  # of models; trainings and measurements choose their own
        stage.run(open_context(config, files, console, should_stop, profile))
    hosts.from_first(None)  # no process ends before process 0 has written everything
    console.stage("finished", f"{stage.result} and all else is in {files.path}")


def run_all(context: Context) -> None:
    """Score, search, decide, try, prune, fine-tune, fold, evaluate, measure; what the config has of
    these.
    """
    dense = load_dense(context)
    before = quality(context, "dense", dense, dense)
    decision, searched = choose(context, dense)
    start = searched if context.config.finetune.start == "searched" else dense
    compress(context, dense, before, start, decision)


def run_search(context: Context) -> None:
    """Chooses as ``run_all`` does: ends with ``architecture.json``."""
    choose(context, load_dense(context))


def run_finetune(context: Context) -> None:
    """As ``run_all``, of a given architecture and from the pretrained weights."""
    with hosts.together(*USER_ERRORS):
        found = architectures.load(context.config.finetune.architecture)
        found.check(context.spec)
    text = np.frombuffer(found.to_json().encode(), np.uint8)
    hosts.agree_on("finetune.architecture", text)
    dense = load_dense(context)
    before = quality(context, "dense", dense, dense)
    compress(context, dense, before, dense, Decision(found, "given"))


def run_evaluate(context: Context) -> None:
    """Top-1, top-5 and each class of the model in the checkpoint, dense or pruned."""
    config, names, console = context.config, context.test.class_names, context.console
    notes: list[str] = []
    with hosts.together(*USER_ERRORS):
        network = pretrained.load_trained(config, context.spec, notes)
    hosts.agree_on("model.checkpoint", nnx.state(network))
    about = about_of(pretrained.address(config.model.checkpoint))
    notes += pretrained.check_about(about, config, names)
    parameters, file = count_parameters(network), config.model.checkpoint
    console.stage("model", f"{file}: {form(network)}, {parameters:,} parameters")
    for note in notes:
        console.say(note)
    if not context.labelled:
        _compare(context, network)
        return
    data = f"{config.data.source}, {config.data.test_split}"
    context.announce("evaluate", f"{len(context.test):,} images of {data}")
    counts = evaluate(context, network)
    model = Path(file).stem
    found = evaluation.report(counts, names, model=model, form=form(network), data=data)
    title = f"{model}: top-1 {counts.top1:.2%} of {counts.images:,} images"
    write = context.workdir.write
    write("confusion.png", lambda path: evaluation.figure(counts, names, title, path))
    write("evaluation.txt", lambda path: path.write_text(evaluation.table(found) + "\n"))
    context.workdir.write_json("evaluation.json", found)
    console.say(evaluation.summary(found))


def _compare(context: Context, network: Classifier) -> None:
    """Evaluates a model without labels: by how near its features are to the teacher's."""
    with hosts.together(*USER_ERRORS):
        other = pretrained.load_reference(context.config, network.spec)
    hosts.agree_on("teacher.checkpoint", nnx.state(other))
    found = judge(context, network, other)
    context.console.stage("evaluate", found.said())
    context.workdir.write("evaluation.txt", lambda path: path.write_text(found.said() + "\n"))
    context.workdir.write_json("evaluation.json", found)


def run_pretrain(context: Context) -> None:
    """Trains the dense model from scratch; its weights go to ``pretrained.safetensors``."""
    config, spec = context.config, context.spec
    options = pretrained.options(config, spec)
    model = MODELS[type(spec)](spec, rngs=nnx.Rngs(config.seed), **options)
    context.announce("pretrain", f"{config.pretrain.epochs:g} epochs from scratch")
    model, _ = fit(context, "pretrain", model, config.pretrain)
    context.workdir.write("pretrained.safetensors", lambda path: save_torch(model, path))
    quality(context, "pretrained", model, model)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of what a run may do."""

    run: Callable[[Context], None]
    result: str  # its last file
    others: tuple[str, ...] = ()  # that are there as well then
    kind: Any = dict[str, Any]  # what that file holds
    summary: Callable[[Any], str] | None = None  # of that, for a run that finds it


def _evaluated(found: Quality | evaluation.Report) -> str:
    return found.said() if isinstance(found, Quality) else evaluation.summary(found)


_MODEL = ("pruned.safetensors", "architecture.json")
STAGES = {
    "all": Stage(run_all, "result.json", _MODEL, Result, table),
    "search": Stage(run_search, "architecture.json"),
    "finetune": Stage(run_finetune, "result.json", _MODEL[:1], Result, table),
    "frontier": Stage(frontier.run_frontier, "frontier.json", (), frontier.Curve, frontier.summary),
    "pretrain": Stage(run_pretrain, "pretrained.json", ("pretrained.safetensors",)),
    "evaluate": Stage(run_evaluate, "evaluation.json", (), Quality | evaluation.Report, _evaluated),
}


def choose(context: Context, dense: Classifier) -> tuple["Decision", Classifier]:
    """Decides by a search or by scores alone, and tries that against simpler architectures.

    Returns:
      The decision, and the network whose weights a search has trained; the dense one without.
    """
    config, network, threshold = context.config, dense, None
    with hosts.together(*USER_ERRORS):
        gating = Gating.of(config.search, config.budget, context.spec, dense)
    hosts.agree_on("budget.latency", [budget.prices.blocks for budget in gating.budgets])
    found: dict[str, Architecture] = {}
    if config.scores:
        scores = score(context, dense, calibrate(context))
        found = candidates(gating.space, scores, gating.budgets, config.model.variant)
        merging = _merging(context, dense, scores) if config.merges else {}
        if merging:  # of what merges nothing, what is scored alone goes on
            found = merging | {"scored": found["scored"]}
        if config.search.epochs and config.search.start == "scores":
            start = scored_logits(gating.space, scores, gating.budgets)
            gating = dataclasses.replace(gating, start=start)
    if config.search.epochs:
        network, logits = search(context, dense, gating)
        threshold = gating.threshold(logits, config.model.variant)
        context.workdir.write("architecture_threshold.json", threshold.save)
        projects = config.search.decision == "project"
        decided = gating.project(logits, config.model.variant) if projects else threshold
        found = {config.search.decision: decided} | found
    by, architecture = shortlist(context, dense, found)
    held = _held(context, gating, architecture, threshold)
    said = [architectures.describe(architecture, context.spec), *map(_cost, held)]
    context.console.stage("decide", "; ".join(said))
    context.workdir.write("architecture.json", architecture.save)
    return Decision(architecture, by, gating.space.ops, held), network


def _merging(context: Context, dense: Classifier, scores: Scores) -> dict[str, Architecture]:
    """Candidates that merge tokens, by the best schedule; none where merging is no better."""
    config = context.config
    merges = Schedules(context, "merges", config.budget, dense, scores).choose()
    if not merges:
        return {}
    gating = Gating.of(config.search, config.budget, context.spec, dense, merges)
    found = candidates(gating.space, scores, gating.budgets, config.model.variant)
    return {f"{name}, merged": architecture for name, architecture in found.items()}


def search(context: Context, dense: Classifier, gating: Gating) -> tuple[Classifier, Gates]:
    """Trains weights and gates under the budgets; the supernet and its gate logits."""
    training = context.config.search
    budgets = ", ".join(f"{b.target:,.8g} {b.prices.unit}" for b in gating.budgets)
    context.announce("search", f"{training.epochs:g} epochs towards {budgets}")
    network = supernet(dense, gating.space.ops)
    return fit(context, "search", network, training, gating=gating)


def _cost(held: Held) -> str:
    plain = "" if held.threshold is None else f" (plain threshold: {held.threshold:,.8g})"
    return f"{held.found:,.8g} {held.unit}{plain}"


def _held(
    context: Context, gating: Gating, found: Architecture, threshold: Architecture | None
) -> tuple[Held, ...]:
    """What architectures take of the budgets."""
    config, spec = context.config, context.spec
    merging = Gating.of(config.search, config.budget, spec, merges=found.merges).budgets

    def price(budget: Budget, architecture: Architecture) -> float:
        return cost(budget.prices, architecture.gates(spec, gating.space.ops)).item()

    return tuple(
        Held(
            plain.prices.unit,
            plain.target,
            plain.prices.dense,
            price(merged, found),
            None if threshold is None else price(plain, threshold),
        )
        for plain, merged in zip(gating.budgets, merging, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class Decision:
    """What a model is pruned to, and how that was found."""

    architecture: Architecture
    by: str  # see ``Result``
    candidates: tuple[str, ...] = ()  # operations it was chosen from
    budgets: tuple[Held, ...] = ()


def compress(
    context: Context, dense: Classifier, before: Quality, start: Classifier, decision: Decision
) -> None:
    """Prunes, fine-tunes, folds, evaluates, measures and reports.

    Args:
      context: of the run.
      dense: what is compared with.
      before: how good that is.
      start: what is pruned: the dense model or a supernet.
      decision: what of it is kept.
    """
    tuning = context.config.finetune
    if tuning.start == "repaired":
        calibration = calibrate(context)
        pruned = repaired(context, start, decision.architecture, calibration)
    else:
        pruned = prune(start, decision.architecture)
    decided = quality(context, "decided", pruned, dense)
    context.announce("finetune", f"{tuning.epochs:g} epochs from the {tuning.start} weights")
    pruned, _ = fit(context, "finetune", pruned, tuning)
    folded = fold(pruned, batch_norm=True)
    context.workdir.write(
        "pruned.safetensors", lambda path: save(folded, path, about=context.about)
    )
    write_files(context, folded)
    after = quality(context, "pruned", folded, dense)
    spec, found = context.spec, decision.architecture
    run, published = prices.macs(spec), prices.published_macs(spec)
    result = Result(
        model=context.name,
        ops=found.ops,
        heads=found.head_counts(spec),
        dense_heads=tuple(block.heads for block in spec.blocks),
        ffn_widths=found.widths,
        dense_ffn_widths=tuple(block.hidden for block in spec.blocks),
        tokens=tuple(block.ffn_tokens for block in found.geometries(spec)),
        dense_tokens=tuple(block.ffn_tokens for block in spec.blocks),
        budgets=decision.budgets,
        candidates=decision.candidates,
        decision=decision.by,
        dense_macs=run.dense,
        pruned_macs=found.macs(spec),
        dense_published_macs=published.dense,
        pruned_published_macs=found.published_macs(spec),
        dense_quality=before,
        decided_quality=decided,
        pruned_quality=after,
        dense_params=count_parameters(dense),
        shared_params=count_parameters(pruned),
        folded_params=count_parameters(fold(pruned)),
        timings=_timings(context, dense, folded),
        measure_batch=context.config.measure_batch,
        device=jax.devices()[0].device_kind,
        seed=context.config.seed,
    )
    report(context, result)


def _timings(context: Context, dense: Classifier, folded: Classifier) -> dict[str, Any]:
    config = context.config
    context.announce("measure", f"latency, and throughput at {config.measure_batch}")
    return measure(
        {"dense": dense, "pruned": folded},
        image_size=context.spec.image_size,
        batch_size=config.measure_batch,
        seconds=config.measure_seconds,
        channels=context.spec.channels,
    )


def report(context: Context, result: Result) -> None:
    """Writes the figure, the table and ``result.json``, and shows the table."""
    write, trajectory = context.workdir.write, read_metrics(context.workdir / "search")
    tried: Tried | None = context.workdir.read_json("shortlist.json", Tried)
    trials = tried.trials if tried else ()
    write("report.png", lambda path: figure(result, trajectory, path, trials))
    write("table.txt", lambda path: path.write_text(table(result) + "\n"))
    context.workdir.write_json("result.json", result)
    context.console.say(table(result))
