"""Host transforms: uint8 RGB in, uint8 RGB of the model's size out, randomness passed in.

``train_transform`` is the seam where a richer recipe (random resized crop, RandAugment, erasing)
goes; the pipeline gives it one image and that image's own generator, and nothing else.
"""

import numpy as np
from PIL import Image

SHIFT = 2  # pixels, the most that "shift" moves an image in each direction
AUGMENTATIONS = ("none", "flip", "shift")


def train_transform(
    image: np.ndarray, rng: np.random.Generator, *, image_size: int, augment: str
) -> np.ndarray:
    """A training view of ``image``.

    An image of another size is resized (bicubic, short side to ``image_size``) and cropped at a
    random place. "flip" mirrors it left to right with probability 1/2; "shift" does that too and
    then moves it by -2 to 2 pixels in x and in y, independently, filling with black.

    Args:
      image: uint8 [h, w, 3].
      image_size: side of the result in pixels.
      augment: "none", "flip" or "shift".

    Returns:
      uint8 [image_size, image_size, 3].
    """
    if augment not in AUGMENTATIONS:
        raise ValueError(f"augment must be one of {', '.join(AUGMENTATIONS)}; got {augment!r}")
    image = resize_short_side(image, image_size)
    room = np.subtract(image.shape[:2], image_size)
    top, left = rng.integers(0, room + 1) if room.any() else (0, 0)
    image = image[top : top + image_size, left : left + image_size]
    if augment != "none" and rng.random() < 0.5:
        image = image[:, ::-1]
    if augment == "shift":
        down, right = rng.integers(-SHIFT, SHIFT + 1, size=2)
        image = shifted(image, int(down), int(right))
    return np.ascontiguousarray(image)


def eval_transform(image: np.ndarray, *, image_size: int, crop_ratio: float) -> np.ndarray:
    """The centre of ``image``: short side to ``round(image_size / crop_ratio)``, centre crop.

    The sizes and offsets of torchvision's ``Resize`` (bicubic, antialiased) and ``CenterCrop``.
    With ``crop_ratio`` 1 an image that already has the size comes back as it is.

    Args:
      image: uint8 [h, w, 3].
      image_size: side of the result in pixels.
      crop_ratio: share of the resized image's short side that the crop keeps, in (0, 1].

    Returns:
      uint8 [image_size, image_size, 3].
    """
    image = resize_short_side(image, round(image_size / crop_ratio))
    top, left = (round((side - image_size) / 2) for side in image.shape[:2])
    return np.ascontiguousarray(image[top : top + image_size, left : left + image_size])


def resize_short_side(image: np.ndarray, size: int) -> np.ndarray:
    """``image`` [h, w, 3] scaled (bicubic) so that its short side is ``size`` pixels.

    The long side is rounded down, as torchvision does; an image that fits is returned untouched.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    if short == size:
        return image
    target = (size * width // short, size * height // short)
    return np.asarray(Image.fromarray(image).resize(target, Image.Resampling.BICUBIC))


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """``image`` [h, w, 3] moved by whole pixels (negative: up, left), the border filled with 0."""
    height, width = image.shape[:2]
    result = np.zeros_like(image)
    result[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)] = image[
        max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)
    ]
    return result
