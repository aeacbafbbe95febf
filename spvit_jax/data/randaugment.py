"""RandAugment as timm's ``rand-m9-mstd0.5-inc1`` with bicubic interpolation.

Cubuk et al., https://arxiv.org/abs/1909.13719, in the variant of the released runs: 15 operations
of which the strength grows with the level ("inc1"), two drawn for an image, with replacement,
each then applied with probability 1/2 at a level of its own, N(9, 0.5) clipped to 0..10.

An operation takes an RGB image and an amount in -1..1: the level's share of 10, with a random
sign. Those that have no direction use its size, and three have one strength only.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

LEVEL, DEVIATION, LARGEST = 9.0, 0.5, 10.0
COUNT, PROBABILITY = 2, 0.5
FILL = (124, 116, 104)  # ImageNet's mean pixel, for what a geometric operation uncovers
BICUBIC = Image.Resampling.BICUBIC
Operation = Callable[[Image.Image, float], Image.Image]


def rand_augment(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """``image`` (RGB) after zero, one or two random operations; the size stays."""
    for index in rng.integers(len(OPERATIONS), size=COUNT):
        if rng.random() < PROBABILITY:
            image = OPERATIONS[index](image, draw_amount(rng))
    return image


def draw_amount(rng: np.random.Generator) -> float:
    """A random level as a share of the largest, with a random sign: -1 to 1."""
    level = min(max(rng.normal(LEVEL, DEVIATION), 0.0), LARGEST)
    return float(level / LARGEST) * (1 if rng.random() < 0.5 else -1)


def autocontrast(image: Image.Image, amount: float) -> Image.Image:
    """Each channel stretched to 0..255, at any amount."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, amount: float) -> Image.Image:
    """Each channel's histogram made flat, at any amount."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, amount: float) -> Image.Image:
    """The negative, at any amount."""
    return ImageOps.invert(image)


def rotate(image: Image.Image, amount: float) -> Image.Image:
    """Turned about the centre, anticlockwise by up to 30 degrees."""
    return image.rotate(30 * amount, BICUBIC, fillcolor=FILL)


def posterize(image: Image.Image, amount: float) -> Image.Image:
    """The highest 4 to 0 bits of each channel: 1 at the usual levels, black at level 10."""
    bits = 4 - int(abs(amount) * 4)
    return ImageOps.posterize(image, bits) if bits else Image.new("RGB", image.size)


def solarize(image: Image.Image, amount: float) -> Image.Image:
    """Inverted where at least a threshold, which falls from 256 to 0."""
    return ImageOps.solarize(image, 256 - int(abs(amount) * 256))


def solarize_add(image: Image.Image, amount: float) -> Image.Image:
    """Up to 110 added where below 128."""
    added = int(abs(amount) * 110)
    table = [min(value + added, 255) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


def colour(image: Image.Image, amount: float) -> Image.Image:
    """Saturation times 0.1 to 1.9."""
    return ImageEnhance.Color(image).enhance(1 + 0.9 * amount)


def contrast(image: Image.Image, amount: float) -> Image.Image:
    """Distance from the mean grey times 0.1 to 1.9."""
    return ImageEnhance.Contrast(image).enhance(1 + 0.9 * amount)


def brightness(image: Image.Image, amount: float) -> Image.Image:
    """Pixels times 0.1 to 1.9."""
    return ImageEnhance.Brightness(image).enhance(1 + 0.9 * amount)


def sharpness(image: Image.Image, amount: float) -> Image.Image:
    """Distance from the smoothed image times 0.1 to 1.9."""
    return ImageEnhance.Sharpness(image).enhance(1 + 0.9 * amount)


def shear_x(image: Image.Image, amount: float) -> Image.Image:
    """Rows moved by up to 0.3 pixels more each, from the top."""
    return _affine(image, (1, 0.3 * amount, 0, 0, 1, 0))


def shear_y(image: Image.Image, amount: float) -> Image.Image:
    """Columns moved by up to 0.3 pixels more each, from the left."""
    return _affine(image, (1, 0, 0, 0.3 * amount, 1, 0))


def translate_x(image: Image.Image, amount: float) -> Image.Image:
    """Moved across by up to 0.45 of the width."""
    return _affine(image, (1, 0, 0.45 * amount * image.width, 0, 1, 0))


def translate_y(image: Image.Image, amount: float) -> Image.Image:
    """Moved up or down by up to 0.45 of the height."""
    return _affine(image, (1, 0, 0, 0, 1, 0.45 * amount * image.height))


def _affine(image: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, BICUBIC, fillcolor=FILL)


OPERATIONS: tuple[Operation, ...] = (
    *(autocontrast, equalize, invert, rotate, posterize, solarize, solarize_add, colour),
    *(contrast, brightness, sharpness, shear_x, shear_y, translate_x, translate_y),
)
