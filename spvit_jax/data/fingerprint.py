"""What tells two copies of a data set apart without reading all of it."""

import os
import zlib
from typing import Any

import numpy as np
from etils import epath

from spvit_jax.data import splits
from spvit_jax.data.errors import DataError, LabelError, check_label
from spvit_jax.data.images import Pictures
from spvit_jax.data.sources import UNLABELLED, ArraySource, FolderSource, Some, Source, TfdsSource
from spvit_jax.remote import raise_transient, reading

ALL = "CRC-32 of all pixels and labels"
SAMPLE = 8  # images whose pixels are looked at
RECORDS = 4096  # of a TFDS set that are read as they are stored
AT_ONCE = 256
SIZED = 10_000  # files at most whose size is asked for, which a disk elsewhere takes its time for


def fingerprint(source: Source) -> dict[str, Any]:
    """Images, class names, and checksums of some images with their labels and of what is cheap.

    Raises:
      LabelError: one of these labels is of no class.
    """
    sample = 0
    for index in np.linspace(0, len(source) - 1, SAMPLE, dtype=int):
        sample = zlib.crc32(_bytes(source, int(index)), sample)
    names = numbered(source.class_names)
    facts = {"images": len(source), "class names": names, "CRC-32 of some images": sample}
    return facts | _whole(source)


def numbered(names: tuple[str, ...]) -> dict[str, str]:
    """Each name by its number, so that what differs of them is said in words."""
    return {str(number): name for number, name in enumerate(names)}


def _whole(source: Source) -> dict[str, int]:
    """A checksum of all that a source has in memory, or of the names and sizes of its files."""
    if isinstance(source, ArraySource):
        labels = zlib.crc32(np.asarray(source.labels, np.int64).tobytes())
        pixels = zlib.crc32(np.asarray(source.images).tobytes(), labels)
        return {ALL: pixels}
    inner = source.source if isinstance(source, Some) else source
    if isinstance(inner, TfdsSource):
        return _records(inner)
    files, crc = _files(source), 0
    every = len(files) // SIZED + 1
    for number, (name, label, path) in enumerate(files):
        size = 0 if number % every else _size(path)
        crc = zlib.crc32(os.fsencode(name) + f"\0{label} {size}\0".encode(), crc)
    if files:
        return {"CRC-32 of the files' names, labels and sizes": crc}
    if isinstance(inner, Pictures):  # in memory
        for index in range(len(source)):
            crc = zlib.crc32(_bytes(source, index), crc)
        return {ALL: crc}
    return {}


def _records(source: TfdsSource) -> dict[str, int]:
    """A checksum of the manifest of all images of a set.

    Without one, of its files' names and sizes, and of the labels and encoded images of so many
    records that a set prepared again of others is seen, all of them where there are no more.
    """
    from spvit_jax.data import manifest  # late: it needs TFDS, which other sources do not

    info, split = source.records.dataset_info, source.records.split
    held = int(info.splits[splits.parse(split).split_name].num_bytes)  # files grow by 64 KiB
    with reading(info.data_dir, DataError):
        if (file := epath.Path(info.data_dir) / manifest.FILE).exists():
            return {f"CRC-32 of {manifest.FILE}": zlib.crc32(file.read_bytes())}
        files = info.splits[split].filepaths
        sizes = f"{held}" + "".join(f"\0{path.name}\0{path.stat().length}" for path in files)
        return {
            "CRC-32 of the record files' names and sizes": zlib.crc32(sizes.encode()),
            "CRC-32 of evenly spaced records": _sampled(source),
        }


def _sampled(source: TfdsSource) -> int:
    """A checksum of evenly spaced records, many read at once, which a remote disk is glad of."""
    crc = 0
    indices = np.unique(np.linspace(0, len(source) - 1, min(RECORDS, len(source)), dtype=int))
    for start in range(0, len(indices), AT_ONCE):
        some = indices[start : start + AT_ONCE].tolist()
        try:
            records = source.records.__getitems__(some)
        except RuntimeError as error:  # of ArrayRecord, which does not say which one is damaged
            raise_transient(error)
            records = [_record(source, index) for index in some]
        for index, record in zip(some, records, strict=True):
            image, label = record.get(source.image_key), record.get(source.label_key)
            if image is not None and label is not None:  # else damaged
                check_label(int(label), len(source.class_names), f"{index} of {source.name}")
                crc = zlib.crc32(image, zlib.crc32(np.int32(label).tobytes(), crc))
    return crc


def _record(source: TfdsSource, index: int) -> dict[str, Any]:
    """A record as it is stored; a damaged one is left to whoever trains on it."""
    try:
        return source.records[index]
    except RuntimeError as error:
        raise_transient(error)
        return {}


def _files(source: Source) -> list[tuple[str, int, str]]:
    """Name, label and path of each image file; [] where images are no files."""
    if isinstance(source, FolderSource):
        return [(name, label, os.path.join(source.root, name)) for name, label in source.files]
    if isinstance(source, Some):
        files = _files(source.source)
        return [files[index] for index in source.indices] if files else []
    if isinstance(source, Pictures) and all(isinstance(i, str | os.PathLike) for i in source.items):
        paths = [os.fspath(item) for item in source.items]
        return [(os.path.basename(path), UNLABELLED, path) for path in paths]
    return []


def _size(path: str) -> int:
    """Bytes of a file; -1: it cannot be read, which is left to whoever trains on it."""
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise_transient(error)
        return -1


def _bytes(source: Source, index: int) -> bytes:
    """An image's label and pixels; those of a damaged one are left to whoever trains on it."""
    try:
        example = source[index]
        return np.int32(example["label"]).tobytes() + np.asarray(example["image"].full()).tobytes()
    except LabelError:
        raise
    except DataError:
        return b""
