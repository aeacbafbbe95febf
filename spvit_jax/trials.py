"""What became of the candidates of a shortlist, as a person sees it."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spvit_jax.text import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REPAIRED, _TRAINED, _INK = "#b9bfc9", "#2a7f62", "#333333"


@dataclasses.dataclass(frozen=True)
class Trial:
    """What became of a candidate. Errors are relative to the variance of the dense model's."""

    name: str
    blocks: str  # what each keeps, in words
    macs: int  # per image, as run
    repaired: float  # error of the last tokens before training
    trained: float | None = None  # and after it; None: it was not trained


@dataclasses.dataclass(frozen=True)
class Tried:
    """All candidates of a shortlist."""

    trials: tuple[Trial, ...]


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Sorts them, the best one first; those that were not trained come last."""
    return sorted(trials, key=lambda t: (t.trained is None, t.trained or t.repaired))


def rows(trials: Sequence[Trial]) -> list[tuple[str, ...]]:
    """The cells of a table: its head, then the candidates, the best one first."""
    head = ("candidate", "MACs (M)", "error, repaired", "trained", "blocks")
    cells = (
        (
            t.name,
            f"{t.macs / 1e6:,.2f}",
            f"{t.repaired:.4f}",
            "–" if t.trained is None else f"{t.trained:.4f}",
            t.blocks,
        )
        for t in ranked(trials)
    )
    return [head, *cells]


def table(trials: Sequence[Trial]) -> str:
    """Lists the candidates, the best one first."""
    listed = rows(trials)
    return aligned(listed, left=(0, len(listed[0]) - 1))


def draw(axes: "Axes", trials: Sequence[Trial]) -> None:
    """Draws the errors as bars, the best candidate on top."""
    listed = ranked(trials)[::-1]
    places = range(len(listed))
    axes.barh(places, [t.repaired for t in listed], color=_REPAIRED, label="repaired")
    trained = [(place, t.trained) for place, t in zip(places, listed, strict=True) if t.trained]
    axes.barh(
        [place for place, _ in trained],
        [error for _, error in trained],
        height=0.45,
        color=_TRAINED,
        label="and trained for a short while",
    )
    axes.set_yticks(places, [t.name for t in listed], fontsize=9, color=_INK)
    axes.set_xlabel("squared error of the last tokens / variance of the dense model's")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
