"""Images as people have them in Python: a folder, an array, or whatever gives one after another."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spvit_jax.data.decode import Opened, from_array, from_picture, open_image
from spvit_jax.data.errors import DataError
from spvit_jax.data.folders import EXTENSIONS, images_below, left_out, warn
from spvit_jax.data.sources import UNLABELLED

Images = str | os.PathLike[str] | np.ndarray | Iterable[Any]
CHANNELS = (1, 3)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Unlabelled images: paths of files, pictures of Pillow's, or uint8 arrays; a ``Source``."""

    items: tuple[Any, ...]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image; a photograph is turned upright as its EXIF data says."""
        return {"image": _opened(self.items[index], f"image {index}"), "label": UNLABELLED}


def open_images(images: Images) -> Pictures:
    """Takes images as they are, and says what is wrong with them.

    Args:
      images: a folder, of which all image files at any depth are taken, sorted; uint8
        ``[n, height, width, channels]`` or ``[n, height, width]``; or an iterable of paths, of
        Pillow's images and of arrays ``[height, width, channels]``, of any sizes. Channels are RGB,
        or one of grey.

    Raises:
      DataError: there are none, or they are of another type, shape or range.
    """
    if isinstance(images, str | os.PathLike):
        return Pictures(tuple(_files(Path(images).expanduser())))
    if isinstance(images, bytes | Mapping | Image.Image) or not isinstance(images, Iterable):
        raise DataError(
            "expected a folder, a uint8 array [n, height, width, channels] or an iterable of"
            f" images, got {type(images).__name__}; one image goes into a list: [image]"
        )
    items = tuple(images)
    if not items:
        raise DataError("there are no images: the array or iterable is empty")
    for number, item in enumerate(items):
        _check(item, f"image {number} of {len(items):,}")
    return Pictures(items)


def _files(folder: Path) -> list[Path]:
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; give one that holds images, or an array")
    others = Counter[str]()
    files = sorted(folder / file for file in images_below(folder, others))
    if not files:
        raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {folder}")
    warn(left_out(folder, others))
    return files


def _check(item: Any, name: str) -> None:
    """Raises DataError unless it is an image; a file's bytes are read later."""
    if isinstance(item, str | os.PathLike):
        if not Path(item).is_file():
            raise DataError(f"{name}: there is no file {item}; check its name and folder")
        return
    if isinstance(item, Image.Image):
        return
    pixels = np.asarray(item)
    if pixels.dtype.kind == "f":
        raise DataError(
            f"{name} is {pixels.dtype}, expected uint8, 0 to 255, as decoded and not normalised; of"
            " floats in 0..1, (255 * images).round().astype('uint8') makes them"
        )
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{name} is {_kind(item, pixels)}, expected a uint8 array, a picture of Pillow's or the"
            " path of an image file"
        )
    if pixels.ndim == 2 and pixels.shape[1] in CHANNELS:
        raise DataError(
            f"{name} would be grey and {pixels.shape[1]} wide: it looks like a row of one image"
            " [height, width, channels]; one image goes into a list: [image]"
        )
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in CHANNELS):
        if not pixels.size:
            raise DataError(f"{name} has no pixels, its shape is {pixels.shape}; leave it out")
        return
    first = pixels.ndim == 3 and pixels.shape[0] in CHANNELS
    hint = "; channels come last: images.transpose(0, 2, 3, 1)" if first else ""
    raise DataError(
        f"{name} has the shape {pixels.shape}, expected [height, width, 3], or grey [height, width]"
        f" or [height, width, 1]{hint}"
    )


def _kind(item: Any, pixels: np.ndarray) -> str:
    return f"of {pixels.dtype}" if pixels.ndim and pixels.dtype.kind != "O" else type(item).__name__


def _opened(item: Any, name: str) -> Opened:
    if isinstance(item, str | os.PathLike):
        return open_image(item, os.fspath(item), upright=True)
    if isinstance(item, Image.Image):
        return from_picture(item, name)
    pixels = np.asarray(item)
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        pixels = np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return from_array(np.ascontiguousarray(pixels), name)
