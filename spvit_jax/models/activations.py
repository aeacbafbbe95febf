"""Activations of FFN units. Each keeps its input alone for the backward pass."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array

QUICK = 1.702  # CLIP's approximation of GELU
TANH = (2 / jnp.pi) ** 0.5, 0.044715  # Hendrycks and Gimpel's


def _saving_input(function: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Callable:
    """The function with its own derivative, in closed form."""

    def backward(x: Array, gradient: Array) -> tuple[Array]:
        return (gradient * slope(x),)

    saving = jax.custom_vjp(function)
    saving.defvjp(lambda x: (function(x), x), backward)
    return saving


def _normal_cdf(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5))


def _gelu_slope(x: Array) -> Array:
    density = jnp.exp(-0.5 * x * x) * (0.5 / jnp.pi) ** 0.5
    return _normal_cdf(x) + x * density


def _swish(rate: float) -> Callable:
    def slope(x: Array) -> Array:
        share = jax.nn.sigmoid(rate * x)
        return share * (1 + rate * x * (1 - share))

    return _saving_input(lambda x: x * jax.nn.sigmoid(rate * x), slope)


def _tanh(x: Array) -> Array:
    return jnp.tanh(TANH[0] * (x + TANH[1] * x**3))


def _gelu_tanh_slope(x: Array) -> Array:
    t = _tanh(x)
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * TANH[0] * (1 + 3 * TANH[1] * x * x)


gelu = _saving_input(lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)), _gelu_slope)

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,  # exact
    "gelu_tanh": _saving_input(lambda x: 0.5 * x * (1 + _tanh(x)), _gelu_tanh_slope),
    "quick_gelu": _swish(QUICK),
    "silu": _swish(1.0),
}
