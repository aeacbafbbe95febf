"""Folders of images: which files are images, and which folders are nobody's classes."""

import os
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
    """The names of the folders in one, sorted, hidden ones left out.

    Raises:
      DataError: it is none, or the name of one, which may be a class's, is not UTF-8.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    with os.scandir(folder) as entries:
        names = sorted(one.name for one in entries if one.is_dir() and not is_hidden(one.name))
    for name in names:
        if not is_utf8(name):
            raise DataError(f"the name of {public(folder / name)} is not UTF-8; rename the folder")
    return names


def images_in(folder: Path) -> list[str]:
    """The names of the image files directly in a folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(one.name for one in entries if one.is_file() and is_image(one.name))


def images_below(folder: Path) -> Iterator[str]:
    """The paths of the image files at any depth, relative to the folder.

    Links are followed, but to no folder twice, and to none that this one is in.

    Raises:
      OSError: a folder cannot be listed.
    """
    real = folder.resolve()
    seen = {real, *real.parents}
    for where, inside, files in os.walk(folder, onerror=_refuse, followlinks=True):
        inside[:] = sorted(name for name in inside if not is_hidden(name))
        inside[:] = [name for name in inside if _is_new(Path(where, name), seen)]
        for file in sorted(files):
            if is_image(file):
                yield os.path.relpath(os.path.join(where, file), folder)


def _refuse(error: OSError) -> None:
    raise error


def _is_new(folder: Path, seen: set[Path]) -> bool:
    """Whether a folder, wherever links to it lie, is none of those seen; from now on it is."""
    count, real = len(seen), folder.resolve()
    seen.add(real)
    return len(seen) > count
