"""From a decision to a finished model: pruned, fine-tuned, folded, measured, and reported."""

from typing import Any

import jax

from spvit_jax.calibrated import calibrate, repaired
from spvit_jax.choosing import Decision
from spvit_jax.context import Context
from spvit_jax.convert import save
from spvit_jax.examples import Examples, examples
from spvit_jax.exported import write_files
from spvit_jax.judged import quality
from spvit_jax.measure import measure
from spvit_jax.measure.comparison import Comparison
from spvit_jax.measure.shown import cells, footer
from spvit_jax.models import Classifier
from spvit_jax.page import page
from spvit_jax.quality import Quality
from spvit_jax.report import Result, figure, table
from spvit_jax.single_path import prices
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.trained import fit
from spvit_jax.training.metrics import read_metrics
from spvit_jax.trials import Tried


def pruned_by(context: Context, start: Classifier, decision: Decision) -> Classifier:
    """Prunes the dense model or a supernet, and repairs it where fine-tuning starts from that."""
    if context.config.finetune.start == "repaired":
        return repaired(context, start, decision.architecture, calibrate(context))
    return prune(start, decision.architecture)


def finetuned(context: Context, pruned: Classifier) -> Classifier:
    """Trains a pruned model as ``config.finetune`` says."""
    tuning = context.config.finetune
    context.announce("finetune", f"{tuning.epochs:g} epochs from the {tuning.start} weights")
    return fit(context, "finetune", pruned, tuning)[0]


def deliver(
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
    pruned = pruned_by(context, start, decision)
    decided = quality(context, "decided", pruned, dense)
    pruned = finetuned(context, pruned)
    folded = fold(pruned, batch_norm=True)
    context.workdir.write(
        "pruned.safetensors", lambda path: save(folded, path, about=context.about)
    )
    files = write_files(context, dense, folded)
    after = quality(context, "pruned", folded, dense)
    looked = examples(context, dense, folded)
    spec, architecture = context.spec, decision.architecture
    run, published = prices.macs(spec), prices.published_macs(spec)
    result = Result(
        model=context.name,
        ops=architecture.ops,
        heads=architecture.head_counts(spec),
        dense_heads=tuple(block.heads for block in spec.blocks),
        dims=architecture.dims,
        ffn_widths=architecture.widths,
        dense_ffn_widths=tuple(block.hidden for block in spec.blocks),
        tokens=tuple(block.ffn_tokens for block in architecture.geometries(spec)),
        dense_tokens=tuple(block.ffn_tokens for block in spec.blocks),
        budgets=decision.budgets,
        candidates=decision.candidates,
        decision=decision.by,
        dense_macs=run.dense,
        pruned_macs=architecture.macs(spec),
        dense_published_macs=published.dense,
        pruned_published_macs=architecture.published_macs(spec),
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
        fresh_head=context.fresh,
    )
    report(context, result, looked, files)


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


def report(
    context: Context, result: Result, looked: Examples, files: Comparison | None = None
) -> None:
    """Writes the figure, the page, the table and ``result.json``, and shows the table."""
    workdir, write = context.workdir, context.workdir.write
    trajectory, training = (read_metrics(workdir / name) for name in ("search", "finetune"))
    tried: Tried | None = workdir.read_json("shortlist.json", Tried)
    trials = tried.trials if tried else ()
    write("report.png", lambda path: figure(result, trajectory, path, trials))
    compared = (cells(files), footer(files)) if files else None
    html = page(result, trajectory, training, trials, looked, compared)
    write("report.html", lambda path: path.write_text(html, encoding="utf-8"))
    write("table.txt", lambda path: path.write_text(table(result) + "\n"))
    workdir.write_json("result.json", result)
    context.console.say(table(result))
