"""Files that are there whole or not at all."""

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from spvit_jax.convert.contents import TORCH
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.remote import followed, is_remote, is_special, public

SUFFIX = ".safetensors"
EXPORTED = (".onnx", ".tflite", ".stablehlo")  # which are written elsewhere
PATIENCE = 10.0  # seconds until somebody has to read a pipe that is written into


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
      FileExistsError: it is a link that leads to none.
    """
    if is_remote(path):
        raise CheckpointError(
            f"{public(path)} is no file of this machine; write to a disk, and copy it: gcloud"
            " storage cp FILE gs://BUCKET/FILE"
        )
    file = Path(os.path.expanduser(path))
    if not file.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {file.parent}; make it first")
    if not is_special(file):
        followed(file)
    return file


def named(path: str | os.PathLike) -> Path:
    """The file that a model is to be in, as ``local``; a pipe or a device may have any name.

    Raises:
      CheckpointError: its name does not end in .safetensors.
      FileNotFoundError: its folder is not there.
    """
    file = local(path)
    if file.suffix == SUFFIX or is_special(file):
        return file
    other = ""
    if file.suffix in TORCH:
        other = f"; {file.suffix} is written by spvit.save_torch"
    elif file.suffix in EXPORTED:
        other = f"; {file.suffix} is written by spvit.export"
    raise CheckpointError(
        f"{path}: a model file's name ends in {SUFFIX}; end its name in {SUFFIX}{other}"
    )


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file, or what a link leads to; when that fails, what was there is untouched.

    Pipes and devices are written into.

    Raises:
      OSError: the file cannot be written, or nobody reads the pipe.
    """
    if is_special(path):
        with naming(path), os.fdopen(_opened(path), "wb") as file:
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


def _opened(path: str | os.PathLike) -> int:
    """A pipe or a device, open for writing; one that waits for a reader is not waited for long."""
    begun = time.monotonic()
    while True:
        try:
            file = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                raise
            if time.monotonic() - begun > PATIENCE:
                raise OSError(
                    errno.ENXIO, "nobody reads this pipe; begin what is to read it first"
                ) from error
            time.sleep(0.05)
        else:
            os.set_blocking(file, True)
            return file
