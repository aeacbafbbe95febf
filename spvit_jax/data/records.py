"""A set of encoded images as ArrayRecord shards that TFDS reads, written without TensorFlow.

Each shard depends on nothing but its own images, and is there whole or not at all, with a note
beside it of what went in; so a run that was killed goes on at the first shard that is missing, to
the same bytes. The set appears under its name once everything is there.
"""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from etils import epath

from spvit_jax import lock
from spvit_jax.data import manifest, shards
from spvit_jax.data.errors import DataError
from spvit_jax.data.originals import Originals
from spvit_jax.remote import is_utf8, public

SHARD_BYTES = 1 << 30


class Recorder:
    """Writes ``originals`` as the set ``folder`` (DIRECTORY/NAME/VERSION).

    Args:
      skip_bad: leave images out that cannot be decoded, rather than raise.
      shard_bytes: about how large the shards are to be.

    Attributes:
      finished: whether the set is there already.
      total, done: images, and those of them in shards that earlier runs left.

    Raises:
      DataError: ``folder`` is there already, or begun, with other images; or an image is empty, or
        its name not UTF-8.
    """

    def __init__(
        self,
        originals: Originals,
        folder: Path,
        skip_bad: bool = False,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        _refuse_other_names(originals, folder)
        self._originals, self._folder, self._skip_bad = originals, folder, skip_bad
        self._work = folder.with_name(f"{folder.name}.incomplete")
        self._set = self._work / "set"
        self._shards = shards.plan(originals, folder.parent.name, shard_bytes)
        self._info = _dataset_info(originals, folder)
        self.total = sum(map(len, originals.splits.values()))
        self.finished = self._is_finished()
        if not self.finished and not skip_bad:
            _refuse_empty(originals)
        self._notes = {} if self.finished else self._left()
        self.done = sum(len(one.originals) for one in self._shards if one.file in self._notes)

    def run(self, progress: Callable[[int], object] = lambda images: None) -> dict[str, Any]:
        """Writes what is missing and returns the manifest; ``progress`` hears of every image.

        Raises:
          DataError: an image is bad and bad ones are not skipped, or the disk refuses.
          OSError: a file cannot be read or written.
        """
        if self.finished:
            return manifest.read(self._folder)
        self._work.mkdir(parents=True, exist_ok=True)
        with _alone(self._work):
            if not self._notes:  # nothing of use, so nothing else than this set either
                shutil.rmtree(self._set, ignore_errors=True)
            self._set.mkdir(exist_ok=True)
            shards.write_json(self._work / "plan.json", self._plan())
            for shard in self._shards:
                if shard.file not in self._notes:
                    self._notes[shard.file] = shards.write(
                        shard, self._set, self._info.features, self._skip_bad, progress
                    )
            return self._finish()

    def _is_finished(self) -> bool:
        if not self._folder.exists():
            return False
        content = manifest.read(self._folder)
        if content["listing"] != self._originals.listing(sizes=True):
            held = ", ".join(f"{name} {one['images']:,}" for name, one in content["splits"].items())
            raise DataError(
                f"{self._folder} was made of other images ({held}) or with other options; remove"
                " it, or choose another --name or folder"
            )
        skipped = sum(len(split["skipped"]) for split in content["splits"].values())
        if skipped and not self._skip_bad:
            raise DataError(
                f"{self._folder} leaves out {skipped} bad images, which its {manifest.FILE} names;"
                " say --skip-bad if that is right, else replace them and remove it"
            )
        shutil.rmtree(self._work, ignore_errors=True)  # killed just before it would have done so
        return True

    def _plan(self) -> dict[str, Any]:
        files = [[shard.file, len(shard.originals)] for shard in self._shards]
        return {"listing": self._originals.listing(sizes=False), "shards": files}

    def _left(self) -> dict[str, dict[str, Any]]:
        """The notes of the shards that earlier runs left and that can stay."""
        try:
            plan = json.loads((self._work / "plan.json").read_text())
            begun = sum(count for _, count in plan["shards"])
        except (FileNotFoundError, ValueError, RecursionError, TypeError, KeyError):
            return {}
        if plan != self._plan():
            raise DataError(
                f"{self._work} was begun with other images or options"
                f" ({begun:,} images, now {self.total:,}); go on with those, or remove it to begin"
                " anew"
            )
        notes = {shard.file: shards.noted(shard, self._set) for shard in self._shards}
        return {
            file: note
            for file, note in notes.items()
            if note and (self._skip_bad or not note["skipped"])
        }

    def _finish(self) -> dict[str, Any]:
        """Describes the set to TFDS and to us, and gives it its name."""
        notes = {
            split: [self._notes[shard.file] for shard in self._shards if shard.split == split]
            for split in self._originals.splits
        }
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[len(note["images"]) for note in of_split],
                num_bytes=sum(note["bytes"] for note in of_split),
                filename_template=shards.template(self._folder.parent.name, split),
            )
            for split, of_split in notes.items()
        ]
        self._info.set_splits(tfds.core.splits.SplitDict(infos))
        self._info.write_to_directory(self._set)
        result = manifest.make(self._originals.listing(sizes=True), notes)
        shards.write_json(self._set / manifest.FILE, result)
        self._set.replace(self._folder)
        shutil.rmtree(self._work)
        return result


def _dataset_info(originals: Originals, folder: Path) -> tfds.core.DatasetInfo:
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=folder.parent.name,
        version=tfds.core.Version(folder.name),
        data_dir=str(folder),
        module_name=__name__,
    )
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=originals.class_names),
            "file_name": tfds.features.Text(),
        }
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=features, supervised_keys=("image", "label")
    )
    info.set_file_format("array_record")
    return info


def _refuse_other_names(originals: Originals, folder: Path) -> None:
    """Raises DataError for names that are not UTF-8, which the records are to hold."""
    images = (one for some in originals.splits.values() for one in some)
    for path in itertools.chain([folder], (Path(one.name) for one in images)):
        if not is_utf8(path):
            raise DataError(f"the name of {public(path)} is not UTF-8; rename it")


def _refuse_empty(originals: Originals) -> None:
    empty = [one.name for images in originals.splits.values() for one in images if not one.size]
    if empty:
        raise DataError(
            f"{len(empty)} files are empty: {', '.join(empty[:10])}; replace them, or --skip-bad"
            " leaves such images out"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second process out; the lock ends with the process, however that ends."""
    with lock.locked(epath.Path(folder)) as holder:
        if holder:
            raise DataError(f"another process is writing {folder}: {holder}; wait for it")
        yield
