"""What a comparison shows: a table, and a figure of accuracy over latency."""

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spvit_jax.drawing import style
from spvit_jax.measure.comparison import Comparison
from spvit_jax.measure.contestants import RUNTIMES, Contestant
from spvit_jax.measure.labels import BESIDE, nearest, placed
from spvit_jax.remote import followed
from spvit_jax.text import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MISSING = "–"
_COLOURS = {
    "jax": "#2a7f62",
    "onnxruntime": "#1f5fa8",
    "openvino": "#8e44ad",
    "torch": "#e08214",
    "litert": "#b03060",
}


def table(comparison: Comparison) -> str:
    """The comparison as aligned text, and what it was measured on."""
    return "\n".join([aligned(cells(comparison), left=(0, 1)), "", *footer(comparison)])


def cells(comparison: Comparison) -> list[list[str]]:
    """The cells of the table: its head, then a row for each contestant."""
    tested = comparison.tested
    head = ["model", "runtime", "MB", "GMACs", "latency, ms", "90 %", "99 %", "× first"]
    head += [f"images/s at {comparison.batch_size}", "× first"]
    if tested is not None:
        head.append("top-1 (%)" if tested.measure == "top-1" else "cosine")
    rows = [head]
    for i, (one, timing) in enumerate(zip(comparison.contestants, comparison.timings, strict=True)):
        rows.append(
            [
                names(comparison.contestants)[i],
                RUNTIMES[one.runtime].title,
                _number(one.size / 1e6),
                _number(one.macs / 1e9),
                f"{timing.latency_ms:.2f}",
                f"{timing.latency_p90_ms:.2f}",
                f"{timing.latency_p99_ms:.2f}",
                f"{timing.latency_ratio:.2f}",
                f"{timing.images_per_second:.1f}",
                f"{timing.throughput_ratio:.2f}",
            ]
        )
        if tested is not None:
            value = tested.values[i]
            rows[-1].append(f"{100 * value:.2f}" if tested.measure == "top-1" else f"{value:.4f}")
    return rows


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2g}" if value else _MISSING


def names(contestants: Sequence[Contestant]) -> list[str]:
    """Names of files without their folders, where these are not needed to tell them apart."""
    paths = {one.name for one in contestants}
    short = {name: Path(name).name for name in paths}
    return [short[one.name] if len(set(short.values())) == len(paths) else one.name
            for one in contestants]  # fmt: skip


def footer(comparison: Comparison) -> list[str]:
    """Lines below the table: how it was measured, and on what."""
    one, batch = comparison.turns
    lines = [
        f"The models took turns, call by call: {one} at batch 1, {batch} at"
        f" {comparison.batch_size}. Latency is the median, then what 90 % and 99 % of the calls"
        " took at most; ratios are medians within a turn.",
    ]
    sizes = {one.preprocess.crop for one in comparison.contestants}
    if len(sizes) > 1:
        shown = zip(names(comparison.contestants), comparison.contestants, strict=True)
        each = dict.fromkeys(f"{n} {'×'.join(map(str, c.preprocess.crop))}" for n, c in shown)
        lines.append(f"Each model gets images of its own size: {', '.join(each)}.")
    if comparison.tested is not None:
        lines.append(f"Tested on {comparison.tested.images:,} images.")
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    threads = "1 thread" if comparison.threads == 1 else f"{comparison.threads} threads"
    return [*lines, f"Measured on {comparison.device}, {threads}; {versions}."]


def figure(comparison: Comparison, path: str | os.PathLike[str]) -> None:
    """Writes accuracy over latency as a PNG, all at once or not at all; needs ``tested``."""
    from matplotlib.figure import Figure

    assert comparison.tested is not None
    right = comparison.tested.measure == "top-1"
    values = [100 * value if right else value for value in comparison.tested.values]
    page = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = page.subplots()
    title = "top-1 (%)" if right else "cosine to the first model"
    style(axes, f"{comparison.tested.images:,} test images: {title} over latency")
    seen: set[str] = set()
    places = [timing.latency_ms for timing in comparison.timings], values
    for one, x, y in zip(comparison.contestants, *places, strict=True):
        label = None if one.runtime in seen else RUNTIMES[one.runtime].title
        seen.add(one.runtime)
        axes.plot(x, y, "o", color=_COLOURS[one.runtime], label=label)
    middle, span = (max(values) + min(values)) / 2, max(values) - min(values)
    span = 0.65 * max(span, 1 if right else 0.01)  # less would look like a difference
    axes.set(xlabel="latency of one image (ms)", xlim=(0, 1.1 * max(places[0])))
    axes.set_ylim(middle - span, middle + span)
    axes.ticklabel_format(axis="y", useOffset=False)
    page.legend(loc="outside lower center", ncols=len(seen), frameon=False, fontsize=9)
    page.draw_without_rendering()  # only then is known where things are
    _write_names(axes, comparison.contestants, list(zip(*places, strict=True)))
    path = followed(path)
    temporary = path.with_name(path.name + ".tmp")
    page.savefig(temporary, format="png")
    os.replace(temporary, path)


def _write_names(
    axes: "Axes", contestants: Sequence[Contestant], points: Sequence[tuple[float, float]]
) -> None:
    """Writes the name of each near its point, with a line to it where it is not beside it."""
    shown = [
        axes.text(x, y, name, fontsize=9, color=_COLOURS[one.runtime], parse_math=False)
        for one, name, (x, y) in zip(contestants, names(contestants), points, strict=True)
    ]
    extents = [text.get_window_extent() for text in shown]
    sizes = [(box.width, box.height) for box in extents]
    pixels = [(x, y) for x, y in axes.transData.transform(points)]
    left, bottom, right, top = axes.get_window_extent().extents
    boxes = placed(pixels, sizes, (left, bottom, right, top))
    back = axes.transData.inverted().transform
    for text, point, box in zip(shown, pixels, boxes, strict=True):
        text.set(in_layout=False, position=tuple(back(box[:2])), va="bottom")
        end = nearest(point, box)
        if math.dist(point, end) > BESIDE:
            line = back([point, end])
            axes.plot(*line.T, "-", color=text.get_color(), linewidth=0.7, zorder=1)
