"""Moments of rows, and the layers fitted to them, against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.single_path.moments import joined, moments, reduced_rank, ridge


def data(rows=400, inputs=6, outputs=3):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(rows, inputs)) @ rng.normal(size=(inputs, inputs)) + 5
    y = x @ rng.normal(size=(inputs, outputs)) + rng.normal(size=(rows, outputs)) - 2
    return x, y


def seen(x, y):
    rows = jnp.asarray(np.concatenate([x, y], 1))[:, None]
    return moments(rows, jnp.ones(len(x), bool)).on_host()


def test_moments_are_those_of_the_masked_rows_however_they_are_split():
    x, _ = data()
    x = x.reshape(100, 4, 6) * 100 + 1e4  # far from zero: float32 sums of squares would lose it
    mask = np.arange(100) % 7 != 0
    parts = [moments(jnp.asarray(x[s]), jnp.asarray(mask[s])) for s in (slice(30), slice(30, 100))]
    found, rows = joined(*parts).on_host(), x[mask].reshape(-1, 6)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-4)


def test_a_row_weighs_as_if_it_were_there_so_often():
    x, _ = data(rows=24)
    x, often = x.reshape(6, 4, 6), np.random.default_rng(0).integers(0, 4, (6, 4))
    found = moments(jnp.asarray(x), jnp.asarray(often)).on_host()
    rows = np.repeat(x.reshape(-1, 6), often.ravel(), axis=0)
    assert found.count == len(rows)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found.covariance, np.cov(rows.T, bias=True), rtol=1e-4)


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_ridge_solves_its_normal_equations(damping):
    x, y = data()
    centre = np.random.default_rng(2).normal(size=(6, 3))
    fit = ridge(seen(x, y), centre, damping)
    cx, cy = x - x.mean(0), y - y.mean(0)
    strength = damping * np.mean(cx.var(0))
    gradient = cx.T @ (cx @ fit.kernel - cy) / len(x) + strength * (fit.kernel - centre)
    np.testing.assert_allclose(gradient, 0, atol=1e-4)
    residual = y - x @ fit.kernel - fit.bias
    np.testing.assert_allclose(residual.mean(0), 0, atol=1e-4)
    assert fit.error(seen(x, y)) == pytest.approx((residual**2).sum(1).mean(), rel=1e-4)


def test_infinite_damping_leaves_the_kernel_and_takes_up_means():
    x, y = data()
    centre = np.ones((6, 3))
    fit = ridge(seen(x, y), centre, np.inf)
    np.testing.assert_array_equal(fit.kernel, centre)
    np.testing.assert_allclose((y - x @ centre - fit.bias).mean(0), 0, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("inputs", [0, 6])
def test_inputs_that_do_not_vary_leave_the_kernel(inputs):
    _, y = data()
    fit = ridge(seen(np.ones((len(y), inputs)), y), np.ones((inputs, 3)), 0.001)
    np.testing.assert_array_equal(fit.kernel, np.ones((inputs, 3)))
    np.testing.assert_allclose(fit.bias, y.mean(0) - inputs, rtol=1e-5)


def test_reduced_rank_is_the_best_of_its_rank():
    """Where inputs are white, that is the singular value decomposition of the full solution."""
    rng = np.random.default_rng(0)
    x = np.linalg.qr(rng.normal(size=(300, 5)) - 0.0)[0]
    x = np.linalg.qr(x - x.mean(0))[0] * np.sqrt(300)
    kernel = rng.normal(size=(5, 4))
    first, second, fit = reduced_rank(seen(x, x @ kernel), 4, 2, 1e-9)
    u, s, v = np.linalg.svd(kernel)
    np.testing.assert_allclose(first @ second, (u[:, :2] * s[:2]) @ v[:2], atol=1e-4)
    assert fit.error(seen(x, x @ kernel)) == pytest.approx((s[2:] ** 2).sum(), rel=1e-3)
