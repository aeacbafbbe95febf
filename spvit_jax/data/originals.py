"""What there is to convert: the image files of a folder, listed in the order they get, not read."""

import dataclasses
import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from spvit_jax.data.errors import DataError
from spvit_jax.data.folders import EXTENSIONS, images_below, images_in, left_out, subfolders

SPLITS = ("train", "val", "validation", "test")  # one of them makes a folder a folder of splits
_SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


class Original(NamedTuple):
    """An image as it was given: a file, or a stretch of a tar."""

    path: str  # CLASS/FILE, deeper folders in between kept
    label: int
    size: int  # bytes
    where: str  # the folder that ``path`` is below, or the tar
    offset: int = -1  # of its bytes in the tar; -1: a file

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return os.path.join(self.where, self.path)

    def read(self) -> bytes:
        """Its bytes.

        Raises:
          OSError: unreadable.
          DataError: not as long as it was when listed.
        """
        with open(self.where if self.offset >= 0 else self.name, "rb") as file:
            file.seek(max(self.offset, 0))
            data = file.read(self.size if self.offset >= 0 else -1)
        if len(data) != self.size:
            raise DataError(f"{self.name} changed from {self.size} to {len(data)} bytes meanwhile")
        return data


@dataclasses.dataclass(frozen=True)
class Originals:
    """All images there are, by split, each split in the order it is to be stored in."""

    class_names: tuple[str, ...]  # in label order
    splits: dict[str, list[Original]]
    notes: tuple[str, ...] = ()  # what was left out, and why

    def listing(self, sizes: bool) -> str:
        """SHA-256 of the classes, splits and paths, and of how long the files are if ``sizes``."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for split, originals in sorted(self.splits.items()):
            digest.update(f"\n\n{split}\n".encode())
            for one in originals:
                digest.update(f"{one.path}\n{one.size if sizes else ''}\n".encode())
        return digest.hexdigest()


def list_folder(folder: Path, val_share: float = 0.0, seed: int = 0) -> Originals:
    """The images of ``folder/SPLIT/CLASS/...``, or of ``folder/CLASS/...`` as the split train.

    Labels number the sorted class names, as torchvision's ImageFolder has it.

    Args:
      folder: the first of the two if it has a folder named train, val, validation or test without
        images directly in it.
      val_share: of each class of a folder without splits, the share that becomes the split val;
        a class keeps an image in train.
      seed: which images these are.

    Raises:
      DataError: not such a folder, a class without images, or splits with other classes.
    """
    if has_splits(folder):
        folders = subfolders(folder)
        if val_share:
            raise DataError(
                f"{folder} has splits already: {', '.join(folders)}; leave out the share for val"
            )
        return _list_splits(folder, folders)
    names = _class_names(folder)
    notes: list[str] = []
    originals = _list_classes(folder, names, notes)
    if not val_share:
        return Originals(names, {"train": in_order(originals)}, tuple(notes))
    train, val = _divided(originals, val_share, seed)
    if not val:
        raise DataError(f"{val_share:g} of each class of {folder} is no image; take a larger share")
    return Originals(names, {"train": in_order(train), "val": in_order(val)}, tuple(notes))


def has_splits(folder: Path) -> bool:
    """Whether a folder holds splits, rather than classes."""
    folders = subfolders(folder)
    return any(name in SPLITS and not images_in(folder / name) for name in folders)


def in_order(originals: Iterable[Original]) -> list[Original]:
    """Sorts images by the SHA-256 of their path: fixed, and any stretch mixes the classes."""
    return sorted(originals, key=lambda one: hashlib.sha256(os.fsencode(one.path)).digest())


def checked_names(names: Iterable[str], where: Path) -> tuple[str, ...]:
    """Class names, sorted.

    Raises:
      DataError: none, or one that a file of a name a line cannot hold.
    """
    classes = tuple(sorted(names))
    if not classes:
        raise DataError(
            f"no class folders in {where}; expected {where}/CLASS/*{{{','.join(EXTENSIONS)}}} or"
            f" {where}/train/CLASS/*, or ImageNet's tars"
        )
    for name in classes:
        if name != name.strip() or len(name.splitlines()) != 1 or not name.isprintable():
            raise DataError(f"{where} has a class named {name!r}; rename it without odd spaces")
    return classes


def _list_splits(folder: Path, folders: list[str]) -> Originals:
    splits, reference = {}, None
    notes: list[str] = []
    for split in sorted(folders, key=lambda name: (name != "train", name)):
        if not subfolders(folder / split):
            notes.append(f"{folder / split} is left out: it has no class folders, so no labels")
            continue
        if not _SPLIT_NAME.fullmatch(split) or split == "all":
            raise DataError(
                f"{folder / split} cannot be a split's name; use letters, digits and underscores"
            )
        names = _class_names(folder / split)
        reference = reference or (split, names)
        odd = sorted(set(names) ^ set(reference[1]))
        if odd:
            raise DataError(
                f"{folder / split} must have the class folders of {folder / reference[0]}, or their"
                f" labels mean different things; only one of the two has {', '.join(odd[:10])}"
            )
        splits[split] = in_order(_list_classes(folder / split, names, notes))
    if reference is None:
        raise DataError(f"no class folders in {', '.join(str(folder / name) for name in folders)}")
    return Originals(reference[1], splits, tuple(notes))


def _class_names(folder: Path) -> tuple[str, ...]:
    return checked_names(subfolders(folder), folder)


def _list_classes(root: Path, names: tuple[str, ...], notes: list[str]) -> list[Original]:
    """The images of each class; ``notes`` gets a sentence of the files that are left out."""
    where, originals, others = str(root), [], Counter[str]()
    for label, name in enumerate(names):
        images = [
            Original(path, label, os.stat(os.path.join(where, path)).st_size, where)
            for path in (os.path.join(name, file) for file in images_below(root / name, others))
        ]
        if not images:
            raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {root / name}")
        originals += images
    notes += filter(None, [left_out(root, others)])
    return originals


def is_flat(folder: Path) -> bool:
    """Whether a folder holds images, and no folders that could be classes."""
    return folder.is_dir() and not subfolders(folder) and bool(images_in(folder))


def _divided(
    originals: list[Original], share: float, seed: int
) -> tuple[list[Original], list[Original]]:
    """All but ``share`` of each class, and ``share`` of it, rounded; drawn by a seeded hash."""
    classes = defaultdict(list)
    for one in originals:
        classes[one.label].append(one)
    train, val = [], []
    for members in classes.values():
        members.sort(key=lambda one: hashlib.sha256(os.fsencode(f"{seed} {one.path}")).digest())
        count = min(int(len(members) * share + 0.5), len(members) - 1)
        val += members[:count]
        train += members[count:]
    return train, val
