"""Photographs from folders and data sets, as a model sees them."""

from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from spvit_jax.config import Data
from spvit_jax.data.errors import DataError
from spvit_jax.data.folders import EXTENSIONS, images_below, left_out, warn
from spvit_jax.data.sources import UNLABELLED, FolderSource, Source, open_source
from spvit_jax.export.images import MOST, as_seen
from spvit_jax.export.preprocess import Preprocess


def open_images(text: str) -> Source:
    """The images of a folder, at any depth, or the training split of ``KIND:…``.

    Raises:
      DataError: there are none.
    """
    if not Path(text).is_dir():
        return _open(text, "train")
    others = Counter[str]()
    files = sorted(images_below(Path(text), others))
    if not files:
        raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {text}")
    warn(left_out(Path(text), others))
    return FolderSource(Path(text), tuple((file, UNLABELLED) for file in files), ())


def open_test(text: str) -> Source:
    """The images of a folder of class folders, with their labels, or the test split of ``KIND:…``.

    Raises:
      DataError: there are none.
    """
    if not Path(text).is_dir():
        return _open(text, "test")
    splits = [name for name in ("test", "val") if Path(text, name).is_dir()]
    return open_source(Data(source=f"folder:{text}"), (splits or ["train"])[0])


def _open(text: str, split: str) -> Source:
    if ":" not in text:
        raise DataError(f"{text}: there is no such folder; give one, packaged:NAME or idx:PATH")
    return open_source(Data(source=text), split)


def some(source: Source, most: int = MOST) -> np.ndarray:
    """Indices of that many images at most, shuffled, the same ones each time."""
    return np.random.default_rng(0).permutation(len(source))[:most]


def pixels(source: Source, preprocess: Preprocess, indices: Iterable[int]) -> np.ndarray:
    """Images as the model sees them, uint8 ``[n, height, width, channels]``.

    Raises:
      DataError: one cannot be decoded.
    """

    def read(index: int) -> Any:
        opened = source[int(index)]["image"]
        return np.asarray(opened.centre(preprocess.resize, preprocess.crop))

    with ThreadPoolExecutor() as pool:
        return as_seen(np.stack(list(pool.map(read, indices))), preprocess)
