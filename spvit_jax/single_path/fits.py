"""Fits of layers to moments, damped as held-out images say."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.models import Geometry
from spvit_jax.models.layers import Dense
from spvit_jax.single_path.moments import Fit, Moments, joined, reduced_rank
from spvit_jax.single_path.sharing import FoldedConv

DAMPINGS = (np.inf, 10.0, 1.0, 0.1, 0.01, 0.001)  # relative to the inputs' mean variance
UNSEEN = 0.1  # where there are too few images to hold some out
LEAST = 1e-3  # of the held-out error: what a weaker damping has to gain to be chosen
ROUNDING = 1e-9  # of the outputs' power: nothing is left to gain
MARGIN = 4.0  # standard deviations by which a fitted convolution is lifted above its ReLU's bend


def damped(fitted: Moments, held: Moments | None, fit: Callable[[Moments, float], Fit]) -> Fit:
    """Fits with the damping that does best on held-out rows, then to all rows."""
    if held is None:
        return fit(fitted, UNSEEN)
    outputs = len(fit(fitted, DAMPINGS[0]).bias)
    cov, mean = held.covariance[-outputs:, -outputs:], held.mean[-outputs:]
    power = np.trace(cov) + mean @ mean
    best, chosen = np.inf, DAMPINGS[0]
    for damping in DAMPINGS:
        error = fit(fitted, damping).error(held) + ROUNDING * power
        if error < (1 - LEAST) * best:
            best, chosen = error, damping
    return fit(joined(fitted, held), chosen)


def fitted_convolution(
    fitted: Moments, held: Moments | None, geometry: Geometry, dtype: Any
) -> FoldedConv:
    """A convolution of the best rank, its ReLU made to do nothing."""
    width, rank = geometry.width, geometry.head_dim
    choices = [d for d in DAMPINGS if np.isfinite(d)] if held is not None else [UNSEEN]
    best = min(
        choices,
        key=lambda d: reduced_rank(fitted, width, rank, d)[2].error(
            fitted if held is None else held
        ),
    )
    seen = fitted if held is None else joined(fitted, held)
    first, second, layer = reduced_rank(seen, width, rank, best)
    inputs = len(first)
    mean, cov = seen.mean[:inputs], seen.covariance[:inputs, :inputs]
    lift = MARGIN * np.sqrt(np.maximum((first * (cov @ first)).sum(0), 0))
    out = _layer(second, layer.bias + (mean @ first - lift) @ second, dtype)
    kernel = jnp.asarray(first.reshape(width, -1, rank), float)
    bias = jnp.asarray(lift - mean @ first, float)
    return FoldedConv(kernel, bias, None, out, geometry)


def _layer(kernel: np.ndarray, bias: np.ndarray, dtype: Any) -> Any:
    layer = Dense(*kernel.shape, dtype=dtype, rngs=nnx.Rngs(0))
    layer.kernel[...], layer.bias[...] = jnp.asarray(kernel, float), jnp.asarray(bias, float)
    return layer
