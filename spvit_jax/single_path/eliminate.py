"""Backward elimination of a linear layer's inputs, each making up for those before it.

After optimal brain surgeon (Hassibi and Stork 1993): the input whose removal costs least goes, the
kernel of the others takes up what it can of it, and so on until none is left. What the next removal
costs needs only the inverse ``H`` of the inputs' covariance and the kernel's products ``K = W W'``.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg

DAMPING = 0.1  # of the covariance, relative to its mean diagonal: few images say little of more
PANEL = 64  # removals whose effect on H and K is applied together: a step then reads two columns


class Elimination(NamedTuple):
    """In which order inputs go, and what is lost.

    Attributes:
      order: the inputs (or groups), the first to go first.
      errors: the summed squared error of the outputs after each number of removals, ``[inputs+1]``.
    """

    order: np.ndarray
    errors: np.ndarray


def eliminate(covariance: np.ndarray, kernel: np.ndarray, group: int = 1) -> Elimination:
    """Removes the inputs of ``kernel [n, outputs]`` one by one, or in groups of neighbours.

    Args:
      covariance: of the inputs, ``[n, n]``.
      kernel: the layer's.
      group: inputs that go together, such as those of an attention head.
    """
    n = len(kernel)
    damped = covariance + DAMPING * np.trace(covariance) / max(n, 1) * np.eye(n)
    inverse = scipy.linalg.cho_solve(scipy.linalg.cho_factor(damped), np.eye(n))
    products = np.asarray(kernel, float) @ np.asarray(kernel, float).T
    removed = _single(inverse, products) if group == 1 else _grouped(inverse, products, group)
    order, costs = zip(*removed, strict=True)
    return Elimination(np.array(order), np.concatenate([[0.0], np.cumsum(costs)]))


def _single(inverse: np.ndarray, products: np.ndarray) -> list[tuple[int, float]]:
    inputs, removed = np.arange(len(inverse)), []
    while len(inputs):
        h, k = inverse.diagonal().copy(), products.diagonal().copy()
        u, p = np.zeros((2, min(PANEL, len(inputs)), len(inputs)))
        s, left = np.zeros(len(u)), np.ones(len(inputs), bool)
        for t in range(len(u)):
            costs = np.where(left, k / np.where(left, h, 1), np.inf)
            j = int(costs.argmin())
            s[t], root = costs[j], np.sqrt(h[j])
            into, out = u[:t, j], p[:t, j]
            u[t] = (inverse[j] - into @ u[:t]) / root
            p[t] = (products[j] - (out - s[:t] * into) @ u[:t] - into @ p[:t]) / root
            h -= u[t] ** 2
            k += u[t] * (s[t] * u[t] - 2 * p[t])
            left[j] = False
            removed.append((int(inputs[j]), float(s[t])))
        u, p, inputs = u[:, left], p[:, left], inputs[left]
        inverse = inverse[np.ix_(left, left)] - u.T @ u
        both = u.T @ (p - 0.5 * s[:, None] * u)
        products = products[np.ix_(left, left)] - both - both.T
    return removed


def _grouped(inverse: np.ndarray, products: np.ndarray, group: int) -> list[tuple[int, float]]:
    left, removed = list(range(len(inverse) // group)), []
    while left:
        rows = [slice(g * group, (g + 1) * group) for g in left]
        solved = [np.linalg.solve(inverse[r, r], products[r, r]) for r in rows]
        costs = [float(np.trace(one)) for one in solved]
        place = int(np.argmin(costs))
        r = rows[place]
        u = np.linalg.solve(inverse[r, r], inverse[r]).T  # what the others take up
        change = u @ products[r]
        products += u @ (u @ products[r, r]).T - change - change.T
        inverse -= u @ inverse[r]
        removed.append((left.pop(place), costs[place]))
    return removed
