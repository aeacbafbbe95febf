"""The trade-off curve: one scoring pass, then a repaired model for every budget.

Nothing is trained and no label is read; labels only say how good each model is, on the test images.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax

from spvit_jax.calibrated import calibrate, repaired, score
from spvit_jax.context import Context, budget_at
from spvit_jax.convert import save
from spvit_jax.judged import judge
from spvit_jax.measure import Programs, measure
from spvit_jax.merges import Schedules, best
from spvit_jax.models import Classifier
from spvit_jax.quality import Quality
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path import prices
from spvit_jax.single_path import score as scoring
from spvit_jax.single_path.budget import select
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.merging import Merges
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.text import aligned

if TYPE_CHECKING:
    from spvit_jax.figures import Figure

MODEL = "model.safetensors"
_LINE, _DENSE, _INK = "#2a7f62", "#8a8f98", "#333333"


@dataclasses.dataclass(frozen=True)
class Point:
    """A model of the curve. Ratios are to the dense one."""

    budget: float  # asked for, as a share of the dense model's MACs as published; 1: the dense one
    macs: int  # per image, as the program runs
    published_macs: int
    parameters: int
    quality: Quality
    latency_ms: float  # of one image
    latency_ratio: float
    throughput_ratio: float
    blocks: str  # what each keeps, in words


@dataclasses.dataclass(frozen=True)
class Curve:
    """All models of a curve, the dense one first."""

    points: tuple[Point, ...]
    fresh_head: bool = False  # which all of them have, yet to be trained


def points(context: Context, dense: Classifier) -> tuple[Point, ...]:
    """Scores, then chooses, repairs, evaluates and measures at every budget of ``frontier``.

    Returns:
      The dense model's point, then one for each budget.
    """
    calibration = calibrate(context)
    making = _Making(
        context, dense, calibration, score(context, dense, calibration), Programs(dense)
    )
    rows = {-1: making.point("frontier/dense", 1.0, dense, "dense")}
    shares, merging = context.config.frontier.budgets, context.config.merges
    for number in sorted(range(len(shares)), key=shares.__getitem__):  # the smallest first
        rows[number], merging = making.at(number, shares[number], merging)
    return tuple(rows[number] for number in sorted(rows))


@dataclasses.dataclass(frozen=True)
class _Making:
    """What all points of a curve are made with."""

    context: Context
    dense: Classifier
    calibration: Calibration
    scores: scoring.Scores
    programs: Programs  # of the dense model, which is measured beside each of the others

    def at(self, number: int, share: float, merging: bool) -> tuple[Point, bool]:
        """The model of one budget, made or read; and whether merging may help at larger ones.

        The less is kept, the more merging helps: it is not tried where a smaller budget is better
        off without.
        """
        context, config, folder = self.context, self.context.config, folder_of(number)
        merges: Merges = ()
        budget = budget_at(config, share)
        if merging:
            errors = Schedules(context, folder, budget, self.dense, self.scores).errors()
            merges = best(errors)
            merging = merges != () or len(errors) == 1
        known = _known(context, folder)
        if known is not None:
            return known, merging
        gating = Gating.of(config.search, budget, context.spec, self.dense, merges)
        architecture = select(gating.space, self.scores, gating.budgets, config.model.variant)
        description = architectures.describe(architecture, context.spec)
        context.announce("repair", f"{share:.0%} of the MACs: {description}")
        model = repaired(context, self.dense, architecture, self.calibration)
        context.workdir.write(f"{folder}/architecture.json", model.architecture.save)
        context.workdir.write(
            f"{folder}/{MODEL}", lambda path: save(model, path, about=context.about)
        )
        widths = ",".join(map(str, architecture.widths))
        return self.point(folder, share, model, f"{description} | {widths}"), merging

    def point(self, folder: str, share: float, model: Classifier, description: str) -> Point:
        """Evaluates and measures a model; the last thing written of it says that it is done."""
        context, config, spec = self.context, self.context.config, self.context.spec
        known = _known(context, folder)
        if known is not None:
            return known
        quality = judge(context, model, self.dense)
        seconds = config.measure_seconds / (len(config.frontier.budgets) + 1)
        taken: dict[str, Any] = {"dense": self.programs}
        taken |= {folder: model} if model is not self.dense else {}
        timings = measure(taken, spec.image_size, config.measure_batch, seconds, spec.channels)
        timing = timings[list(taken)[-1]]
        run, published, kept = prices.macs(spec), prices.published_macs(spec), model.architecture
        point = Point(
            share,
            run.dense if kept is None else kept.macs(spec),
            published.dense if kept is None else kept.published_macs(spec),
            count_parameters(model),
            quality,
            timing.latency_ms,
            timing.latency_ratio,
            timing.throughput_ratio,
            description,
        )
        context.workdir.write_json(f"{folder}/point.json", point)
        context.console.stage("evaluate", quality.summary())
        return point


def folder_of(number: int) -> str:
    """Where the model of a budget is, inside the workdir."""
    return f"frontier/{number:02d}"


def _known(context: Context, folder: str) -> Point | None:
    point: Point | None = context.workdir.read_json(f"{folder}/point.json", Point)
    return point


def table(points: Sequence[Point]) -> str:
    """Lists the models, the dense one first, as aligned text; see ``rows``."""
    return aligned(rows(points))


def rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    """The cells of a table, its head first; shares of MACs are of the dense one counted alike."""
    dense = points[0]
    names = "MACs (M),share,published,parameters (M),latency (ms),ratio,throughput"
    cells = [("budget", dense.quality.measure, *names.split(","))]
    for n, p in enumerate(points):
        cells.append(
            (
                "dense" if n == 0 else f"{p.budget:.0%}",
                p.quality.shown,
                f"{p.macs / 1e6:,.2f}",
                f"{p.macs / dense.macs:.1%}",
                f"{p.published_macs / dense.published_macs:.1%}",
                f"{p.parameters / 1e6:,.3f}",
                f"{p.latency_ms:.2f}",
                f"{p.latency_ratio:.2f}×",
                f"{p.throughput_ratio:.2f}×",
            )
        )
    return cells


def summary(curve: Curve) -> str:
    """The table of a finished ``frontier.json``, and what its top-1 is not."""
    return "\n\n".join(filter(None, (table(curve.points), note(curve))))


def note(curve: Curve) -> str:
    """Says so where top-1 is that of a head yet untrained; else ""."""
    if not curve.fresh_head or curve.points[0].quality.top1 is None:
        return ""
    return "The head was fresh, untrained: top-1 is no measure of these."


def figure(points: Sequence[Point], name: str) -> "Figure":
    """Draws accuracy, or nearness of features, over MACs and over latency."""
    from spvit_jax.figures import Figure

    page = Figure(figsize=(11, 4.6), dpi=130, layout="constrained")
    page.suptitle(f"{name}: scored, chosen and repaired without training or labels", color=_INK)
    dense, device = points[0], jax.devices()[0].device_kind
    axes = page.subplots(1, 2, sharey=True)
    shares = [100 * p.macs / dense.published_macs for p in points]
    times = [100 * p.latency_ratio for p in points]
    labels = (
        "MACs as run (% of the dense model's as published)",
        f"latency on {device} (% of dense)",
    )
    for one, values, label in zip(axes, (shares, times), labels, strict=True):
        scale = 1.0 if dense.quality.top1 is None else 100.0
        accuracies = [scale * p.quality.value for p in points]
        one.plot(values[1:], accuracies[1:], "o-", color=_LINE, label="repaired")
        one.plot(values[0], accuracies[0], "s", color=_DENSE, label="dense")
        one.axhline(accuracies[0], color=_DENSE, linestyle=":", linewidth=1)
        for p, value, accuracy in zip(points, values, accuracies, strict=True):
            one.annotate(
                p.quality.shown, (value, accuracy), xytext=(0, -14), color=_INK, fontsize=8,
                textcoords="offset points", ha="center",
            )  # fmt: skip
        one.set_xlabel(label)
        one.spines[["top", "right"]].set_visible(False)
        one.margins(y=0.12)
    axes[0].set_ylabel(f"{dense.quality.measure}, test images")
    axes[0].legend(frameon=False, loc="lower right")
    return page
