"""The checksums of a folder's files, kept in it: they tell what was flipped, cut or lost."""

import json
import os
import zlib
from pathlib import Path

from spvit_jax.remote import raise_transient

FILE = "sums.json"


def note(folder: Path) -> None:
    """Writes down the checksum of every file in a folder; the note is there whole or not at all.

    Raises:
      OSError: it cannot be written.
    """
    partial = folder / f"{FILE}.partial"
    partial.write_text(json.dumps({name: _sum(folder / name) for name in _names(folder)}))
    os.replace(partial, folder / FILE)


def noted(folder: Path) -> bool:
    """Whether there is a note in a folder."""
    return (folder / FILE).exists()


def damage(folder: Path, only: str = "") -> str:
    """What is not as it was noted, of one file if it is named; "": nothing, or there is no note.

    Raises:
      OSError: a disk or network does not give it now.
    """
    if not noted(folder):
        return ""
    try:
        sums = json.loads((folder / FILE).read_text())
        for name in [only] if only else sorted(sums.keys() | set(_names(folder))):
            if not (folder / name).is_file():
                return f"its file {name} is gone"
            if sums.get(name) != _sum(folder / name):
                return f"its file {name} is not the one that was written"
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise_transient(error)
        return f"its {FILE} cannot be read: {str(error)[:100]}"
    return ""


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    return [name for name in names if not name.startswith(FILE)]


def _sum(file: Path) -> int:
    crc = 0
    with file.open("rb") as opened:
        while part := opened.read(2**20):
            crc = zlib.crc32(part, crc)
    return crc
