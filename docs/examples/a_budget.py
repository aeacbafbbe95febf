"""A new kind of budget: energy, a price for each multiply-accumulate and for each weight read.

A price is a base and what every gate adds to it. Both counts are such prices, so a weighted sum of
them is one too; the penalty, the choice under the budget and the tables take it as it is.
"""

import functools

import numpy as np

from spvit_jax.single_path import prices
from spvit_jax.single_path.budget import Budget
from spvit_jax.single_path.prices import Prices

PER_MAC, PER_WEIGHT = 1.0, 50.0  # pJ; made up for this example: put in those of your device


def energy(spec, ops=(), merges=(), dims=()) -> Prices:
    """Prices one image in pJ, every weight read once.

    Args:
      spec: the dense model's.
      ops: what the gates choose from; (): all there are.
      merges: the tokens that each block merges away; (): none.
      dims: the features of the heads' keys and values in each block; (): all.
    """
    of = spec, ops, merges, dims
    macs, weights = prices.macs(*of), prices.parameters(*of)

    def together(of_macs, of_weights):
        return PER_MAC * np.asarray(of_macs, float) + PER_WEIGHT * np.asarray(of_weights, float)

    blocks = tuple(
        {axis: together(of_macs[axis], of_weights[axis]) for axis in of_macs}
        for of_macs, of_weights in zip(macs.blocks, weights.blocks, strict=True)
    )
    return Prices("pJ", float(together(macs.base, weights.base)), blocks)


def energy_budget(spec, share: float, ops=(), merges=()) -> Budget:
    """Allows a share of the dense model's energy."""
    narrowed = functools.partial(energy, spec, ops, merges)
    priced = narrowed()
    return Budget(priced, share * priced.dense, "energy", narrowed)
