"""The idx format of MNIST and its relatives: big-endian header, then unsigned bytes."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from spvit_jax.data.errors import DataError
from spvit_jax.remote import raise_transient

PREFIXES = {"train": "train", "test": "t10k"}  # split → how its two file names begin
_UNSIGNED_BYTE = 8  # the type code in the third byte of the magic number


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, gzipped or not.

    Raises:
      DataError: not a complete idx file of unsigned bytes.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise_transient(error)
        raise DataError(f"cannot read the idx file {path}: {error}; fetch it again") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise DataError(
            f"{path} is no idx file of unsigned bytes: expected it to begin with 00 00 08,"
            f" found {raw[:3].hex(' ') or 'nothing'}; fetch it again"
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise DataError(f"{path} is cut off inside its header; fetch it again")
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path} should hold {math.prod(shape)} bytes of shape {shape},"
            f" found {len(raw) - header}; fetch it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_labels(folder: Path, split: str) -> np.ndarray:
    """The labels, uint8 [n], of ``split`` ("train" or "test")."""
    return _read(folder, f"{PREFIXES[split]}-labels-idx1-ubyte", 1)


def read_split(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, h, w] and labels uint8 [n] of ``split`` ("train" or "test").

    Raises:
      DataError: a file is missing or damaged, or the two do not belong together.
    """
    images = _read(folder, f"{PREFIXES[split]}-images-idx3-ubyte", 3)
    labels = read_labels(folder, split)
    if len(images) != len(labels):
        raise DataError(
            f"{folder} has {len(images)} {split} images but {len(labels)} {split} labels;"
            " the two files must come from one set"
        )
    return images, labels


def _read(folder: Path, name: str, rank: int) -> np.ndarray:
    paths = [path for path in (folder / f"{name}.gz", folder / name) if path.is_file()]
    if not paths:
        names = [
            f"{prefix}-{kind}"
            for prefix in PREFIXES.values()
            for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
        ]
        raise DataError(
            f"no {name}.gz or {name} in {folder}; an idx folder holds {', '.join(names)},"
            " each with or without .gz"
        )
    array = read_idx(paths[0])
    if array.ndim != rank:
        raise DataError(f"{paths[0]} should have {rank} dimensions, found shape {array.shape}")
    if not array.size:
        raise DataError(f"{paths[0]} holds nothing, its shape is {array.shape}; fetch it again")
    return array
