"""Schedules of merges: a small family, and which of it suits a budget.

A schedule has a shape, how the blocks share the merges, and a strength. More of them in front saves
more; further back, tokens that are merged are more alike. What is best depends on what else is cut,
so a few are tried.
"""

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from spvit_jax.single_path.axes import TokensAxis
from spvit_jax.single_path.budget import Budget
from spvit_jax.single_path.merging import Merges

SHAPES: dict[str, Callable[[int, int], int]] = {  # of block i of so many: its share of the merges
    "constant": lambda i, blocks: 1,
    "rising": lambda i, blocks: i,
    "falling": lambda i, blocks: blocks - i,
}
PARTS = {"a quarter": 0.25, "half": 0.5, "three quarters": 0.75, "all": 1.0}  # of what is saved


def schedule(spec: Any, shape: str, total: int) -> Merges:
    """Divides ``total`` merges among the blocks that can merge; as many of them as fit.

    No block merges more than half of the patches it has; what it cannot take the next ones do. The
    last block has nothing behind it that would be saved.
    """
    places = [i for i, block in enumerate(spec.blocks[:-1]) if not TokensAxis().refuses(block)]
    weights = [SHAPES[shape](n, len(places)) for n in range(len(places))]
    merges, left, due = [0] * len(spec.blocks), spec.blocks[0].patches, 0.0
    for i, weight in zip(places, weights, strict=True):
        due += total * weight / max(sum(weights), 1)
        merges[i] = min(round(due) - sum(merges), left // 2)
        left -= merges[i]
    return tuple(merges)


def saving(
    spec: Any, shape: str, part: float, pricing: Callable[[Merges], Sequence[Budget]]
) -> Merges | None:
    """Finds the schedule that saves a part of what the budgets ask for, and little more.

    Merging saves no parameters: a budget of those is left to the rest.

    Args:
      spec: the dense model's.
      shape: one of ``SHAPES``.
      part: of what the dense model is above its budgets, for each of them.
      pricing: the budgets with tokens merged.

    Returns:
      None, where no schedule of this shape does, or nothing needs to be saved.
    """
    plain = pricing(())

    def saves(total: int) -> bool:
        less = pricing(schedule(spec, shape, total))
        return all(
            old.prices.dense - new.prices.dense >= part * (old.prices.dense - old.target)
            for old, new in zip(plain, less, strict=True)
            if old.field != "budget.params"
        )

    totals = range(spec.blocks[0].patches)
    least = bisect.bisect_left(totals, True, key=saves)
    return schedule(spec, shape, least) if 0 < least < len(totals) else None


def tried(
    trial: Callable[[str, Merges], float], find: Callable[[str, float], Merges | None]
) -> dict[Merges, float]:
    """Tries schedules for one budget: the errors of those that were, () among them.

    Half of what is to be saved is tried first, then more while that is better, or else less; then
    the other shapes save what was best, until one of them is better: it is tried with more or
    less as well.

    Args:
      trial: measures the error with a schedule, by name and by merges.
      find: the schedule of a shape that saves a part; None: there is none.
    """
    errors: dict[Merges, float] = {(): trial("nothing merged", ())}
    parts, best = list(PARTS), ("", -1)

    def better(part: int, shapes: Iterable[str]) -> bool:
        """Tries the first of the shapes that can save a part; whether it is the best so far."""
        nonlocal best
        if part not in range(len(parts)):
            return False
        schedules = {shape: find(shape, PARTS[parts[part]]) for shape in shapes}
        shape = next((shape for shape, merges in schedules.items() if merges), "")
        merges = schedules.get(shape) or ()
        if merges in errors:
            return False
        least, errors[merges] = min(errors.values()), trial(f"{shape}, {parts[part]}", merges)
        if errors[merges] < least:
            best = shape, part
        return best == (shape, part)

    def climb(shapes: Iterable[str]) -> None:
        """Goes from the best to more while that is better, or else to less."""
        before = best
        for step in (1, -1):
            while better(best[1] + step, shapes):
                pass
            if best != before:
                return

    half = parts.index("half")
    if better(half, SHAPES):
        climb(SHAPES)
    else:
        better(half - 1, SHAPES)
    shape, part = best
    for other in SHAPES if shape else ():
        if better(part, [other]):
            climb([other])
            break
    return errors
