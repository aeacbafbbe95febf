"""Training views of one image on the host: uint8 RGB of the model's size, randomness passed in.

What works on whole batches (normalisation, random erasing, mixup, cutmix) runs on the device.
"""

import math

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from spvit_jax.data.decode import Box, Opened
from spvit_jax.data.randaugment import rand_augment
from spvit_jax.sizes import Size, sides

AREA = (0.08, 1.0)  # share of the image that a random crop has
ASPECT = (3 / 4, 4 / 3)  # its width over its height, where what is made of it is square
TRIES = 10
JITTER = 0.3  # of three_augment


def recipe_transform(opened: Opened, rng: np.random.Generator, *, image_size: Size) -> np.ndarray:
    """The view of the released runs: random resized crop, flip, RandAugment.

    Their command lines also ask for colour jitter 0.4, but the timm they call leaves it out
    wherever RandAugment is on, and so does this.

    Args:
      image_size: of the result in pixels: a side of a square, or height and width.

    Returns:
      uint8 [height, width, 3].

    Raises:
      DataError: the image cannot be decoded.
    """
    return np.array(rand_augment(_cropped_and_flipped(opened, rng, image_size), rng))


def plain(opened: Opened, rng: np.random.Generator, *, image_size: Size) -> np.ndarray:
    """Random resized crop and flip, no more; arguments and result as ``recipe_transform``."""
    return np.array(_cropped_and_flipped(opened, rng, image_size))


def three_augment(opened: Opened, rng: np.random.Generator, *, image_size: Size) -> np.ndarray:
    """3-Augment of DeiT III: one of grey, solarised and blurred, then colour jitter 0.3.

    Touvron et al., https://arxiv.org/abs/2204.07118, section 3.2 and its released code. Before
    it, a random resized crop and a flip. Arguments and result otherwise as ``recipe_transform``.
    """
    image = _cropped_and_flipped(opened, rng, image_size)
    choice = rng.integers(3)
    if choice == 0:
        image = ImageOps.grayscale(image).convert("RGB")
    elif choice == 1:
        image = ImageOps.solarize(image, 128)
    else:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    return np.array(colour_jitter(image, rng, JITTER))


def random_crop_box(
    size: tuple[int, int], rng: np.random.Generator, aspect_of_crop: float = 1.0
) -> Box:
    """Where a random resized crop is taken from an image of ``size`` (width, height).

    The area is uniform in 0.08..1 of the image's, the aspect ratio log-uniform in 3/4..4/3, the
    place uniform. Where 10 such boxes do not fit, it is the middle: all of the image, or as much
    as the nearer of the two ratios allows. The definition of torchvision and timm.

    Theirs takes boxes of those ratios whatever becomes of them; here they are times
    ``aspect_of_crop``, width over height of what a box is resized to, so that no crop is stretched
    more than a square one.
    """
    width, height = size
    narrowest, widest = (ratio * aspect_of_crop for ratio in ASPECT)
    for _ in range(TRIES):
        area = rng.uniform(*AREA) * width * height
        aspect = math.exp(rng.uniform(math.log(narrowest), math.log(widest)))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            left = int(rng.integers(width - across + 1))
            top = int(rng.integers(height - down + 1))
            return left, top, left + across, top + down
    across = max(min(width, round(height * widest)), 1)
    down = max(min(height, round(width / narrowest)), 1)
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def colour_jitter(image: Image.Image, rng: np.random.Generator, amount: float) -> Image.Image:
    """Brightness, contrast and saturation in random order, times 1 - amount to 1 + amount.

    Three independent uniform factors, as torchvision's ``ColorJitter(amount, amount, amount)``.
    """
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for index in rng.permutation(len(kinds)):
        image = kinds[index](image).enhance(rng.uniform(1 - amount, 1 + amount))
    return image


def _cropped_and_flipped(opened: Opened, rng: np.random.Generator, size: Size) -> Image.Image:
    height, width = sides(size)
    box = random_crop_box(opened.size, rng, width / height)
    image = opened.crop_resized(box, (width, height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image
