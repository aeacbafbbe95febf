"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from spvit_jax.convert.errors import CheckpointError
from spvit_jax.remote import followed, is_remote, is_special, public


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Has the system's errors say which file they are of; those of a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def local(path: str | os.PathLike) -> Path:
    """The file of this machine that is to be written; ~ is the user's folder.

    Raises:
      CheckpointError: it is an object store's.
      FileNotFoundError: its folder is not there.
    """
    if is_remote(path):
        raise CheckpointError(
            f"{public(path)} is no file of this machine; write to a disk, and copy it: gcloud"
            " storage cp FILE gs://BUCKET/FILE"
        )
    file = Path(os.path.expanduser(path))
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {file.parent}; make it first")
    return file


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file, or what a link leads to; when that fails, what was there is untouched.

    Pipes and devices are written into.

    Raises:
      OSError: the file cannot be written.
    """
    if is_special(path):
        with naming(path), open(path, "wb") as file:
            file.write(data)
        return
    target = followed(path)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with naming(path):
            part.write_bytes(data)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
