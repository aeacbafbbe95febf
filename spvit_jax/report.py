"""What a run gained: its ``Result`` on disk, a table, and a figure."""

import dataclasses
import itertools
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spvit_jax.drawing import INK, style
from spvit_jax.gate_maps import draw_gates, maps
from spvit_jax.measure import Timing
from spvit_jax.quality import ROWS, Quality
from spvit_jax.single_path.ops import OPS
from spvit_jax.state import dumps, loads, typed
from spvit_jax.text import aligned
from spvit_jax.trials import Trial, draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_LINES = ("#1f5fa8", "#8e44ad", "#e08214")
_DENSE, _PRUNED, _BEFORE = "#8a8f98", "#2a7f62", "#b5d3c7"
_BARS = {"dense": "#e1e4e9", "enter": _BEFORE, "leave": _PRUNED, "kept": _PRUNED}
_MISSING = "–"
_UNTRAINED = "*"  # marks what the dense model's head says before it is trained
_PER_BLOCK = (
    "ops",
    *(f"{when}{n}" for n in ("heads", "ffn_widths", "tokens") for when in ("", "dense_")),
)
_Row = tuple[str, ...]  # name, dense, pruned, ratio


@dataclasses.dataclass(frozen=True)
class Held:
    """A budget of a search and what was found within it, in its unit."""

    unit: str
    target: float
    dense: float  # the dense model's price
    found: float  # of the architecture that was pruned
    threshold: float | None  # of the plain 0.5 decision; None: no search


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run. Accuracies are fractions 0..1; MACs and parameters are counts."""

    model: str
    ops: tuple[str, ...]  # of each block
    heads: tuple[int, ...]  # kept heads of each block; 0 where there is no attention
    dense_heads: tuple[int, ...]
    ffn_widths: tuple[int, ...]  # kept units of each block
    dense_ffn_widths: tuple[int, ...]
    tokens: tuple[int, ...]  # patches and class tokens that enter the FFN of each block
    dense_tokens: tuple[int, ...]
    candidates: tuple[str, ...]  # what the search chose from; (): no search
    budgets: tuple[Held, ...]  # (): no search, the architecture was given
    dense_macs: int  # per image, as the program runs
    pruned_macs: int
    dense_published_macs: int  # by the paper's formula
    pruned_published_macs: int
    decision: str  # "project" or "threshold" of a search, "scored" or another candidate's name of
    # ``single_path.candidates``, or "given"
    dense_quality: Quality
    decided_quality: Quality  # pruned, before fine-tuning
    pruned_quality: Quality  # after fine-tuning
    dense_params: int
    shared_params: int
    folded_params: int
    timings: dict[str, Timing] | None  # of "dense" and "pruned"; None: not measured
    measure_batch: int
    device: str
    seed: int
    fresh_head: bool = False  # of the dense model: yet to be trained
    dims: tuple[tuple[int, ...], ...] = ()  # features of a head's keys and values, kept of each
    # block; of a block without attention (); (): all of all

    def __post_init__(self) -> None:
        counts = [len(getattr(self, name)) for name in _PER_BLOCK]
        counts += [len(self.dims)] * bool(self.dims)
        if len(set(counts)) > 1 or not counts[0]:
            raise ValueError(f"a result needs {', '.join(_PER_BLOCK)} of every block, got {counts}")
        if unknown := set(self.ops) - set(OPS):
            raise ValueError(f"ops must be among {', '.join(OPS)}; got {sorted(unknown)}")

    @property
    def dense_mark(self) -> str:
        """What is put behind the dense model's top-1 where its head is untrained."""
        return _UNTRAINED if self.fresh_head and self.dense_quality.top1 is not None else ""

    @property
    def merges(self) -> bool:
        """Whether tokens are merged."""
        return self.tokens != self.dense_tokens

    @property
    def entering(self) -> list[tuple[int, ...]]:
        """Tokens that enter each block of a ViT, dense and pruned; all go into the first."""
        first = self.dense_tokens[:1]
        return [first + tokens[:-1] for tokens in (self.dense_tokens, self.tokens)]

    def to_json(self) -> str:
        """The result as indented JSON; ``from_json`` reads it."""
        return dumps(self)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """The result that ``to_json`` wrote.

        Raises:
          ValueError: not JSON, fields missing, unknown or of other types, or blocks that do not
            match.
        """
        return typed(cls, loads(text.encode()))


def rows(result: Result) -> list[_Row]:
    """The cells of the table: its head, then dense against pruned."""
    return [
        (result.model, "dense", "pruned", "pruned / dense"),
        *_quality_rows(result.dense_quality, result.pruned_quality, result.dense_mark),
        _count_row("MACs, as run", result.dense_macs, result.pruned_macs),
        _count_row("MACs, as published", result.dense_published_macs, result.pruned_published_macs),
        _count_row("parameters, shared form", result.dense_params, result.shared_params),
        _count_row("parameters, folded", result.dense_params, result.folded_params),
        *_token_rows(result),
        *_timing_rows(result.timings, result.measure_batch),
    ]


def notes(result: Result) -> list[str]:
    """Lines below the table: what a mark means, how well budgets were met, what was measured on."""
    mark = result.dense_mark
    marked = [f"{mark} The dense model's head was fresh, untrained: no measure of it."]
    held = [_budget_line(held, result.decision != "threshold") for held in result.budgets]
    measured = [f"Speed measured on {result.device}."] if result.timings else []
    return [
        *(marked if mark else []),
        *(held or ["Budget: none, the architecture was given."]),
        *measured,
    ]


def table(result: Result) -> str:
    """Dense against pruned as aligned text, then how well each budget was met."""
    return "\n".join([aligned(rows(result)), "", *notes(result)])


def _budget_line(held: Held, projected: bool) -> str:
    unit, scale, digits = _unit(held.dense)

    def price(value: float) -> str:
        return f"{value / scale:.{digits}f}{unit} ({_minus(f'{value / held.target - 1:+.2%}')})"

    cost = price(held.found) if projected else _MISSING
    asked = f"Budget: {held.target / scale:.{digits}f}{unit} {held.unit}"
    if held.threshold is None:
        return f"{asked}; chosen {cost}."
    return f"{asked}; projected {cost}, plain 0.5 threshold {price(held.threshold)}."


def _quality_rows(dense: Quality, pruned: Quality, mark: str) -> list[_Row]:
    """A row for each thing that was measured, with the difference; none of a marked top-1."""
    rows = []
    for name, (label, scale, form, unit) in ROWS.items():
        before, after = getattr(dense, name), getattr(pruned, name)
        if before is not None and after is not None:
            cells = [_number(scale * x, form) for x in (before, after)]
            change = _number(scale * (after - before), f"+{form}", unit)
            if mark and name == "top1":
                cells[0], change = cells[0] + mark, _MISSING
            rows.append((label, *cells, change))
    return rows


def _count_row(name: str, dense: int, pruned: int) -> _Row:
    unit, scale, digits = _unit(dense)
    cells = [f"{x / scale:.{digits}f}" for x in (dense, pruned)]
    return f"{name} ({unit.strip() or 1})", cells[0], cells[1], f"{pruned / dense:.2f}×"


def _token_rows(result: Result) -> list[_Row]:
    """Tokens that enter the last block, where the most are merged."""
    if not result.merges:
        return []
    dense, pruned = (tokens[-1] for tokens in result.entering)
    return [("tokens into the last block", f"{dense}", f"{pruned}", f"{pruned / dense:.2f}×")]


def _timing_rows(timings: Mapping[str, Timing] | None, batch: int) -> list[_Row]:
    names = "latency, batch 1 (ms)", f"throughput, batch {batch} (images/s)"
    if timings is None:
        return [(name, _MISSING, _MISSING, _MISSING) for name in names]
    dense, pruned = timings["dense"], timings["pruned"]
    latency = [_number(x.latency_ms, ".2f") for x in (dense, pruned)]
    speed = [_number(x.images_per_second, ".1f") for x in (dense, pruned)]
    return [
        (names[0], *latency, _number(pruned.latency_ratio, ".2f", "×")),
        (names[1], *speed, _number(pruned.throughput_ratio, ".2f", "×")),
    ]


def _number(value: float | None, form: str, suffix: str = "") -> str:
    return _MISSING if value is None else _minus(f"{value:{form}}") + suffix


def _minus(text: str) -> str:
    return text.replace("-", "−")


def _unit(count: float) -> tuple[str, float, int]:
    """Name and size of a unit for ``count``, and the decimals that give four digits."""
    for name, scale in ((" G", 1e9), (" M", 1e6), (" k", 1e3)):
        if count >= scale:
            return name, scale, max(0, 3 - int(math.log10(count / scale)))
    return "", 1.0, 0 if isinstance(count, int) else 3


def figure(
    result: Result,
    search_metrics: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    trials: Sequence[Trial] = (),
) -> None:
    """Writes the report's PNG to ``path``, all at once or not at all.

    Args:
      result: the finished run.
      search_metrics: lines of the search, any of them with "step", "budget/UNIT",
        "op_probability/BLOCK/GATE" and "AXIS_probability/BLOCK"; empty without a search.
      path: where the image goes.
      trials: of the shortlist, shown where there was no search.
    """
    from matplotlib.figure import Figure

    gates = [row for row in search_metrics if maps(row)]
    heights = [1.65 if result.merges else 1.15, 1, *([1] if gates else [])]
    page = Figure(figsize=(12, 3.5 * sum(heights)), dpi=130)
    page.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    page.suptitle(_title(result), fontsize=13, fontweight="bold", color=INK)
    parts = page.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _blocks(parts[0], result)
    trajectory, accuracy = parts[1].subplots(1, 2, width_ratios=[1.7, 1])
    if trials and not search_metrics:
        style(trajectory, f"Tried; taken: {result.decision}")
        draw(trajectory, trials)
    else:
        _trajectory(trajectory, result, search_metrics)
    _accuracy(accuracy, result)
    if gates:
        draw_gates(parts[2], result.candidates, len(result.ops), gates)
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    page.savefig(temporary, format="png")
    os.replace(temporary, path)


def _title(result: Result) -> str:
    def change(dense: int, pruned: int) -> str:
        unit, scale, digits = _unit(dense)
        before, after = (f"{x / scale:.{digits}f}{unit}" for x in (dense, pruned))
        return f"{before} → {after} MACs ({pruned / dense:.2f}×)"

    run = change(result.dense_macs, result.pruned_macs)
    published = change(result.dense_published_macs, result.pruned_published_macs)
    return f"{result.model}: {run}\nas published {published}"


def _blocks(part: "SubFigure", result: Result) -> None:
    """The op of every block, with its heads, as a coloured cell above the bar of its FFN width.

    Between the two, where tokens are merged, bars of those.
    """
    from matplotlib.patches import Patch

    ratios = [1, 3, 4] if result.merges else [1, 4]
    ops, *bars = part.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)
    blocks = range(len(result.ops))
    ops.bar(blocks, 1, width=0.9, color=[OPS[op].colour for op in result.ops])
    for block, (heads, dense) in enumerate(zip(result.heads, result.dense_heads, strict=True)):
        if heads:
            of = "\n{}, {}".format(*result.dims[block]) if result.dims else ""
            ops.text(
                block, 0.5, f"{heads}/{dense}{of}", ha="center", va="center", color="white",
                fontsize=9 if len(result.ops) <= 16 else 7,
            )  # fmt: skip
    of = ", and features of a head's keys, values" if result.dims else ""
    style(ops, f"Op of every block, and the heads that attention keeps{of}")
    ops.set(ylim=(0, 1), yticks=[])
    ops.spines[["left", "bottom"]].set_visible(False)
    ops.tick_params(bottom=False)
    used = [OPS[op] for op in reversed(OPS) if op in result.ops]
    _legend(ops, [Patch(color=op.colour, label=op.label) for op in used])
    if result.merges:
        before, entering = result.entering
        tokens = {"dense": before, "enter": entering, "leave": result.tokens}
        _bars(bars[0], "Tokens that enter and leave every block", tokens, inside=0.3)
    widths = {"dense": result.dense_ffn_widths, "kept": result.ffn_widths}
    _bars(bars[-1], "FFN width (units)", widths, inside=0.8)
    bars[-1].set(xticks=blocks, xlabel="block", xlim=(-0.6, len(result.ops) - 0.4))


def _bars(axes: "Axes", title: str, values: dict[str, tuple[int, ...]], inside: float) -> None:
    """Bars of kinds of ``_BARS``; numbers of the last ones, from that share of dense on inside."""
    drawn = [
        axes.bar(range(len(heights)), heights, width=0.9, color=_BARS[kind], label=kind)
        for kind, heights in values.items()
    ]
    dense, *_, last = values.values()
    for block, (value, whole) in enumerate(zip(last, dense, strict=True)):
        high = value > inside * whole
        axes.annotate(
            str(value), (block, value), xytext=(0, -3 if high else 3), ha="center",
            fontsize=9 if len(last) <= 16 else 7, textcoords="offset points",
            va="top" if high else "bottom", color="white" if high else INK,
        )  # fmt: skip
    style(axes, title)
    _legend(axes, drawn)


def _legend(axes: "Axes", handles: Sequence[Any]) -> None:
    axes.legend(
        handles=handles, ncols=len(handles), loc="lower right", bbox_to_anchor=(1, 1),
        frameon=False, fontsize=9,
    )  # fmt: skip


def _trajectory(axes: "Axes", result: Result, metrics: Sequence[Mapping[str, Any]]) -> None:
    units = [held.unit for held in result.budgets]
    rows = [row for row in metrics if units and f"budget/{units[0]}" in row]
    style(axes, "Search: what the gates' decision takes of each budget")
    if not rows:
        axes.set_axis_off()
        text = "The search logged nothing." if units else "No search: the architecture was given."
        if units and all(held.threshold is None for held in result.budgets):
            text = "No search: chosen by scores."
        axes.text(0.5, 0.5, text, ha="center", color=_DENSE, transform=axes.transAxes)
        return
    steps = [row["step"] for row in rows]
    highest = 1.0
    for held, colour in zip(result.budgets, itertools.cycle(_LINES)):
        shares = [row[f"budget/{held.unit}"] for row in rows]
        marker = "" if len(rows) > 1 else "s"
        axes.plot(steps, shares, color=colour, label=held.unit, marker=marker)
        axes.axhline(held.dense / held.target, color=colour, linestyle=":")
        axes.plot(steps[-1], held.found / held.target, "o", color=_PRUNED, clip_on=False)
        highest = max(highest, held.dense / held.target, *shares)
    axes.axhline(1, color="#c0392b", linestyle="--", label="budget")
    axes.plot([], [], "o", color=_PRUNED, label="pruned")
    axes.plot([], [], ":", color=_DENSE, label="dense")
    axes.set(xlabel="step", ylim=(0, 1.08 * highest))
    axes.legend(loc="lower left", ncols=4, frameon=False, fontsize=9)


def _accuracy(axes: "Axes", result: Result) -> None:
    names = (
        f"dense{result.dense_mark}",
        "pruned,\nbefore\nfine-tuning",
        "pruned,\nafter\nfine-tuning",
    )
    qualities = (result.dense_quality, result.decided_quality, result.pruned_quality)
    heights = [100 * quality.value for quality in qualities]
    axes.bar(names, heights, width=0.65, color=[_DENSE, _BEFORE, _PRUNED])
    for x, (quality, height) in enumerate(zip(qualities, heights, strict=True)):
        axes.text(x, height + 1.5, quality.shown, ha="center", fontsize=10, color=INK)
    if result.dense_mark:
        axes.set_xlabel(f"{result.dense_mark} its head was fresh, untrained")
    style(axes, f"Test images: {qualities[0].measure}")
    axes.set_ylim(0, 108)
    shares = range(0, 101, 20)
    labels = shares if qualities[0].top1 is not None else [f"{share / 100:g}" for share in shares]
    axes.set_yticks(shares, [str(label) for label in labels])
