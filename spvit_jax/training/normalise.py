"""Pixels as the numbers a network expects."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Normalise:
    """Takes ``mean`` off and divides by ``std``, both RGB and of pixels in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 ``[batch, height, width, 3]`` normalised, in JAX's default float."""
        pixels = images.astype(float) / 255
        return (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def convert(self, images: jax.Array, other: "Normalise") -> jax.Array:
        """``images`` as ``other`` normalised them, normalised this way instead."""
        if self == other:
            return images
        pixels = images * jnp.asarray(other.std) + jnp.asarray(other.mean)
        return (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)
