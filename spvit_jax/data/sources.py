"""Sources: random access to images and their labels, whatever they are stored in.

An image comes ``Opened``: its header has been read, its pixels are decoded by whoever asks.
"""

import dataclasses
import hashlib
import os
from collections import Counter
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from spvit_jax import config
from spvit_jax.data import idx, inat, originals, package, prepared, splits
from spvit_jax.data.decode import from_array, open_image
from spvit_jax.data.errors import DataError, check_label
from spvit_jax.data.folders import EXTENSIONS, images_below, images_in, left_out, subfolders, warn
from spvit_jax.remote import is_remote, raise_transient

UNLABELLED = -1  # the label of an image that has none
LOCAL = ("idx", "folder", "inat")  # kinds of many small files, which are read from disks alone


@runtime_checkable
class Source(Protocol):
    """What the pipeline reads; picklable, so that worker processes can have a copy."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each label, in label order."""

    def __len__(self) -> int:
        """Number of images."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"image": Opened, "label": int}``; images may differ in size."""


class Some:
    """The images of a source at some of its indices."""

    def __init__(self, source: Source, indices: np.ndarray):
        self.source = source
        self.indices = indices

    @property
    def class_names(self) -> tuple[str, ...]:
        """The source's."""
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]


def open_source(data: config.Data, split: str) -> Source:
    """The images of ``split`` (``data.train_split`` or ``data.test_split``) of ``data.source``.

    Raises:
      DataError: the data is missing, damaged or not usable; says what to put where.
    """
    kind, _, name = data.source.partition(":")
    if not name:
        raise DataError(f"data.source={data.source!r} names nothing after the colon")
    if kind in LOCAL and is_remote(name):
        raise DataError(
            f"data.source={data.source}: of a bucket only tfds: sets are read; make one on a disk"
            " (python -m spvit_jax.prepare FOLDER DIRECTORY), copy DIRECTORY to the bucket (gcloud"
            " storage cp --recursive), set data.source=tfds:NAME and data.directory=gs://..."
        )
    if kind == "packaged":
        return _open_packaged(name, split)
    if kind == "idx":
        return _open_idx(Path(name).expanduser(), split)
    if kind == "folder":
        return FolderSource.open(Path(name).expanduser(), split, data)
    if kind == "inat":
        return _open_inat(Path(name).expanduser(), split)
    if kind == "tfds":
        return TfdsSource.open(name, split, data.directory)
    raise DataError(
        f"data.source={data.source!r} must begin with packaged:, idx:, inat:, folder: or tfds:"
    )


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Grey images in memory."""

    images: np.ndarray  # uint8 [n, h, w]
    labels: np.ndarray  # integers [n]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image, its grey in all three channels."""
        image = np.repeat(self.images[index][:, :, np.newaxis], 3, axis=2)
        return {"image": from_array(image), "label": int(self.labels[index])}


def _open_packaged(name: str, split: str) -> ArraySource:
    if name not in package.PACKAGED:
        raise DataError(f"no packaged set {name!r}; there is {', '.join(sorted(package.PACKAGED))}")
    kind = package.PACKAGED[name]
    part = _part(split, tuple(kind.per_class))
    images, labels = package.read(name, part)
    start, stop = splits.bounds(split, len(images))
    return ArraySource(images[start:stop], labels[start:stop], kind.class_names)


def _open_idx(folder: Path, split: str) -> ArraySource:
    images, labels = idx.read_split(folder, _part(split, tuple(idx.PREFIXES)))
    start, stop = splits.bounds(split, len(images))
    classes = int(idx.read_labels(folder, "train").max()) + 1
    names = tuple(str(label) for label in range(classes))
    if labels.max() >= classes:
        raise DataError(f"{folder}: label {labels.max()} is in no training image")
    return ArraySource(images[start:stop], labels[start:stop], names)


def _part(split: str, parts: tuple[str, ...]) -> str:
    name = splits.parse(split).split_name
    if name not in parts:
        raise DataError(f"split {split!r}: this source has {' and '.join(parts)}, not {name!r}")
    return name


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files in a folder for each class, or in one, without labels."""

    root: Path
    files: tuple[tuple[str, int], ...]  # path below ``root``, label
    class_names: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path, split: str, data: config.Data) -> "FolderSource":
        """Reads the names in ``folder/SPLIT/CLASS/...``; labels number the sorted class names.

        That is torchvision's numbering. The images stand in a fixed order that mixes the classes
        (by the SHA-256 of their path), so that ``train[:90%]`` has all of them. A folder of
        ``CLASS/...`` alone is the split train, less the ``data.val_share`` of it that is val.
        Images in no class folder have no labels.

        Raises:
          DataError: the folder, a class's images or a class of the training split is missing.
        """
        part, train = (splits.parse(name).split_name for name in (split, data.train_split))
        root = folder / part
        if originals.is_flat(root):
            return cls(root, _mixed(_unlabelled(root), split), ())
        if originals.is_flat(folder):
            if part != train:
                raise DataError(
                    f"{folder} holds images in no class folders, which are all of the split"
                    f" {train}; hold some out: data.train_split='{train}[:80%]' and"
                    f" data.test_split='{train}[80%:]'"
                )
            return cls(folder, _mixed(_unlabelled(folder), split), ())
        if folder.is_dir() and not root.is_dir() and not originals.has_splits(folder):
            return cls._divided(folder, part, split, data)
        names = _class_folders(root)
        if (folder / train).is_dir():
            _check_same(root, names, _class_folders(folder / train))
        files, others = [], Counter[str]()
        for label, name in enumerate(names):
            paths = [os.path.join(name, file) for file in images_below(root / name, others)]
            if not paths:
                raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {root / name}")
            files += [(path, label) for path in paths]
        warn(left_out(root, others))
        return cls(root, _mixed(files, split), names)

    @classmethod
    def _divided(cls, folder: Path, part: str, split: str, data: config.Data) -> "FolderSource":
        images = originals.list_folder(folder, data.val_share, data.val_seed)
        warn("; ".join(images.notes))
        if part not in images.splits:
            raise DataError(
                f"{folder} is one folder of {len(images.class_names)} classes, without {part!r};"
                " make folders train and val of it, or set data.val_share=0.1 and"
                " data.test_split=val"
            )
        files = [(one.path, one.label) for one in images.splits[part]]
        return cls(folder, _mixed(files, split), images.class_names)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image file, read."""
        path, label = self.files[index]
        return {"image": open_image(self.root / path, str(self.root / path)), "label": label}


def _unlabelled(folder: Path) -> list[tuple[str, int]]:
    others = Counter[str]()
    files = [(file, UNLABELLED) for file in images_in(folder, others)]
    warn(left_out(folder, others))
    return files


def _mixed(files: list[tuple[str, int]], split: str) -> tuple[tuple[str, int], ...]:
    """The part of the files that ``split`` asks for, of an order that mixes the classes."""
    files = sorted(files, key=lambda file: hashlib.sha256(os.fsencode(file[0])).digest())
    start, stop = splits.bounds(split, len(files))
    return tuple(files[start:stop])


def _open_inat(folder: Path, split: str) -> FolderSource:
    files, names = inat.list_split(folder, splits.parse(split).split_name)
    return FolderSource(folder, _mixed(files, split), names)


def _class_folders(root: Path) -> tuple[str, ...]:
    names = subfolders(root) if root.is_dir() else []
    loose = images_in(root) if names else []
    if loose:
        raise DataError(
            f"{root} holds images, such as {loose[0]}, beside folders, such as {names[0]}: are the"
            " folders classes? Move the images into theirs, or all into one folder without labels"
        )
    if not names:
        raise DataError(
            f"no class folders in {root}; expected {root}/CLASS/*{{{','.join(EXTENSIONS)}}}, one"
            f" folder a class. For ImageNet: {root.parent}/train/n01440764/*.JPEG and"
            f" {root.parent}/val/n01440764/*.JPEG, 1,000 class folders each (the validation images"
            " sorted into them), with data.test_split=val"
        )
    return tuple(names)


def _check_same(root: Path, names: tuple[str, ...], wanted: tuple[str, ...]) -> None:
    odd = sorted(set(names) ^ set(wanted))
    if odd:
        raise DataError(
            f"{root} must have the class folders of the training split, or their labels mean"
            f" different things; only one of the two has {', '.join(odd[:10])}"
        )


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A TFDS image classification set stored as ArrayRecord."""

    records: Any  # tfds ArrayRecordDataSource with the image left encoded
    image_key: str
    label_key: str
    class_names: tuple[str, ...]
    name: str  # for messages

    @classmethod
    def open(cls, name: str, split: str, directory: str) -> "TfdsSource":
        """Opens the prepared set ``name`` in TFDS's data directory ``directory`` ("": its default).

        Raises:
          DataError: unknown, not prepared, not random-access, or not image classification.

        Reading an image raises ``LabelError`` where its label is of no class.
        """
        builder = prepared.builder_of(name, directory)
        image_key, label_key = prepared.classification_keys(name, builder.info)
        part = splits.parse(split).split_name
        if part not in builder.info.splits:
            raise DataError(
                f"tfds:{name} has no split {part!r}, only {', '.join(builder.info.splits)}"
            )
        splits.bounds(split, builder.info.splits[part].num_examples)  # refuses an empty one
        skip = prepared.tensorflow_datasets().decode.SkipDecoding()
        records = builder.as_data_source(split=split, decoders={image_key: skip})
        names = prepared.class_names(builder, label_key)
        return cls(records, image_key, label_key, names, f"tfds:{name}, {split}")

    def __len__(self) -> int:
        """Number of images."""
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One image, as it was stored."""
        name = f"{index} of {self.name}"
        try:
            record = self.records[index]
        except RuntimeError as error:  # of ArrayRecord, which is in C++
            raise_transient(error)
            raise DataError(f"cannot read the image {name}: {error}; prepare it again") from error
        if record.get(self.image_key) is None or record.get(self.label_key) is None:
            raise DataError(f"cannot read the image {name}: its file is damaged; prepare it again")
        label = int(record[self.label_key])
        check_label(label, len(self.class_names), name)
        return {"image": open_image(record[self.image_key], name), "label": label}
