"""Backward elimination against solving every removal anew."""

import numpy as np
import pytest

from spvit_jax.single_path import eliminate as elimination
from spvit_jax.single_path.eliminate import DAMPING, eliminate


def least_squares(covariance, kernel, group):
    """The same by brute force: after each removal everything that is left is fitted again."""
    n = len(kernel)
    cov = covariance + DAMPING * np.trace(covariance) / n * np.eye(n)
    left, order, errors = list(range(n // group)), [], [0.0]

    def error(groups):
        rows = [g * group + i for g in groups for i in range(group)]
        lost = kernel.copy()
        if rows:
            lost[rows] -= np.linalg.solve(cov[np.ix_(rows, rows)], cov[rows] @ kernel)
        return np.trace(lost.T @ cov @ lost)

    while left:
        costs = [error([g for g in left if g != gone]) for gone in left]
        order.append(left.pop(int(np.argmin(costs))))
        errors.append(min(costs))
    return order, errors


@pytest.mark.parametrize(("inputs", "group"), [(2 * 16 + 5, 1), (24, 4)])
def test_elimination_is_least_squares(inputs, group, monkeypatch):
    monkeypatch.setattr(elimination, "PANEL", 16)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    covariance, kernel = rows.T @ rows / len(rows), rng.normal(size=(inputs, 7))
    found = eliminate(covariance, kernel, group)
    order, errors = least_squares(covariance, kernel, group)
    assert found.order.tolist() == order
    np.testing.assert_allclose(found.errors, errors, rtol=1e-9, atol=1e-9 * errors[-1])


def test_inputs_that_say_the_same_cost_little():
    kernel = np.array([[1.0], [2.0], [3.0]])
    covariance = np.array([[1.0, 1, 0], [1, 1, 0], [0, 0, 1]])  # the first two are one
    found = eliminate(covariance, kernel)
    assert found.order[0] in (0, 1) and found.errors[1] < 0.02 * found.errors[3]
