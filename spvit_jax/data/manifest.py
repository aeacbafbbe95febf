"""What went into a set of records: ``manifest.json`` beside its shards, and the check against it.

A split's ``sha256`` is that of its files as they were given, whatever order they were read in:
of the lines "<SHA-256 of the file>  CLASS/FILE", sorted. A folder says the same of itself:

    cd SRC/train && find -L * -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum

``stored_sha256`` is that of the files as stored, another one only if some were ``converted``.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from spvit_jax.data.errors import DataError, LabelError, check_label
from spvit_jax.remote import raise_transient

FILE = "manifest.json"
OF_SET: dict[str, type] = {"listing": str, "splits": dict}  # fields and their types
OF_SPLIT: dict[str, type] = {
    **{"images": int, "bytes": int, "sha256": str, "stored_sha256": str, "converted": int},
    "skipped": dict,
}


def make(listing: str, noted: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The manifest of a set, of what was noted of each split's shards."""
    splits = {}
    for split, shards in noted.items():
        images = [image for shard in shards for image in shard["images"]]
        skipped = [image for shard in shards for image in shard["skipped"]]
        splits[split] = {
            "images": len(images),
            "bytes": sum(size for _, size, _, _ in images),
            "sha256": checksum((path, raw) for path, _, raw, _ in images),
            "stored_sha256": checksum((path, stored) for path, _, _, stored in images),
            "converted": sum(raw != stored for _, _, raw, stored in images),
            "skipped": {path: reason for path, _, reason in sorted(skipped)},
        }
    return {"listing": listing, "splits": splits}


def read(folder: Path) -> dict[str, Any]:
    """The manifest of the set ``folder``.

    Raises:
      DataError: there is none, or it is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / FILE).read_text())
        _check(manifest, OF_SET, "it")
        for split, facts in manifest["splits"].items():
            _check(facts, OF_SPLIT, f"its split {split}")
        return manifest
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} holds no {FILE}, so something else made it; choose another name or folder"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{folder / FILE} is damaged ({error}); remove {folder}") from error


def _check(value: Any, kinds: dict[str, type], name: str) -> None:
    """Raises ValueError unless it is an object of these fields, each of its type."""
    has = {key: type(one) for key, one in value.items()} if isinstance(value, dict) else {}
    odd = [f"{key} ({kind.__name__})" for key, kind in kinds.items() if has.get(key) is not kind]
    if odd:
        raise ValueError(f"{name} lacks {', '.join(odd)}")


def count(folder: Path) -> int:
    """How many images the set ``folder`` has, by its manifest and by TFDS's description of it.

    Raises:
      DataError: one of them is damaged, or they disagree.
    """
    wanted = sum(one["images"] for one in read(folder)["splits"].values())
    held = sum(split.num_examples for split in _opened(folder).info.splits.values())
    if wanted != held:
        raise DataError(
            f"{folder} is damaged: it holds {held:,} images, {FILE} says {wanted:,}; remove it,"
            " prepare it again"
        )
    return held


def _opened(folder: Path) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # of TFDS, of protobuf, of Python: they have no kind in common
        if isinstance(error, OSError):
            raise
        raise DataError(
            f"{folder} is damaged: TFDS cannot open it ({error}); remove it, prepare it again"
        ) from error


def checksum(sums: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of (path, SHA-256 of the file) pairs in the order of the paths."""
    digest = hashlib.sha256()
    for path, one in sorted(sums):
        digest.update(f"{one}  {path}\n".encode())
    return digest.hexdigest()


def verify(folder: Path, progress: Callable[[int], object] = lambda images: None) -> dict[str, Any]:
    """Reads the set ``folder`` back and returns its manifest; ``progress`` hears of every image.

    Raises:
      DataError: an image or label is not the one that was stored.
    """
    manifest = read(folder)
    builder = _opened(folder)
    wrong = []
    for split, expected in manifest["splits"].items():
        try:
            sums = _stored_sums(builder, split, progress)
        except LabelError as error:
            wrong.append(f"of {split} {error}")
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            raise_transient(error)
            wrong.append(f"{split} cannot be read ({error})")
        else:
            if (len(sums), checksum(sums)) != (expected["images"], expected["stored_sha256"]):
                wrong.append(f"{split} has other images than were stored")
    if wrong:
        raise DataError(f"{folder} is damaged: {', '.join(wrong)}; remove it, prepare it again")
    return manifest


def _stored_sums(
    builder: tfds.core.DatasetBuilder, split: str, progress: Callable[[int], object]
) -> list[tuple[str, str]]:
    """Path and SHA-256 of each image of a split; ValueError where a label is wrong."""
    names = builder.info.features["label"].names
    records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    sums = []
    for index in range(len(records)):
        record = records[index]
        if None in record.values():  # what a shard cut short gives
            raise ValueError(f"image {index} is not there")
        path, label = record["file_name"].decode(), int(record["label"])
        check_label(label, len(names), path)
        name = names[label]
        if name != path.partition("/")[0]:
            raise ValueError(f"{path} is labelled {name}")
        sums.append((path, hashlib.sha256(record["image"]).hexdigest()))
        progress(1)
    return sums
