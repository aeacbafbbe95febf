"""Pixels as the numbers a network expects."""

import dataclasses

import jax
import jax.numpy as jnp

LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Normalise:
    """Takes ``mean`` off and divides by ``std``, of pixels in 0..1: RGB, or one number for grey."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: jax.Array) -> jax.Array:
        """uint8 ``[batch, height, width, 3]`` normalised, in JAX's default float; or their grey."""
        pixels = self._seen(images.astype(float) / 255)
        return (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def convert(self, images: jax.Array, other: "Normalise") -> jax.Array:
        """``images`` as ``other`` normalised them, normalised this way instead."""
        if self == other:
            return images
        pixels = self._seen(images * jnp.asarray(other.std) + jnp.asarray(other.mean))
        return (pixels - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def _seen(self, pixels: jax.Array) -> jax.Array:
        """The pixels, or where one mean is given their luma, as Pillow has it (ITU-R 601)."""
        if len(self.mean) > 1 or pixels.shape[-1] == 1:
            return pixels
        return pixels @ jnp.asarray(LUMA)[:, None]
