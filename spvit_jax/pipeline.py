"""The stages of a run and what they hand each other.

Every stage is a function over a ``Context``: "restore the newest checkpoint, take the steps that
are left". Running the same command again goes on where it stopped, and what is finished is only
read. Between stages there are three things: a model, gate logits, an ``Architecture``.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from spvit_jax import curve, evaluation, hosts, pretrained, teachers
from spvit_jax.choosing import Decision, choose
from spvit_jax.config import Config, ConfigError
from spvit_jax.context import USER_ERRORS, Context, Inputs, look_again, open_context
from spvit_jax.convert import about_of, save
from spvit_jax.curve_page import curve_page
from spvit_jax.delivery import deliver
from spvit_jax.drawing import can_draw
from spvit_jax.judged import evaluate, judge, quality
from spvit_jax.models import MODELS, Classifier
from spvit_jax.progress import Console
from spvit_jax.quality import Quality
from spvit_jax.remote import public
from spvit_jax.report import Result, table
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import form
from spvit_jax.trained import fit, load_dense
from spvit_jax.training.loop import Interrupted
from spvit_jax.training.sharding import host
from spvit_jax.workdir import Workdir, versions

__all__ = ["STAGES", "USER_ERRORS", "Interrupted", "run"]


def run(
    config: Config,
    workdir: str | os.PathLike,
    console: Console,
    should_stop: Callable[[], bool],
    *,
    profile: str = "",
    inputs: Inputs | None = None,
) -> None:
    """Runs ``config.stage`` in ``workdir``, from the start or from where it was.

    Args:
      config: what to do, the same on every process.
      workdir: a folder that all processes see, or ``gs://``.
      console: where it says what it does.
      should_stop: asked after each step, for the same answer on every process.
      profile: folder for a ``jax.profiler`` trace of each training; "": none.
      inputs: the model and images to begin from; None: those of ``config``.

    Raises:
      Interrupted: ``should_stop`` said so; the same call goes on.
      USER_ERRORS: bad input, or a disk that does not write.
    """
    stage = STAGES[config.stage]
    if stage.draws and not can_draw():
        raise ConfigError(
            f"stage={config.stage} ends with a figure, for which matplotlib is missing:"
            " pip install 'spvit_jax[reports]'"
        )
    with claimed(config, workdir, console) as files:
        if not _finished(config, files, console, inputs):
            with jax.default_device(host()):  # of models; the rest chooses its own
                opened = open_context(config, files, console, should_stop, profile, inputs)
                stage.run(opened)
            hosts.from_first(None)  # no process ends before process 0 has written everything
            console.stage("finished", f"{stage.result} and all else is in {files.path}")


@contextlib.contextmanager
def claimed(config: Config, workdir: str | os.PathLike, console: Console) -> Iterator[Workdir]:
    """Holds a folder that is this configuration's alone, and says what is to be said of it.

    Raises:
      USER_ERRORS: it cannot be.
    """
    hosts.agree({"config": dataclasses.asdict(config)} | versions())
    files = Workdir(workdir)
    with files.locked():
        note = files.claim(config)
        if note:
            console.say(note)
        yield files


def _finished(config: Config, files: Workdir, console: Console, inputs: Inputs | None) -> bool:
    """Whether a run has been at its end, which is then shown again if it began from the same."""
    stage = STAGES[config.stage]
    if not files.exists(stage.result):
        return False
    content = files.finished(stage.result, stage.kind, stage.others)
    look_again(config, files, console, inputs)
    result = files / stage.result
    console.stage("finished", f"before this run; nothing is left to do, see {result}")
    if stage.summary:
        console.say(stage.summary(content))
    return True


def run_all(context: Context) -> None:
    """Score, search, decide, try, prune, fine-tune, fold, evaluate, measure; what the config has of
    these.
    """
    dense = load_dense(context)
    before = quality(context, "dense", dense, dense)
    decision, searched = choose(context, dense)
    start = searched if context.config.finetune.start == "searched" else dense
    deliver(context, dense, before, start, decision)


def run_search(context: Context) -> None:
    """Chooses as ``run_all`` does: ends with ``architecture.json``."""
    choose(context, load_dense(context))


def run_finetune(context: Context) -> None:
    """Does as ``run_all``, of a given architecture and from the pretrained weights."""
    with hosts.together(*USER_ERRORS):
        architecture = architectures.load(context.config.finetune.architecture)
        architecture.check(context.spec)
    text = np.frombuffer(architecture.to_json().encode(), np.uint8)
    hosts.agree_on("finetune.architecture", text)
    dense = load_dense(context)
    before = quality(context, "dense", dense, dense)
    deliver(context, dense, before, dense, Decision(architecture, "given"))


def run_evaluate(context: Context) -> None:
    """Evaluates the model in the checkpoint, dense or pruned: top-1, top-5 and each class."""
    config, names, console = context.config, context.test.class_names, context.console
    notes: list[str] = []
    with hosts.together(*USER_ERRORS):
        network = pretrained.load_trained(config, context.spec, notes)
    hosts.agree_on("model.checkpoint", nnx.state(network))
    about = about_of(pretrained.address(config.model.checkpoint))
    notes += pretrained.check_about(about, config, names)
    parameters, file = count_parameters(network), public(config.model.checkpoint)
    console.stage("model", f"{file}: {form(network)}, {parameters:,} parameters")
    for note in notes:
        console.say(note)
    if not context.labelled:
        _compare(context, network)
        return
    data = f"{public(config.data.source)}, {config.data.test_split}"
    context.announce("evaluate", f"{len(context.test):,} images of {data}")
    counts = evaluate(context, network)
    model = Path(file).stem
    report = evaluation.report(counts, names, model=model, form=form(network), data=data)
    title = f"{model}: top-1 {counts.top1:.2%} of {counts.images:,} images"
    write = context.workdir.write
    write("confusion.png", lambda path: evaluation.figure(counts, names, title, path))
    write("evaluation.txt", lambda path: path.write_text(evaluation.table(report) + "\n"))
    context.workdir.write_json("evaluation.json", report)
    console.say(evaluation.summary(report))


def _compare(context: Context, network: Classifier) -> None:
    """Evaluates a model without labels: by how near its features are to the teacher's."""
    with hosts.together(*USER_ERRORS):
        other = teachers.load_reference(context.config, network.spec)
    hosts.agree_on("teacher.checkpoint", nnx.state(other))
    result = judge(context, network, other)
    context.console.stage("evaluate", result.summary())
    context.workdir.write("evaluation.txt", lambda path: path.write_text(result.summary() + "\n"))
    context.workdir.write_json("evaluation.json", result)


def run_frontier(context: Context) -> None:
    """Chooses, repairs, evaluates and measures a model at every budget of ``frontier``."""
    points = curve.points(context, load_dense(context))
    result, picture = curve.Curve(points, context.fresh), io.BytesIO()
    curve.figure(points, context.name).savefig(picture, format="png")
    html = curve_page(result, context.name, picture.getvalue(), jax.devices()[0].device_kind)
    text = curve.summary(result)
    context.workdir.write("frontier.png", lambda path: path.write_bytes(picture.getvalue()))
    context.workdir.write("frontier.html", lambda path: path.write_text(html, encoding="utf-8"))
    context.workdir.write("frontier.txt", lambda path: path.write_text(text + "\n"))
    context.workdir.write_json("frontier.json", result)
    context.console.say(text)


def run_pretrain(context: Context) -> None:
    """Trains the dense model from scratch; its weights go to ``pretrained.safetensors``."""
    config, spec = context.config, context.spec
    options = pretrained.options(config, spec)
    model = MODELS[type(spec)](spec, rngs=nnx.Rngs(config.seed), **options)
    context.announce("pretrain", f"{config.pretrain.epochs:g} epochs from scratch")
    model, _ = fit(context, "pretrain", model, config.pretrain)
    about = context.about
    context.workdir.write("pretrained.safetensors", lambda path: save(model, path, about=about))
    quality(context, "pretrained", model, model)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One of what a run may do."""

    run: Callable[[Context], None]
    result: str  # its last file
    others: tuple[str, ...] = ()  # that are there as well then
    draws: bool = False  # whether one of them is a figure
    kind: Any = dict[str, Any]  # what that file holds
    summary: Callable[[Any], str] | None = None  # of that, for a run that finds it


def _evaluated(result: Quality | evaluation.Report) -> str:
    return result.summary() if isinstance(result, Quality) else evaluation.summary(result)


_EVALUATION = Quality | evaluation.Report
_MODEL = ("pruned.safetensors", "architecture.json")
STAGES = {
    "all": Stage(run_all, "result.json", _MODEL, True, Result, table),
    "search": Stage(run_search, "architecture.json"),
    "finetune": Stage(run_finetune, "result.json", _MODEL[:1], True, Result, table),
    "frontier": Stage(run_frontier, "frontier.json", (), True, curve.Curve, curve.summary),
    "pretrain": Stage(run_pretrain, "pretrained.json", ("pretrained.safetensors",)),
    "evaluate": Stage(run_evaluate, "evaluation.json", (), True, _EVALUATION, _evaluated),
}
