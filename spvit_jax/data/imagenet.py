"""The original ImageNet (ILSVRC 2012): its tars as they are downloaded, indexed, not unpacked."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from spvit_jax.data.errors import DataError
from spvit_jax.data.folders import EXTENSIONS
from spvit_jax.data.originals import Original, Originals, checked_names, in_order
from spvit_jax.remote import raise_transient

TRAIN = "ILSVRC2012_img_train.tar"  # of a tar a class, n01440764.tar
VALIDATION = "ILSVRC2012_img_val.tar"  # of images, ILSVRC2012_val_00000001.JPEG
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"  # says which class each of those is
_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"


def is_imagenet(folder: Path) -> bool:
    """Whether ``folder`` holds one of the tars of images."""
    return any((folder / name).exists() for name in (TRAIN, VALIDATION))


def list_tars(folder: Path) -> Originals:
    """The images of the tars in ``folder``: the splits train and validation, as TFDS names them.

    Labels number the sorted WordNet ids, which is torchvision's order and TFDS's. A path is
    WNID/FILE, for validation too, so that the images stand where those of a folder would.

    Raises:
      DataError: the devkit is missing next to the validation images, or a file is damaged.
    """
    splits, notes, names = {}, [], None
    if (folder / TRAIN).exists():
        stretches = list(_train_stretches(folder / TRAIN))
        names = checked_names({path.partition("/")[0] for path, _, _ in stretches}, folder / TRAIN)
        splits["train"] = _originals(folder / TRAIN, stretches, names)
    else:
        notes.append(f"no {folder / TRAIN}: only validation")
    if (folder / VALIDATION).exists():
        truth, classes = _read_devkit(folder / DEVKIT)
        names = names or checked_names(classes, folder / DEVKIT)
        stretches = list(_validation_stretches(folder / VALIDATION, truth))
        splits["validation"] = _originals(folder / VALIDATION, stretches, names)
    else:
        notes.append(f"no {folder / VALIDATION}: only train")
    return Originals(names or (), splits, tuple(notes))


def _originals(
    tar: Path, stretches: list[tuple[str, int, int]], names: tuple[str, ...]
) -> list[Original]:
    labels = {name: label for label, name in enumerate(names)}
    where, originals = str(tar), []
    for path, offset, size in stretches:
        name = path.partition("/")[0]
        if name not in labels:
            raise DataError(f"{tar} has images of {name}, of which {TRAIN} has none")
        originals.append(Original(path, labels[name], size, where, offset))
    return in_order(originals)


def _train_stretches(tar: Path) -> Iterator[tuple[str, int, int]]:
    """Path, offset and size of each image in the tars in ``tar``."""
    count = 0
    with open(tar, "rb") as file:
        for outer in _members(file, tar):
            inside = PurePosixPath(outer.name)
            if inside.suffix != ".tar":
                continue
            before = count
            for member in _members(file, tar / inside.name, outer.offset_data, outer.size):
                if member.name.lower().endswith(EXTENSIONS):
                    count += 1
                    path = f"{inside.stem}/{PurePosixPath(member.name).name}"
                    yield path, member.offset_data, member.size
            if count == before:
                raise DataError(f"no image in {tar / inside.name}; download {tar.name} again")
    if not count:
        raise DataError(f"{tar} holds no tars n*.tar of images; it is not ImageNet's")


def _validation_stretches(tar: Path, truth: list[str]) -> Iterator[tuple[str, int, int]]:
    """Path, offset and size of each image in ``tar``; ``truth``: their classes, by number."""
    count = 0
    with open(tar, "rb") as file:
        for member in _members(file, tar):
            name = PurePosixPath(member.name)
            if name.suffix.lower() not in EXTENSIONS:
                continue
            number = name.stem.rpartition("_")[2]
            if not number.isdecimal() or not 1 <= int(number) <= len(truth):
                raise DataError(
                    f"{tar} holds {name}; expected ILSVRC2012_val_ and a number of 8 digits up to"
                    f" {len(truth)}, of which {DEVKIT} has the labels"
                )
            count += 1
            yield f"{truth[int(number) - 1]}/{name.name}", member.offset_data, member.size
    if count != len(truth):
        raise DataError(f"{tar} holds {count} images, {DEVKIT} labels of {len(truth)}; get both")


def _members(
    file: io.BufferedReader, tar: Path, start: int = 0, size: int = 0
) -> Iterator[tarfile.TarInfo]:
    """The files in a tar that begins at ``start`` of ``file``; their offsets are in ``file``."""
    end = start + size if size else os.fstat(file.fileno()).st_size
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as opened:
            while member := opened.next():
                opened.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                if member.isfile():
                    yield member
            file.seek(opened.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile lets that pass
                raise tarfile.ReadError("its end mark is missing")
    except tarfile.TarError as error:
        raise DataError(f"{tar} is damaged ({error}); download it again") from error


def _read_devkit(file: Path) -> tuple[list[str], list[str]]:
    """The class of each validation image, in their order, and the classes there are."""
    from scipy import io as scipy_io  # only here; JAX brings SciPy

    if not file.exists():
        raise DataError(
            f"{file} is missing: the labels of {VALIDATION} are only in there. It is the task 1 & 2"
            " development kit of https://image-net.org/challenges/LSVRC/2012 (2.5 MB); put it"
            f" beside {VALIDATION}, as it is"
        )
    try:
        with tarfile.open(file, "r:gz") as opened:
            texts = {PurePosixPath(one.name).parts[-2:]: one for one in opened if one.isfile()}
            truth, meta = (
                opened.extractfile(texts[PurePosixPath(name).parts]).read()  # type: ignore[union-attr]
                for name in (_TRUTH, _META)
            )
        synsets = scipy_io.loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets}
        classes = [str(one["WNID"]) for one in synsets if int(one["num_children"]) == 0]
        return [wnids[int(number)] for number in truth.split()], classes
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise_transient(error)
        raise DataError(
            f"{file} is damaged ({error!r}): expected {_TRUTH} and {_META} in it; download it again"
        ) from error
