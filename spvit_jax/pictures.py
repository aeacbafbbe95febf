"""Pictures of which patches a model has merged: where they go, and how they are drawn."""

import io
import itertools
import math
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spvit_jax.convert.files import write_whole
from spvit_jax.data.errors import DataError
from spvit_jax.mosaic import mosaic
from spvit_jax.remote import raise_transient

SIDE = 448  # pixels that the shorter side of a picture has at least


def places(folder: str, files: Sequence[str], model: Any) -> dict[str, Path]:
    """Where the picture of each file goes, in a folder that is there from now on.

    Raises:
      DataError: the model merges nothing, or the folder takes no files.
    """
    if model.architecture is None or not any(model.architecture.merges):
        raise DataError(
            "--merged: this model merges no tokens; leave it out, or take one that does"
        )
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise_transient(error)
        raise DataError(f"--merged {folder}: no files can be written there: {error}") from error
    names = picture_names(list(dict.fromkeys(map(os.path.abspath, files))))
    return {file: Path(folder, names[os.path.abspath(file)]) for file in files}


def picture_names(files: Sequence[str]) -> dict[str, str]:
    """A name for the picture of each file, all different; ``files`` are whole paths.

    Files of the same name in different folders are told apart by the folder, others by a number.
    """
    stems = Counter(Path(file).stem.lower() for file in files)
    names: dict[str, str] = {}
    taken = {Path(file).name.lower() for file in files}  # lest one is written over
    for file in map(Path, files):
        stem = file.stem if stems[file.stem.lower()] == 1 else f"{file.parent.name}-{file.stem}"
        ends = itertools.chain(("",), (f"-{i}" for i in itertools.count(2)))
        tries = (f"{stem}-merged{end}.png" for end in ends)
        names[str(file)] = next(name for name in tries if name.lower() not in taken)
        taken.add(names[str(file)].lower())
    return names


def draw(path: Path, pixels: np.ndarray, sources: np.ndarray, grid: tuple[int, int]) -> None:
    """Writes the picture of one image, whole or not at all, enlarged where it is small.

    Args:
      path: of the PNG.
      pixels: uint8 ``[height, width, 3]``.
      sources: the group of each patch, row by row.
      grid: rows and columns of patches.
    """
    times = math.ceil(SIDE / min(pixels.shape[:2]))
    large = pixels.repeat(times, 0).repeat(times, 1)
    data = io.BytesIO()
    Image.fromarray(mosaic(large, sources, grid)).save(data, "PNG")
    try:
        write_whole(path, data.getvalue())
    except OSError as error:
        raise_transient(error)
        raise DataError(f"cannot write {path}: {error.strerror or error}") from error
