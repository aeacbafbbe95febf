"""``Gating``: what a search has besides weights."""

import dataclasses
from typing import Any

import jax
import numpy as np

from spvit_jax.single_path import budget, gates
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.budget import Budget
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.merging import Dims, Merges, merged
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.space import Space, SpaceError, group_units


@dataclasses.dataclass(frozen=True)
class Gating:
    """A space to choose from, the budgets to hold, and how loudly they are asked for."""

    space: Space
    budgets: tuple[Budget, ...]
    weight: float  # of the penalty
    learning_rate: float  # of the gate logits
    start: Gates | None = None  # logits a search starts from; None: as released

    @classmethod
    def of(
        cls,
        search: Any,
        budgets: Any,
        spec: Any,
        dense: Any = None,
        merges: Merges = (),
        dims: Dims = (),
    ) -> "Gating":
        """Reads ``config.Search`` and ``config.Budget`` for the dense model of ``spec``.

        Without the model itself, groups of FFN units are arbitrary. With ``merges``, tokens are
        merged away and the rest is priced accordingly; with ``dims``, heads are narrower.

        Raises:
          SpaceError, BudgetError: the model cannot have such a space or budget.
        """
        members = group_units(spec, search.unit_group, dense)
        try:
            space = Space(merged(spec, merges), search.ops, search.axes, members)
        except SpaceError as error:
            raise SpaceError(f"search.{error}") from None
        held = budget.budgets(budgets, spec, search.ops, merges, dims)
        return cls(space, held, search.budget_lambda, search.gate_learning_rate)

    def initial(self) -> Gates:
        """Makes the gate logits a search starts from."""
        return gates.initial_logits(self.space) if self.start is None else self.start

    def sample(self, logits: Gates, key: jax.Array) -> Gates:
        """Draws the gates of a step."""
        return gates.sample(self.space, logits, key)

    def decide(self, logits: Gates) -> Gates:
        """Opens the gates whose probability is above a half."""
        return gates.decide(self.space, logits)

    def penalty(self, logits: Gates) -> jax.Array:
        """How far the budgets are missed; see ``budget.penalty``."""
        return budget.penalty(self.space, logits, self.budgets, self.weight)

    def threshold(self, logits: Gates, model: str = "") -> Architecture:
        """The architecture of ``decide``, wherever that lies."""
        return from_gates(self.decide(logits), self.space.ops, model)

    def project(self, logits: Gates, model: str = "") -> Architecture:
        """The architecture the logits value most within the budgets; see ``budget.project``."""
        return budget.project(self.space, logits, self.budgets, model)

    def metrics(self, logits: Gates) -> dict[str, float]:
        """Describes logits: the shares of the budgets that ``decide`` takes, and probabilities.

        Those are of each gate of the operations, and means of each other axis of a block.
        """
        decided = self.decide(logits)
        costs = ((b.prices.unit, float(cost(b.prices, decided)) / b.target) for b in self.budgets)
        values = {f"budget/{unit}": share for unit, share in costs}
        for i, block in enumerate(logits):
            for axis, x in block.items():
                shares = 1 / (1 + np.exp(-np.asarray(x)))
                if axis == "op":
                    values |= {f"op_probability/{i}/{j}": float(p) for j, p in enumerate(shares)}
                else:
                    values[f"{axis}_probability/{i}"] = float(shares.mean())
        return values
