"""Images as RGB, decoded no earlier, and no larger, than a transform asks for.

Everything follows what torchvision's and timm's loaders make of a file, since the published
accuracies are of that: EXIF orientation is ignored unless it is asked for, transparency is dropped
(the colour under it stays), the first frame stands for an animation, CMYK is converted without a
colour profile. The one departure: 16-bit grey is scaled to 8 bits, where theirs clips almost all of
it to white.
"""

import contextlib
import dataclasses
import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from spvit_jax.data.errors import DataError
from spvit_jax.remote import raise_transient
from spvit_jax.sizes import Size, shown, sides

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the whole image
BICUBIC = Image.Resampling.BICUBIC
LYING = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
REDUCTIONS = (8, 4, 2)  # scales 1/n that libjpeg decodes to at a part of the cost
DAMAGE = (  # what Pillow's readers raise on files that are not what they say
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError),
    *(RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)


@dataclasses.dataclass(frozen=True)
class Opened:
    """An image of which only the header has been read; each method decodes what it needs.

    Methods return RGB Pillow images and raise DataError where the pixels cannot be decoded.
    """

    name: str
    size: tuple[int, int]  # width, height
    source: bytes | Image.Image = dataclasses.field(repr=False)  # an encoded file, or RGB pixels
    upright: bool = False  # whether it is turned as its EXIF data says

    def full(self) -> Image.Image:
        """The whole image."""
        return self._decoded(1)

    def crop_resized(self, box: Box, size: tuple[int, int]) -> Image.Image:
        """What is in ``box``, resized (bicubic, antialiased) to ``size`` (width, height).

        A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where that leaves the box no smaller
        than ``size``: several times cheaper, and a slightly different image, so it is for
        training. Elsewhere this is torchvision's ``resized_crop``, to the bit.
        """
        left, top, right, bottom = box
        reduction = reduction_for((right - left, bottom - top), size)
        if isinstance(self.source, Image.Image) or reduction == 1:
            return self.full().crop(box).resize(size, BICUBIC)
        image = self._decoded(reduction)
        if image.size == self.size:  # not a JPEG
            return image.crop(box).resize(size, BICUBIC)
        part = (left / reduction, top / reduction, right / reduction, bottom / reduction)
        return image.resize(size, BICUBIC, box=part)

    def covering(self, size: Size) -> Image.Image:
        """The whole image scaled (bicubic) to the smallest that ``size`` can be cut out of.

        Of a square, so that the short side is ``size``. The other side is rounded down, as
        torchvision does; an image that fits is not resampled.
        """
        target = _covering(self.size, size)
        return self.full() if target == self.size else self.full().resize(target, BICUBIC)

    def centre(self, around: Size, size: Size) -> Image.Image:
        """The middle ``size`` pixels of ``covering(around)``, for evaluation.

        Never decoded at a reduced scale, which would move accuracies; but only the pixels that
        the crop keeps are resampled, which gives the same ones up to a rounding (at most 1).

        Raises:
          ValueError: ``size`` is more than ``around``.
        """
        height, width = sides(size)
        if height > sides(around)[0] or width > sides(around)[1]:
            raise ValueError(f"a crop of {shown(size)} pixels is more than {shown(around)}")
        target = _covering(self.size, around)
        left, top = round((target[0] - width) / 2), round((target[1] - height) / 2)
        box = (left, top, left + width, top + height)
        if target == self.size:
            return self.full().crop(box)
        across, down = (whole / side for whole, side in zip(self.size, target, strict=True))
        part = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        return self.full().resize((width, height), BICUBIC, box=part)

    def _decoded(self, reduction: int) -> Image.Image:
        if isinstance(self.source, Image.Image):
            return self.source
        with _as_data_error(self.name):
            image = Image.open(io.BytesIO(self.source))
            if reduction > 1:
                width, height = self.size
                image.draft(None, (width // reduction, height // reduction))
            return _rgb(ImageOps.exif_transpose(image) if self.upright else image)


def open_image(
    image: bytes | str | os.PathLike[str], name: str, *, upright: bool = False
) -> Opened:
    """Reads an encoded image (its bytes or its path) up to its header, no pixels yet.

    A camera that is held upright writes pixels that lie down, and EXIF data that says so: which
    published accuracies ignore, and a person with a photograph does not (``upright``).

    Raises:
      DataError: unreadable, empty, not an image Pillow knows, or of more than 178,956,970 pixels
        (a decompression bomb); says ``name``.
      OSError: a fault of the disk, or the way to it, that may pass.
    """
    with _as_data_error(name):
        if not isinstance(image, bytes) and not Path(image).exists():
            raise DataError(f"there is no file {name}; check its name and folder")
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
        if not data:
            raise DataError(f"cannot decode the image {name}: it has 0 bytes; replace it")
        opened = Image.open(io.BytesIO(data))
        turned = upright and opened.getexif().get(ExifTags.Base.Orientation, 1) in LYING
        size = opened.size[::-1] if turned else opened.size
        return Opened(name, size, data, upright)


def from_array(image: np.ndarray, name: str = "array") -> Opened:
    """An image that is already decoded, uint8 [h, w, 3] RGB, behind the same methods."""
    decoded = Image.fromarray(image)
    return Opened(name, decoded.size, decoded)


def from_picture(image: Image.Image, name: str = "picture") -> Opened:
    """An image of Pillow's, of any mode, turned as its EXIF data says, behind the same methods.

    Raises:
      DataError: its pixels cannot be decoded, or are floats or wider than 16 bits.
    """
    with _as_data_error(name):
        decoded = _rgb(ImageOps.exif_transpose(image))
        return Opened(name, decoded.size, decoded)


def reduction_for(box: tuple[int, int], size: tuple[int, int]) -> int:
    """The largest of 8, 4, 2 and 1 that leaves a box of that size at least ``size``."""
    fitting = (n for n in REDUCTIONS if box[0] >= n * size[0] and box[1] >= n * size[1])
    return next(fitting, 1)


@contextlib.contextmanager
def _as_data_error(name: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"cannot decode the image {name}: its bytes are of no image format known to Pillow;"
            " replace it"
        ) from error
    except DAMAGE as error:
        raise_transient(error)  # of the disk, not of the image
        raise DataError(f"cannot decode the image {name}: {error}; replace it") from error


def _rgb(image: Image.Image) -> Image.Image:
    """All of ``image`` decoded and converted; a float or wider integer image is refused."""
    image.load()
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError("its pixels are floats of an unknown range; save it with 8 bits a channel")
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image)).convert("RGB")
    image.info.pop("transparency", None)  # only warns in the conversion, which drops it anyway
    return image.convert("RGB")


def _from_16_bits(pixels: np.ndarray) -> Image.Image:
    """The high byte, which is what Pillow takes of 16-bit colour."""
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("its pixels are wider than 16 bits; save it with 8 or 16 bits a channel")
    return Image.fromarray((pixels // 256).astype(np.uint8))


def _covering(size: tuple[int, int], target: Size) -> tuple[int, int]:
    """Width and height of an image of that ``size``, scaled so that it just covers ``target``."""
    (width, height), (high, wide) = size, sides(target)
    if wide * height >= high * width:
        return wide, wide * height // width
    return high * width // height, high
