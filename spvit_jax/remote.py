"""Paths that may lead to an object store: ``gs://BUCKET/...``, which gcsfs reads and writes."""

import contextlib
import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from etils import epath

ADVICE = (
    "check the address, your rights there (gcloud auth application-default login) and that gcsfs is"
    " installed (pip install 'spvit_jax[gcs]')"
)


TRANSIENT = {  # faults of disks and networks that may pass
    *(errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED),
    *(errno.ECONNREFUSED, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
}


def is_transient(error: BaseException) -> bool:
    """Whether an error is of a disk or a network that may be well again in a while."""
    if isinstance(error, BrokenPipeError) or not isinstance(error, OSError):
        return False
    kinds = TimeoutError | ConnectionError | socket.gaierror  # of which the last is no server found
    return isinstance(error, kinds) or error.errno in TRANSIENT


def raise_transient(error: BaseException) -> None:
    """Raises the error that ``error`` is, or was raised for, where ``is_transient`` is that one's.

    What is written in C++ raises another kind, with the system's words for it in its own.
    """
    reason: BaseException | None = error
    while reason is not None:
        if isinstance(reason, socket.gaierror):
            raise ConnectionError(f"no server found ({reason.strerror}); try again") from error
        if is_transient(reason):
            raise reason
        for number in TRANSIENT:
            before, words, after = str(reason).partition(os.strerror(number))
            if words:
                more = after.partition(" [")[0][:200]  # without TensorStore's page
                raise OSError(number, " ".join(f"{before[-200:]}{words}{more}".split())) from error
        reason = reason.__cause__ or reason.__context__


def is_full(error: BaseException) -> bool:
    """Whether an error is of a disk, or a user's share of it, that is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether a path's name is UTF-8; not all libraries take others, nor can JSON hold them."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether it is an object store's, such as ``gs://bucket/run``."""
    return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """An absolute path; a remote one is one (its own ``absolute`` prepends the working folder)."""
    return epath.Path(path if is_remote(path) else os.path.abspath(path))


def public(address: str | os.PathLike[str]) -> str:
    """An address or path as it may be shown: without users, passwords and queries, on one line."""
    user = r"[^/?#]*@|[^/?#:]*:(?!\d+/)[^?#]*@"  # also with a / in the password
    text = re.sub(
        rf"^((?:https?|ftp):/*|[\w+.-]{{2,}}://)(?:{user})",
        r"\1…@",
        os.fspath(address),
        flags=re.IGNORECASE,
    )
    text = re.sub(r"^([\w+.-]+://[^?#]*)[?#].*", r"\1?…", text, flags=re.DOTALL)
    return "".join(c if c.isprintable() else f"%{ord(c):02X}" for c in text)


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to a pipe or a device, which is written into, never replaced."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def is_loop(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads through links that lead back to themselves."""
    try:
        os.stat(path)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def followed(path: str | os.PathLike[str]) -> Path:
    """The file that is to be replaced for a path: a link stays, what it leads to does not.

    Raises:
      FileExistsError: what is there is no file, or a link that leads to none.
    """
    if is_special(path):
        raise FileExistsError(f"{path} is a pipe or a device, expected a file; choose another name")
    if is_loop(path):
        raise FileExistsError(
            f"{path} is a link that leads back to itself, to no file; remove it, or choose another"
            " name"
        )
    return Path(os.path.realpath(path))


def publish(file: Path, path: epath.Path) -> None:
    """Makes a local file ``path``, at once: who reads it sees all of the old one or the new one."""
    if is_remote(path):
        path.write_bytes(file.read_bytes())
    else:
        os.replace(file, path)


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: type[Exception]) -> Iterator[None]:
    """Around what reads ``path``: of a remote one, any error but a missing file becomes a ``kind``.

    What may pass stays what it is (see ``is_transient``). Object stores raise errors of many kinds,
    most of which do not say what to do.
    """
    try:
        yield
    except Exception as error:
        raise_transient(error)
        if isinstance(error, FileNotFoundError | kind) or not is_remote(path):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise kind(f"cannot read {path} ({reason}); {ADVICE}") from error
