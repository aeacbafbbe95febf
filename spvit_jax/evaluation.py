"""What an evaluation shows: a ``Report`` on disk, a table with a line per class, and a figure."""

import dataclasses
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spvit_jax.text import aligned
from spvit_jax.training.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize

_INK, _EMPTY, _MISSING = "#333333", "#e4e4e4", "–"
_NUMBERED, _NAMED = 20, 60  # up to so many classes, cells have numbers, axes have names
_HEADS = ("class", "images", "accuracy (%)", "precision (%)", "most confused with")


@dataclasses.dataclass(frozen=True)
class ClassReport:
    """How one class fared. Shares are fractions 0..1."""

    name: str
    images: int
    accuracy: float | None  # of its images, those predicted as it; None: it has none
    precision: float | None  # of the images predicted as it, those that are; None: none were
    most_confused_with: str | None  # what its images are most often taken for; None: nothing
    confused: float | None  # the share of its images that are


@dataclasses.dataclass(frozen=True)
class Report:
    """A finished evaluation, on disk as JSON of its fields. Shares are fractions 0..1."""

    model: str
    form: str  # one of convert.FORMS
    data: str
    top1: float
    top5: float  # with fewer than 5 classes: 1
    images: int  # counted, each once
    left_out: int  # could not be decoded
    classes: tuple[ClassReport, ...]  # of the data, in its order


def report(
    evaluation: Evaluation, class_names: tuple[str, ...], *, model: str, form: str, data: str
) -> Report:
    """The numbers of ``evaluation``; ``class_names`` are the data's, the model may know more."""
    return Report(
        model=model,
        form=form,
        data=data,
        top1=evaluation.top1,
        top5=evaluation.top5,
        images=evaluation.images,
        left_out=evaluation.left_out,
        classes=tuple(_class_report(evaluation, class_names, i) for i in range(len(class_names))),
    )


def _class_report(evaluation: Evaluation, names: tuple[str, ...], label: int) -> ClassReport:
    images = int(evaluation.class_images[label])
    others = evaluation.confusion[label].copy()
    others[label] = 0
    most = int(others.argmax())
    confused = bool(others[most])
    return ClassReport(
        name=names[label],
        images=images,
        accuracy=_number(evaluation.accuracy[label]),
        precision=_number(evaluation.precision[label]),
        most_confused_with=_name(names, most) if confused else None,
        confused=int(others[most]) / images if confused else None,
    )


def _name(names: tuple[str, ...], label: int) -> str:
    return names[label] if label < len(names) else f"class {label}"


def _number(share: float) -> float | None:
    return None if np.isnan(share) else float(share)


def summary(result: Report, worst: int = 5) -> str:
    """Top-1, top-5 and the classes with the lowest accuracy, as text."""
    left_out = f"; {result.left_out:,} could not be read" if result.left_out else ""
    seen = [one for one in result.classes if one.accuracy is not None]
    seen.sort(key=lambda one: (one.accuracy, -one.images))
    return "\n".join(
        [
            f"{result.model}: top-1 {result.top1:.2%}, top-5 {result.top5:.2%}"
            f" of {result.images:,} images{left_out}",
            "",
            f"The {min(worst, len(seen))} of {len(seen):,} classes with the lowest accuracy:",
            _table(seen[:worst]),
        ]
    )


def table(result: Report) -> str:
    """The summary, and a line for every class, aligned."""
    return f"{summary(result)}\n\nEvery class:\n{_table(result.classes)}"


def _table(classes: Iterable[ClassReport]) -> str:
    return aligned([_HEADS, *map(_cells, classes)], left=(0, len(_HEADS) - 1))


def _cells(one: ClassReport) -> tuple[str, ...]:
    confused = f"{one.most_confused_with} ({one.confused:.1%})" if one.confused else _MISSING
    return (one.name, f"{one.images:,}", _percent(one.accuracy), _percent(one.precision), confused)


def _percent(share: float | None) -> str:
    return _MISSING if share is None else f"{100 * share:.2f}"


def figure(
    evaluation: Evaluation, class_names: tuple[str, ...], title: str, path: str | os.PathLike[str]
) -> None:
    """Writes the confusion matrix as a PNG to ``path``, all at once or not at all.

    Rows are the data's classes, each a distribution over what was predicted. With few classes
    there are numbers and names, with many neither. Where the model knows more classes than the
    data, one last column is all of those.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    shares, count = _rows(evaluation, len(class_names)), len(class_names)
    side = min(max(0.45 * count, 3.0), 10.0)
    page = Figure(figsize=(side + 2.5, side + 2), dpi=130, layout="constrained")
    plain = title.replace("$", r"\$")  # wrapped, a title heeds no parse_math
    page.suptitle(plain, fontsize=12, fontweight="bold", color=_INK, wrap=True)
    axes = page.subplots()
    image = axes.imshow(shares, cmap=_colours(count), norm=_scale(count))
    bar = page.colorbar(image, ax=axes, pad=0.02, shrink=0.8, aspect=30)
    bar.set_label("share of the class's images", fontsize=9)
    bar.outline.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= _NUMBERED:
        _numbers(axes, shares)
    if count <= _NAMED:
        _names(axes, class_names, other=shares.shape[1] > count)
    else:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="predicted (number of the class)", ylabel="true (number of the class)")
    axes.tick_params(labelsize=9 if count <= 30 else 7, colors=_INK, length=0)
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    with warnings.catch_warnings():  # a name in a script the font lacks shows as boxes, is all
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        page.savefig(temporary, format="png")
    os.replace(temporary, path)


def _colours(count: int) -> "Colormap":
    """On black, a dot of one pixel is seen."""
    from matplotlib import colormaps

    return colormaps["Blues" if count <= _NAMED else "inferno"].with_extremes(bad=_EMPTY)


def _scale(count: int) -> "Normalize":
    """The root, so that rare confusions are seen where no number says what they are."""
    from matplotlib.colors import Normalize, PowerNorm

    return Normalize(0, 1) if count <= _NUMBERED else PowerNorm(0.5, 0, 1)


def _rows(evaluation: Evaluation, count: int) -> np.ndarray:
    """The shares of each class's images; NaN for a class without images."""
    counts = evaluation.confusion[:count]
    if counts.shape[1] > count:
        counts = np.column_stack([counts[:, :count], counts[:, count:].sum(1)])
    images = counts.sum(1, keepdims=True)
    return np.divide(counts, images, out=np.full(counts.shape, np.nan), where=images > 0)


def _numbers(axes: "Axes", shares: np.ndarray) -> None:
    """Percent in every cell that has some."""
    for (y, x), share in np.ndenumerate(shares):
        if share > 0:
            text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
            colour = "white" if share > 0.5 else _INK
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)


def _names(axes: "Axes", names: tuple[str, ...], *, other: bool) -> None:
    short = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    places = range(len(short))
    axes.set_yticks(places, short, parse_math=False)
    columns = [*short, "(other)"] if other else short
    axes.set_xticks(range(len(columns)), columns, rotation=90, parse_math=False)
