"""Host transforms: an opened image in, uint8 RGB of the model's size out, randomness passed in."""

import numpy as np

from spvit_jax.data.augment import plain, recipe_transform, three_augment
from spvit_jax.data.decode import Opened
from spvit_jax.sizes import Size, sides

SHIFT = 2  # pixels, the most that "shift" moves an image in each direction
SIMPLE = ("none", "flip", "shift")
PRESETS = {"plain": plain, "three": three_augment, "recipe": recipe_transform}


def train_transform(
    opened: Opened, rng: np.random.Generator, *, image_size: Size, augment: str
) -> np.ndarray:
    """A training view of an image.

    "recipe", "three" and "plain" are those of ``augment``. The others resize (bicubic, so that the
    image just covers ``image_size``) and crop at a random place; "flip" then mirrors left to right
    with probability 1/2; "shift" does that too and moves the image by -2 to 2 pixels in x and in y,
    independently, filling with black.

    Args:
      image_size: of the result in pixels: a side of a square, or height and width.
      augment: one of ``SIMPLE`` or ``PRESETS``.

    Returns:
      uint8 [height, width, 3].

    Raises:
      DataError: the image cannot be decoded.
    """
    if augment in PRESETS:
        return PRESETS[augment](opened, rng, image_size=image_size)
    if augment not in SIMPLE:
        known = ", ".join((*SIMPLE, *PRESETS))
        raise ValueError(f"augment must be one of {known}; got {augment!r}")
    image, (height, width) = np.asarray(opened.covering(image_size)), sides(image_size)
    room = np.subtract(image.shape[:2], (height, width))
    top, left = rng.integers(0, room + 1) if room.any() else (0, 0)
    image = image[top : top + height, left : left + width]
    if augment != "none" and rng.random() < 0.5:
        image = image[:, ::-1]
    if augment == "shift":
        down, right = rng.integers(-SHIFT, SHIFT + 1, size=2)
        image = shifted(image, int(down), int(right))
    return np.ascontiguousarray(image)


def before_crop(image_size: Size, crop_ratio: float) -> Size:
    """What a resized image covers before the crop of an evaluation: its share is ``crop_ratio``."""
    height, width = (round(side / crop_ratio) for side in sides(image_size))
    return height if height == width else (height, width)


def eval_transform(opened: Opened, *, image_size: Size, crop_ratio: float) -> np.ndarray:
    """The centre of an image: resized to just cover ``before_crop``, cut out.

    Of a square, the sizes and offsets of torchvision's ``Resize`` (bicubic, antialiased) of the
    short side to ``round(image_size / crop_ratio)``, and of its ``CenterCrop``. With ``crop_ratio``
    1 an image that already has the size comes back as it is.

    Args:
      image_size: of the result in pixels: a side of a square, or height and width.
      crop_ratio: share that the crop keeps of the side that the image was resized to, in (0, 1].

    Returns:
      uint8 [height, width, 3].

    Raises:
      DataError: the image cannot be decoded.
    """
    return np.array(opened.centre(before_crop(image_size, crop_ratio), image_size))


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """``image`` [h, w, 3] moved by whole pixels (negative: up, left), the border filled with 0."""
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result
