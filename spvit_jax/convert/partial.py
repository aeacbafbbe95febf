"""Files that are on their way: one process's own, and what is left of those of killed ones."""

import contextlib
import os
import secrets
import time
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

QUIET, WEEK = 3600.0, 7 * 24 * 3600.0  # seconds


class Partial:
    """A file that one process fills, begun by it or by one that was killed. A context manager.

    A lock, which ends with its process, says whose it is, and its name which version of something
    is in it. An error removes it unless it is one of ``keep``.

    Attributes:
      file: open for reading and writing.
      path: where it is.
      version: of what is in it; "": nobody knows.
    """

    def __init__(self, folder: Path, keep: tuple[type[BaseException], ...]):
        self._folder, self._keep = folder, keep
        self.version, self.file, self.path = "", *_left(folder)
        if "-" in self.path.stem:
            self.version = self.path.stem.partition("-")[0]

    def __enter__(self) -> "Partial":
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        lost = kind is not None and not (issubclass(kind, self._keep) and self.version)
        size = self.size if not self.file.closed else 1
        self.file.close()
        if lost or not size:
            self.path.unlink(missing_ok=True)

    @property
    def size(self) -> int:
        """Bytes that are in it."""
        return self.file.seek(0, os.SEEK_END)

    def begin(self, version: str) -> None:
        """Begins anew, with what is of another version."""
        self.file.close()
        self.path.unlink(missing_ok=True)
        self.file, self.path = _new(self._folder, version)
        self.version = version

    def become(self, target: Path) -> None:
        """Makes it the file ``target``, at once."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if fcntl is None:  # where an open file cannot be moved
            self.file.close()
        os.replace(self.path, target)


def sweep(cache: Path) -> None:
    """Removes what killed processes left in the folders of ``cache`` and nobody wanted since."""
    for path in cache.glob("*/*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > WEEK and (file := _own(path)):
                file.close()
                path.unlink()
                path.parent.rmdir()  # if it is empty


def _left(folder: Path) -> tuple[IO[bytes], Path]:
    """What a killed process left in a folder, the rest of it removed; or a new file."""
    parts = [(file, path) for path in sorted(folder.glob("*.part")) if (file := _own(path))]
    for file, path in parts[1:]:
        file.close()
        path.unlink()
    return parts[0] if parts else _new(folder, "")


def _new(folder: Path, version: str) -> tuple[IO[bytes], Path]:
    path = folder / f"{version}-{secrets.token_hex(4)}.part"
    file = path.open("x+b")
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a disk that keeps no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file, path


def _own(path: Path) -> IO[bytes] | None:
    """A file that no process fills, open, and from now on this one's; None: one may."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        file = stack.enter_context(path.open("r+b"))
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif time.time() - path.stat().st_mtime < QUIET:
            return None
        if path.stat().st_ino == os.fstat(file.fileno()).st_ino:  # has not become another
            stack.pop_all()
            return file
    return None
