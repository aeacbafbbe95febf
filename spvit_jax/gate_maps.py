"""Heat maps of a search: how likely each gate of each block is to be on, step by step."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spvit_jax.drawing import style
from spvit_jax.single_path.axes import AXES, Subset
from spvit_jax.single_path.ops import OPS

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

_AXES = {name: axis.noun for name, axis in AXES.items() if isinstance(axis, Subset)}


def maps(row: Mapping[str, Any]) -> list[str]:
    """The gates a line of the search has probabilities of: its keys, without the block."""
    results = [
        re.fullmatch(rf"({'|'.join(AXES)})_probability/0(/\d+)?", key) for key in sorted(row)
    ]
    matches = sorted((m for m in results if m), key=lambda m: list(AXES).index(m[1]))
    return [f"{m[1]}_probability/{{}}{m[2] or ''}" for m in matches]


def draw_gates(
    part: "SubFigure", candidates: tuple[str, ...], blocks: int, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Heat maps [block, step] of the probability that a gate is on."""
    from matplotlib.ticker import MaxNLocator

    keys = maps(rows[0])
    edges = _edges([row["step"] for row in rows])
    grid = part.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axes, key in zip(grid, keys, strict=True):
        values = [[row.get(key.format(b), math.nan) for row in rows] for b in range(blocks)]
        mesh = axes.pcolormesh(
            edges, [b - 0.5 for b in range(blocks + 1)], values, vmin=0, vmax=1, cmap="RdBu"
        )
        style(axes, _gate_name(key, candidates), size=11 if len(keys) <= 4 else 9)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    grid[0].invert_yaxis()  # shared by all
    grid[0].set_ylabel("block")
    grid[0].set_yticks(range(0, blocks, 1 if blocks <= 12 else 2))
    bar = part.colorbar(mesh, ax=list(grid), pad=0.01, aspect=18)
    bar.set_label("probability of a gate (on above 0.5)", fontsize=9)
    bar.outline.set_visible(False)


def _gate_name(key: str, candidates: tuple[str, ...]) -> str:
    axis, _, gate = key.partition("_probability/{}")
    if not gate:
        return f"{_AXES[axis]} (mean)"
    place = int(gate[1:]) + 1
    return f"{'≥ ' if place < len(candidates) - 1 else ''}{OPS[candidates[place]].label}"


def _edges(steps: Sequence[int]) -> list[float]:
    """Borders between columns centred on ``steps``."""
    if len(steps) == 1:
        return [steps[0] - 0.5, steps[0] + 0.5]
    middle = [(a + b) / 2 for a, b in itertools.pairwise(steps)]
    return [2 * steps[0] - middle[0], *middle, 2 * steps[-1] - middle[-1]]
