"""Architectures worth trying: what scores choose, and simpler shapes of the same price.

The errors of single blocks mislead where much is cut: what a whole model loses has to be tried.
Every candidate keeps the heads and units that scores say should go last, so that shapes alone
differ.
"""

import bisect

import numpy as np

from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.budget import Budget, select
from spvit_jax.single_path.eliminate import Elimination
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.score import BlockScores, Scores
from spvit_jax.single_path.space import Space

FEWER = {"a sixth": 6, "a third": 3, "half": 2}  # of the attentions that a mixture does without


def candidates(
    space: Space, scores: Scores, held: tuple[Budget, ...], model: str = ""
) -> dict[str, Architecture]:
    """Proposes architectures within every budget, by name, no two of them alike.

    "scored" has the least summed error. Where the space allows, "uniform width" keeps all of
    attention and as many FFN units in every block, "uniform shares" the same share of heads and of
    units, and "uniform depth" attention in the first blocks alone, in the same share as units.
    Mixtures are scored, but for the attentions that they are made to do without, those whose
    absence costs least.

    Raises:
      BudgetError: with every gate shut the model is above a target.
    """
    proposals = {"scored": select(space, scores, held, model)}
    proposals |= _uniform(space, scores, held, model)
    if "op" in space.axes and "skip" in space.ops:
        for name, part in FEWER.items():
            proposals[f"scored, {name} skipped"] = _without(space, scores, held, model, part)
    unlike: dict[str, Architecture] = {}
    for name, architecture in proposals.items():
        if architecture not in unlike.values():
            unlike[name] = architecture
    return unlike


def _without(
    space: Space, scores: Scores, held: tuple[Budget, ...], model: str, part: int
) -> Architecture:
    """The scored choice with attention skipped in one of ``part`` blocks."""
    costs = [block.ops["skip"] for block in scores.blocks]
    skipped = set(np.argsort(costs, kind="stable")[: max(len(costs) // part, 1)].tolist())
    forced = (_skipped(b) if i in skipped else b for i, b in enumerate(scores.blocks))
    return select(space, Scores(tuple(forced), scores.images), held, model)


def _skipped(block: BlockScores) -> BlockScores:
    """Scores by which skip is the best operation, and the cheapest as well."""
    ops = {op: float(op != "skip") for op in block.ops}
    heads = Elimination(block.heads.order, np.ones_like(block.heads.errors))
    return block._replace(ops=ops, heads=heads)


def _uniform(
    space: Space, scores: Scores, held: tuple[Budget, ...], model: str
) -> dict[str, Architecture]:
    """Architectures with the same in every block, or the same of every block that is there."""
    depth = len(space.blocks)
    heads = [block.heads for block in space.blocks]
    rows = {"uniform width": [(1.0, depth)]}  # share of heads, and blocks that have any
    if "heads" in space.axes:
        rows["uniform shares"] = [(n / max(heads), depth) for n in range(1, max(heads) + 1)]
    if "op" in space.axes and "skip" in space.ops:
        rows["uniform depth"] = [(1.0, n) for n in range(1, depth)]
    proposals = {}
    for name, shapes in rows.items():
        fitted = [(shape, _widest(space, scores, held, *shape)) for shape in shapes]
        fitting = [
            (abs(units - heads * blocks / depth), gates)
            for (heads, blocks), (units, gates) in fitted
            if gates is not None
        ]
        if fitting:
            gates = min(fitting, key=lambda option: option[0])[1]
            proposals[name] = from_gates(gates, space.ops, model, space.merges)
    return proposals


def _widest(
    space: Space, scores: Scores, held: tuple[Budget, ...], heads: float, blocks: int
) -> tuple[float, Gates | None]:
    """The largest share of units that fits beside so many heads, and the gates; None: none does."""
    steps = max(space.gates("ffn", i) for i in range(len(space.blocks)))

    def fitting(n: int) -> Gates | None:
        gates = _gates(space, scores, heads, blocks, n / steps)
        within = all(cost(budget.prices, gates) <= budget.target for budget in held)
        return gates if within else None

    allowed = range(steps + 1) if "ffn" in space.axes else [steps]
    many = bisect.bisect(allowed, False, key=lambda n: fitting(n) is None)
    return (allowed[many - 1] / steps, fitting(allowed[many - 1])) if many else (0.0, None)


def _gates(space: Space, scores: Scores, heads: float, blocks: int, units: float) -> Gates:
    """Attention in the first ``blocks`` with that share of heads, and a share of units in all."""
    gates = []
    for i, (geometry, block) in enumerate(zip(space.blocks, scores.blocks, strict=True)):
        mixes = int(i < blocks)
        kept = mixes * max(round(heads * geometry.heads), 1)
        own = space.gates("ffn", i)
        width = round(units * own) * (geometry.hidden // own)
        gates.append(
            {
                "op": np.full(len(space.ops) - 1, mixes),
                "heads": _last(block.heads, kept),
                "ffn": _last(block.ffn, width),
            }
        )
    return tuple(gates)


def _last(elimination: Elimination, kept: int) -> np.ndarray:
    """Gates that are open for those that would go last."""
    gates = np.zeros(len(elimination.order), int)
    gates[elimination.order[len(gates) - kept :]] = 1
    return gates
