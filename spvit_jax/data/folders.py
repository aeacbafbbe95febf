"""Folders of images: which files are images, and which folders are nobody's classes."""

import functools
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from spvit_jax.data.errors import DataError
from spvit_jax.remote import is_utf8, public

EXTENSIONS = (  # of files that are taken for images
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
)
SYSTEM = (
    *("__MACOSX", "@eaDir", "#recycle", "#snapshot", "@Recycle", "$RECYCLE.BIN", "lost+found"),
    *("System Volume Information", "__pycache__"),
)


def is_image(name: str) -> bool:
    """Whether a file of that name is taken for an image; hidden ones are not."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def is_hidden(name: str) -> bool:
    """Whether a folder of that name is a system's or a program's own."""
    return name.startswith(".") or name in SYSTEM


def subfolders(folder: Path) -> list[str]:
    """The names of the folders in one, sorted; hidden ones, and links to where it is, left out.

    Raises:
      DataError: it is none, or the name of one, which may be a class's, is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    with os.scandir(folder) as entries:
        names = sorted(one.name for one in entries if one.is_dir() and not is_hidden(one.name))
    above = {folder.resolve(), *folder.resolve().parents}
    names = [name for name in names if (folder / name).resolve() not in above]
    for name in names:
        if not is_utf8(name):
            raise DataError(f"the name of {public(folder / name)} is not UTF-8; rename the folder")
    return names


def images_in(folder: Path, others: Counter[str] | None = None) -> list[str]:
    """The names of the image files directly in a folder, sorted; for ``others`` see below."""
    with os.scandir(folder) as entries:
        return list(_images([one.name for one in entries if one.is_file()], others))


def images_below(folder: Path, others: Counter[str] | None = None) -> Iterator[str]:
    """The paths of the image files at any depth, relative to the folder.

    Links are followed, but to no folder twice, and to none that this one is in.

    Args:
      folder: of the images.
      others: counts the endings of the files that are left out; not of hidden ones.

    Raises:
      OSError: a folder cannot be listed.
    """
    real = folder.resolve()
    seen = {real, *real.parents}
    for where, inside, files in os.walk(folder, onerror=_refuse, followlinks=True):
        inside[:] = sorted(name for name in inside if not is_hidden(name))
        inside[:] = [name for name in inside if _is_new(Path(where, name), seen)]
        for file in _images(files, others):
            yield os.path.relpath(os.path.join(where, file), folder)


def left_out(folder: Path, others: Counter[str]) -> str:
    """Says how many files of a folder are left out for their endings; "" where none are."""
    if not others:
        return ""
    kinds = ", ".join(f"{end or 'nothing'} ({count:,})" for end, count in others.most_common(8))
    return (
        f"{others.total():,} files in {public(folder)} are left out, since their names end in"
        f" {kinds}; images are those that end in {' '.join(EXTENSIONS)}"
    )


@functools.cache
def warn(note: str) -> None:
    """Warns of what is ``left_out``, if anything is, once."""
    if note:
        logging.getLogger(__name__).warning("%s", note)


def _images(names: list[str], others: Counter[str] | None) -> Iterator[str]:
    """The names of image files among those of files, sorted; ``others`` counts the rest."""
    for name in sorted(names):
        if is_image(name):
            yield name
        elif others is not None and not name.startswith("."):
            others[os.path.splitext(name)[1].lower()] += 1


def _refuse(error: OSError) -> None:
    raise error


def _is_new(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder, wherever links to it lie, is none of those seen; from now on it is."""
    count, real = len(seen), folder.resolve()
    seen.add(real)
    return len(seen) > count
