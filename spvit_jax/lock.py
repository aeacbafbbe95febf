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

from spvit_jax.remote import is_remote, raise_transient

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
    object store, and on disks where the system keeps none, the holder leaves a sign of life in a
    file every ``BEAT`` seconds: a second run waits whether another one comes.

    Raises:
      OSError: the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        holder = None if is_remote(folder) else stack.enter_context(_kept(folder / NAME))
        if holder is None:
            holder = stack.enter_context(_beating(folder / NAME))
        yield holder


@contextlib.contextmanager
def _kept(path: epath.Path) -> Iterator[str | None]:
    """Holds a lock that the system keeps; gives None where it keeps none."""
    if fcntl is None:
        yield None
        return
    with open(path, "a+") as file:
        holder = _taken(file)
        yield holder
        if holder == "":
            file.truncate(0)


def _taken(file: Any) -> str | None:
    """Takes a file's lock, and writes who has it; or says who does; None: it has no lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read(200).strip() or "a process that does not say its name"
    except OSError as error:  # of a disk that keeps no locks
        raise_transient(error)
        return None
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
        text = file.read_text() if file.exists() else ""
        return json.loads(text) if text else None
    except ValueError:
        return {"holder": "a run whose lock is damaged"}
