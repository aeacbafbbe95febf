"""Augmentation of whole batches on the device: pure functions that the jitted step calls.

The order of the released runs: normalise, ``random_erasing``, ``mixup_cutmix``.

All randomness is of the global batch under the key given, so its outcome does not depend on how
many devices or processes the rows are spread over.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array

ERASED_AREA = (0.02, 1 / 3)  # share of the image
ERASED_ASPECT = (0.3, 1 / 0.3)  # height over width
TRIES = 10


def random_erasing(images: Array, key: Array, probability: float = 0.25) -> Array:
    """Replaces one box by normal noise in each image, with that probability.

    Zhong et al., https://arxiv.org/abs/1708.04896, as timm's mode "pixel": an area uniform in
    0.02..1/3 of the image's and a log-uniform aspect ratio in 0.3..1/0.3, drawn up to 10 times
    until the box is smaller than the image in both directions; its place is uniform, every
    number in it N(0, 1).

    Args:
      images: [b, h, w, c], normalised.
      key: typed JAX key.
      probability: of a box, independently for each image.

    Returns:
      The shape and type of ``images``; what is outside the boxes is unchanged.
    """
    rows, height, width, _ = images.shape
    size_key, place_key, chance_key, noise_key = jax.random.split(key, 4)
    down, across, fits = _box_sizes(size_key, rows, height, width)
    erased = fits & jax.random.bernoulli(chance_key, probability, (rows,))
    y_key, x_key = jax.random.split(place_key)
    top = jax.random.randint(y_key, (rows,), 0, height - down + 1)
    left = jax.random.randint(x_key, (rows,), 0, width - across + 1)
    inside = (
        _inside(top, top + down, height)[:, :, None]
        & _inside(left, left + across, width)[:, None, :]
    )
    inside &= erased[:, None, None]
    noise = jax.random.normal(noise_key, images.shape, images.dtype)
    return jnp.where(inside[..., None], noise, images)


def mixup_cutmix(
    images: Array,
    labels: Array,
    key: Array,
    classes: int,
    *,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    switch: float = 0.5,
    smoothing: float = 0.1,
) -> tuple[Array, Array]:
    """Mixes each image with the one as far from the batch's other end, and their targets alike.

    Zhang et al., https://arxiv.org/abs/1710.09412, and Yun et al.,
    https://arxiv.org/abs/1905.04899, as timm's mode "batch": one draw for the whole array decides
    between the two, and one share lambda ~ Beta(alpha, alpha) of the own image. Mixup adds up
    lambda and 1 - lambda of the pair; cutmix pastes one box of the other image, of 1 - lambda of
    the area before it is cut off at the border, and lambda becomes the share really left.

    In a batch sharded over devices, partners live on mirrored devices, so each sends its images
    to one other once. The released runs drew anew for the 128 or 256 images of each GPU; calling
    this on each micro-batch does that for as many images as a micro-batch has.

    Args:
      images: float [b, h, w, c]; call it after ``random_erasing``.
      labels: integers [b].
      key: typed JAX key.
      classes: number of classes.
      mixup, cutmix: the alphas; 0 turns that one off.
      switch: probability of cutmix where both are on.
      smoothing: share of each target that is spread evenly over all classes.

    Returns:
      Images of the same shape and type; targets [b, classes] in JAX's default float, rows
      summing to 1.
    """
    choice_key, share_key, box_key = jax.random.split(key, 3)
    _, height, width, _ = images.shape
    chosen = jax.random.bernoulli(choice_key, _cutmix_probability(mixup, cutmix, switch))
    alpha = jnp.where(chosen, cutmix, mixup)
    share = jax.random.beta(share_key, alpha, alpha) if mixup or cutmix else jnp.ones(())
    pasted, left = _cutmix_box(box_key, share, height, width)
    weight, share = jnp.where(chosen, ~pasted, share), jnp.where(chosen, left, share)
    weight = weight.astype(images.dtype)[:, :, None]
    targets = jax.nn.one_hot(labels, classes, dtype=share.dtype)
    targets = targets * (1 - smoothing) + smoothing / classes
    return (
        weight * images + (1 - weight) * images[::-1],
        share * targets + (1 - share) * targets[::-1],
    )


def _box_sizes(key: Array, rows: int, height: int, width: int) -> tuple[Array, Array, Array]:
    """Height, width and existence, each [rows], of the first drawn box that fits."""
    area_key, aspect_key = jax.random.split(key)
    low, high = (share * height * width for share in ERASED_AREA)
    area = jax.random.uniform(area_key, (rows, TRIES), minval=low, maxval=high)
    low, high = (math.log(aspect) for aspect in ERASED_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, (rows, TRIES), minval=low, maxval=high))
    down = jnp.round(jnp.sqrt(area * aspect)).astype(int)
    across = jnp.round(jnp.sqrt(area / aspect)).astype(int)
    fits = (down < height) & (across < width)
    first = jnp.argmax(fits, axis=1)[:, None]
    down, across, fits = (jnp.take_along_axis(x, first, 1)[:, 0] for x in (down, across, fits))
    return down, across, fits


def _cutmix_probability(mixup: float, cutmix: float, switch: float) -> float:
    if mixup and cutmix:
        return switch
    return 1.0 if cutmix else 0.0


def _cutmix_box(key: Array, share: Array, height: int, width: int) -> tuple[Array, Array]:
    """Which pixels to paste, bool [height, width], and the share of those that are not."""
    side = jnp.sqrt(1 - share)
    y_key, x_key = jax.random.split(key)
    top, bottom = _span(y_key, side, height)
    left, right = _span(x_key, side, width)
    pasted = _inside(top, bottom, height)[:, None] & _inside(left, right, width)[None, :]
    return pasted, 1 - (bottom - top) * (right - left) / (height * width)


def _span(key: Array, side: Array, length: int) -> tuple[Array, Array]:
    """Start and stop of ``side`` of ``length`` about a random pixel, cut off at both ends."""
    pixels = (side * length).astype(int)
    centre = jax.random.randint(key, (), 0, length)
    start, stop = centre - pixels // 2, centre + (pixels + 1) // 2
    return jnp.clip(start, 0, length), jnp.clip(stop, 0, length)


def _inside(start: Array, stop: Array, length: int) -> Array:
    """Which of ``length`` places are in start..stop - 1; [..., length]."""
    place = jnp.arange(length)
    return (start[..., None] <= place) & (place < stop[..., None])
