"""One file of a set of records: which images go into it, and the writing of it."""

import contextlib
import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from spvit_jax.data.encoded import storable
from spvit_jax.data.errors import DataError
from spvit_jax.data.originals import Original, Originals
from spvit_jax.remote import raise_transient

_READERS, _AHEAD = 8, 32  # threads that read and check, and images they are ahead of the writer


class Shard(NamedTuple):
    """A file of the set, and the images that go into it."""

    file: str
    split: str
    originals: list[Original]


def plan(originals: Originals, name: str, shard_bytes: int) -> list[Shard]:
    """The shards of the set ``name``: about ``shard_bytes`` each, of equal numbers of images.

    Equal numbers, not sizes: a replaced image changes no other shard than its own.
    """
    shards = []
    for split, images in originals.splits.items():
        count = min(-(-sum(one.size for one in images) // shard_bytes) or 1, len(images))
        for index in range(count):
            file = template(name, split).sharded_filepath(shard_index=index, num_shards=count)
            first, last = (len(images) * edge // count for edge in (index, index + 1))
            shards.append(Shard(file.name, split, images[first:last]))
    return shards


def template(name: str, split: str) -> tfds.core.ShardedFileTemplate:
    """How TFDS names the files of a split."""
    return tfds.core.ShardedFileTemplate(
        data_dir="", dataset_name=name, split=split, filetype_suffix="array_record"
    )


def write(
    shard: Shard,
    folder: Path,
    features: tfds.features.FeaturesDict,
    skip_bad: bool,
    progress: Callable[[int], object],
) -> dict[str, Any]:
    """Writes ``shard`` into ``folder`` and returns what went in; it appears there when whole.

    What went in: ``{"bytes": of the records, "images": [[path, size, SHA-256 given, SHA-256
    stored]], "skipped": [[path, size, reason]]}``, kept beside the shard (see ``noted``).

    Raises:
      DataError: an image is bad and bad ones are not skipped, or the disk refuses.
      OSError: a file cannot be read or written.
    """
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    partial = folder / f"{shard.file}.partial"
    note: dict[str, Any] = {"bytes": 0, "images": [], "skipped": []}
    with _array_record(partial) as put:
        for one, result in _ahead(shard.originals):
            try:
                stored, raw_sum, stored_sum = result.result()
            except DataError as error:
                if not skip_bad:
                    raise DataError(f"{error}; --skip-bad leaves such images out") from error
                note["skipped"].append([one.path, one.size, str(error)])
            else:
                example = {"image": stored, "label": one.label, "file_name": one.path}
                proto = serializer.get_tf_example(features.encode_example(example))
                record = proto.SerializeToString(deterministic=True)  # the same in every process
                put(record)
                note["bytes"] += len(record)
                note["images"].append([one.path, one.size, raw_sum, stored_sum])
            progress(1)
    if not note["images"]:
        raise DataError(f"no image for {shard.file} can be decoded: {note['skipped'][0][2]}")
    _check(partial, len(note["images"]))
    write_json(_note(shard, folder), note)
    partial.replace(folder / shard.file)
    return note


def noted(shard: Shard, folder: Path) -> dict[str, Any] | None:
    """What ``write`` returned for the shard in ``folder``; None: not written, or of other files."""
    try:
        note: dict[str, Any] = json.loads(_note(shard, folder).read_text())
        sizes = {path: size for path, size, *_ in note["images"] + note["skipped"]}
    except (FileNotFoundError, ValueError, RecursionError, TypeError, KeyError):
        return None
    same = sizes == {one.path: one.size for one in shard.originals}
    return note if same and (folder / shard.file).exists() else None


def write_json(file: Path, values: Any) -> None:
    """A JSON file, whole or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(file)


def _note(shard: Shard, folder: Path) -> Path:
    return folder.parent / f"{shard.file}.json"


def _ahead(originals: list[Original]) -> Iterator[tuple[Original, Future]]:
    """Each image in turn, being read and checked by threads that are some images ahead."""
    waiting: deque[tuple[Original, Future]] = deque()
    pool = ThreadPoolExecutor(_READERS)
    try:
        for one in originals:
            waiting.append((one, pool.submit(_prepared, one)))
            if len(waiting) > _AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _prepared(one: Original) -> tuple[bytes, str, str]:
    """The bytes to store, and the SHA-256 of those given and of those stored."""
    raw = one.read()
    stored = storable(raw, one.name)
    raw_sum = hashlib.sha256(raw).hexdigest()
    return stored, raw_sum, raw_sum if stored is raw else hashlib.sha256(stored).hexdigest()


@contextlib.contextmanager
def _array_record(file: Path) -> Iterator[Callable[[bytes], None]]:
    """The way to write records to ``file``, each of which can be read alone."""
    try:
        writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
        yield writer.write
        writer.close()
    except RuntimeError as error:  # a full disk, for example
        raise_transient(error)
        raise DataError(f"cannot write {file}: {error}; finished shards are kept") from error


def _check(file: Path, count: int) -> None:
    """Has ``file`` on the disk, and makes sure that it can be read."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    options = "readahead_buffer_size:0,max_parallelism:0"
    records = array_record_module.ArrayRecordReader(str(file), options).num_records()
    if records != count:
        raise DataError(f"{file} holds {records} records instead of {count}; is the disk full?")
