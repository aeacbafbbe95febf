"""Gate logits that say what scores say: what a search that starts from them has to improve on."""

import itertools

import jax.numpy as jnp
import numpy as np

from spvit_jax.single_path.budget import Budget, price_of
from spvit_jax.single_path.eliminate import Elimination
from spvit_jax.single_path.gates import INITIAL_LOGIT, Gates, nested
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.score import BlockScores, Scores
from spvit_jax.single_path.space import Space

SPREAD = 3.0  # standard deviations from the threshold; no logit begins further away


def scored_logits(space: Space, scores: Scores, held: tuple[Budget, ...]) -> Gates:
    """Makes the logits a search starts from: how much error each gate saves for its price.

    The logarithms of that, standardised over all gates; 0 is where the gates above it just keep
    within every budget, and a standard deviation is as far as released logits begin from it.
    """
    targets = np.array([budget.target for budget in held])

    def share(i: int, axis: str) -> np.ndarray:
        return (price_of(held, i, axis) / targets).sum(1)

    worth: list[dict[str, np.ndarray]] = []
    for i, block in enumerate(scores.blocks):
        rates = {
            "op": _slopes(_op_errors(space, block), _op_prices(share(i, "op"), share(i, "heads"))),
            "heads": _saved(block.heads) / share(i, "heads"),
            "ffn": _grouped(space, i, _saved(block.ffn)) / _grouped(space, i, share(i, "ffn")),
        }
        worth.append({axis: np.maximum(rates[axis], 0) for axis in space.gated})
    every = np.concatenate([x for block in worth for x in block.values()])
    least = every[every > 0].min(initial=1.0)
    logs = [{axis: np.log(np.maximum(x, least)) for axis, x in b.items()} for b in worth]
    every = np.log(np.maximum(every, least))
    centre, scale = _threshold(space, logs, np.unique(every), held), every.std() or 1.0

    def logit(x: np.ndarray) -> jnp.ndarray:
        return jnp.asarray(INITIAL_LOGIT * np.clip((x - centre) / scale, -SPREAD, SPREAD), float)

    return tuple({axis: logit(x) for axis, x in block.items()} for block in logs)


def _threshold(
    space: Space, logs: list[dict[str, np.ndarray]], levels: np.ndarray, held: tuple[Budget, ...]
) -> float:
    """The lowest of the levels whose gates above it are within every budget."""

    def holds(level: float) -> bool:
        own = tuple({axis: (x > level).astype(int) for axis, x in b.items()} for b in logs)
        gates = nested(space, own)
        opened = tuple({axis: np.asarray(gate) for axis, gate in b.items()} for b in gates)
        return all(cost(budget.prices, opened) <= budget.target for budget in held)

    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(levels[middle]) else (middle + 1, high)
    return float(levels[low])


def _saved(elimination: Elimination) -> np.ndarray:
    """The error that each input saves, given those that go after it."""
    saved = np.zeros(len(elimination.order))
    saved[elimination.order] = np.diff(elimination.errors)
    return saved


def _grouped(space: Space, i: int, values: np.ndarray) -> np.ndarray:
    """Sums over the FFN units of each gate."""
    return np.bincount(space.spread("ffn", i, np.arange(space.gates("ffn", i))), values)


def _op_errors(space: Space, block: BlockScores) -> np.ndarray:
    return np.array([*(block.ops[op] for op in space.ops[:-1]), 0.0])


def _op_prices(steps: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Of each operation, beyond the cheapest; attention with all of its heads."""
    return np.concatenate([[0.0], np.cumsum(steps[:-1]), [steps.sum() + heads.sum()]])


def _slopes(errors: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """What each step along nested options saves for its price, on their lower convex hull.

    An option above the hull is passed: the steps to it and from it save alike.
    """
    corners = [0]
    while corners[-1] < len(errors) - 1:
        rest = np.arange(corners[-1] + 1, len(errors))
        run = np.maximum(prices[rest] - prices[corners[-1]], np.finfo(float).tiny)
        corners.append(int(rest[np.argmax((errors[corners[-1]] - errors[rest]) / run)]))
    spans = itertools.pairwise(corners)
    slopes = [(errors[a] - errors[b]) / (prices[b] - prices[a] or 1.0) for a, b in spans]
    return np.repeat(slopes, np.diff(corners))
