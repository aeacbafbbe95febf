"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Has the system's errors say which file they are of; those of a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file; when that fails, what was there is untouched.

    Raises:
      OSError: the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            part.write_bytes(data)
            os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
