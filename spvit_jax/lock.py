"""``Lock``: one run a folder, also after kill -9, on disks, network disks and object stores."""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from etils import epath

from spvit_jax.remote import is_remote

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
BEAT = 15.0  # seconds between signs of life where the system keeps no locks


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[str]:
    """Holds a folder's lock, if nobody does: gives who does, or "" and the lock.

    On disks the system keeps it, and takes it back when a process ends however it ends. In an
    object store, which has none, the holder leaves a sign of life in a file every ``BEAT``
    seconds: a second run waits whether another one comes.
    """
    if is_remote(folder):
        with _beating(folder / NAME) as holder:
            yield holder
        return
    with open(folder / NAME, "a+") as file:
        holder = _taken(file)
        yield holder
        if not holder:
            file.truncate(0)


def _taken(file: Any) -> str:
    """Takes a file's lock, and writes who has it; or says who does."""
    if fcntl is None:
        return ""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read(200).strip() or "a process that does not say its name"
    except OSError:  # a disk that keeps no locks
        return ""
    file.truncate(0)
    file.write(_self())
    file.flush()
    return ""


def _self() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def _beating(file: epath.Path) -> Iterator[str]:
    content = _sign(file)
    if content is not None:
        time.sleep(2 * BEAT)
        if _sign(file) not in (content, None):
            yield str(content.get("holder"))
            return
    ended = threading.Event()

    def sign(count: int) -> None:
        with contextlib.suppress(Exception):  # a sign that fails is followed by another
            file.write_text(json.dumps({"holder": _self(), "beat": count, "at": time.time()}))

    def beat() -> None:
        count = 1
        while not ended.wait(BEAT):
            sign(count)
            count += 1

    sign(0)  # before anything is done here, for the next one to see
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield ""
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):
            file.unlink()


def _sign(file: epath.Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text()) if file.exists() else None
    except ValueError:
        return {"holder": "a run whose lock is damaged"}
