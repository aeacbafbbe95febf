"""``Moments``: how many rows there were, their mean and their scatter; and layers fitted to them.

Least squares need no more of the data than this. Rows are summed up on the devices, batch by batch,
each about its own mean, so that float32 is enough; what is solved is solved in float64 on the host.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

Array = jax.Array


class Moments(NamedTuple):
    """Of rows ``[count, n]``."""

    count: Any  # the sum of their weights
    mean: Any  # [n]
    scatter: Any  # [n, n]: the sum of products about the mean

    @property
    def covariance(self) -> Any:
        """``[n, n]``, of the rows as they are (no degree of freedom is subtracted)."""
        return self.scatter / self.count

    def on_host(self) -> "Moments":
        """The same as NumPy arrays in float64."""
        return Moments(*(np.asarray(part, np.float64) for part in jax.device_get(tuple(self))))


def moments(rows: Array, weight: Array) -> Moments:
    """Sums up ``rows [batch, ..., n]``, each times its weight.

    ``weight`` is that of elements of the batch, ``[batch]``, such as a mask, or has more of the
    rows' axes.
    """
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    missing = rows.ndim - 1 - weight.ndim
    weight = jnp.broadcast_to(weight.reshape(*weight.shape, *[1] * missing), rows.shape[:-1])
    weight, rows = weight.reshape(-1, 1).astype(rows.dtype), rows.reshape(-1, rows.shape[-1])
    count = jnp.maximum(weight.sum(), 1)
    mean = (weight * rows).sum(0) / count
    centred = rows - mean
    scatter = jnp.matmul((weight * centred).T, centred, precision="highest")
    return Moments(weight.sum(), mean, scatter)


def joined(a: Moments, b: Moments) -> Moments:
    """The moments of both sets of rows together (Chan et al. 1979)."""
    count = a.count + b.count
    shift, share = b.mean - a.mean, b.count / count
    between = a.count * share * shift[:, None] * shift
    return Moments(count, a.mean + share * shift, a.scatter + b.scatter + between)


class Fit(NamedTuple):
    """A linear layer: ``rows @ kernel + bias``."""

    kernel: np.ndarray  # [inputs, outputs]
    bias: np.ndarray  # [outputs]

    def error(self, seen: Moments) -> float:
        """The mean squared error, summed over outputs, on rows of inputs and then outputs."""
        inputs = len(self.kernel)
        cov, mean = seen.covariance, seen.mean
        off = mean[inputs:] - mean[:inputs] @ self.kernel - self.bias
        cross = cov[:inputs, inputs:]
        explained = 2 * cross - cov[:inputs, :inputs] @ self.kernel
        return float(np.trace(cov[inputs:, inputs:]) - (self.kernel * explained).sum() + off @ off)


def with_mean(kernel: np.ndarray, seen: Moments) -> Fit:
    """A layer of this kernel whose bias takes up the means."""
    inputs = len(kernel)
    return Fit(kernel, seen.mean[inputs:] - seen.mean[:inputs] @ kernel)


def ridge(seen: Moments, centre: np.ndarray, damping: float) -> Fit:
    """Fits outputs to inputs by least squares, shrunk towards a kernel.

    Args:
      seen: of rows of inputs and then outputs, in float64.
      centre: the kernel ``[inputs, outputs]`` that an infinite damping leaves.
      damping: relative to the mean variance of the inputs.
    """
    inputs = len(centre)
    gram = seen.covariance[:inputs, :inputs]
    if np.isinf(damping) or not gram.any():  # nothing varies, so nothing is known
        return with_mean(centre, seen)
    missing = seen.covariance[:inputs, inputs:] - gram @ centre
    return with_mean(centre + solve(gram, missing, damping), seen)


def solve(gram: np.ndarray, right: np.ndarray, damping: float) -> np.ndarray:
    """Solves ``(gram + damping * mean(diag) I) x = right`` for a covariance."""
    damped = gram + damping * max(np.trace(gram) / len(gram), np.finfo(float).tiny) * np.eye(
        len(gram)
    )
    return scipy.linalg.solve(damped, right, assume_a="pos", check_finite=False)


def reduced_rank(seen: Moments, outputs: int, rank: int, damping: float) -> tuple[Any, Any, Fit]:
    """Fits the last ``outputs`` columns to the others by a layer of a rank (Izenman 1975).

    Returns:
      ``first [inputs, rank]`` and ``second [rank, outputs]`` factors, and the layer they make.
    """
    inputs = len(seen.mean) - outputs
    gram = seen.covariance[:inputs, :inputs]
    kernel = solve(gram, seen.covariance[:inputs, inputs:], damping)
    _, directions = np.linalg.eigh(kernel.T @ gram @ kernel)
    second = directions[:, ::-1][:, :rank].T
    first = kernel @ second.T
    return first, second, with_mean(first @ second, seen)
