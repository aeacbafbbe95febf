"""The folder of one run: whose it is, and files that are there whole or not at all.

It may be on ``gs://``. Only process 0 of several writes, and what one reads all of them read. Every
file has a checksum, and every value that is read the type it has to have: damage is named.
"""

import contextlib
import dataclasses
import hashlib
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from etils import epath

from spvit_jax import checksums, hosts, lock
from spvit_jax.checksums import Checksums
from spvit_jax.config import Config, ConfigError
from spvit_jax.remote import ADVICE, absolute, is_full, is_remote, publish, raise_transient
from spvit_jax.state import StateError, dumps, loads, typed

CONFIG, VERSIONS, BEGAN = "config.json", "versions.json", "began.json"
NO_RESULTS = {CONFIG, VERSIONS, BEGAN, checksums.FILE, "compilation_cache"}  # there at the start
STATE = (".json", ".safetensors")  # what a person does not remove to tidy up
REWRITTEN = {CONFIG, VERSIONS}  # at every start
SAME_RESULTS = {"sharding": {"fsdp"}, "data": {"workers"}}  # fields that may change on the way
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SHOWN = 20  # differences at most that a message names
SEEN_SECONDS = 20  # until what process 0 writes is to be seen by all
REMEDIES = {  # of a folder that cannot be written, remote or not
    False: "choose a folder you own",
    True: ADVICE,
}


class Workdir:
    """Where a run keeps what it has."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = absolute(path)
        self._checksums = Checksums(self.path)

    def __truediv__(self, name: str) -> epath.Path:
        return self.path / name

    def exists(self, name: str) -> bool:
        """Whether process 0 sees the file ``name``, for all processes."""
        return hosts.from_first(jax.process_index() == 0 and (self / name).exists())

    def read_json(self, name: str, kind: Any) -> Any:
        """The value that process 0 reads in the JSON file ``name``, for all; None without one.

        Args:
          name: of the file.
          kind: what the file holds, as ``state.typed`` takes it.

        Raises:
          StateError: the file is damaged, or holds something else.
        """
        first = jax.process_index() == 0
        values, damage = hosts.from_first(self._read(name) if first else None)
        if damage:
            raise StateError(damage)
        try:
            return None if values is None else typed(kind, values)
        except ValueError as error:
            raise StateError(self._damaged(name, error)) from error

    def check(self, name: str) -> bool:
        """Whether there is a file ``name``, as ``exists`` says it.

        Raises:
          StateError: it is not what was written.
        """
        first = jax.process_index() == 0
        there, damage = hosts.from_first(self._checked(name) if first else None)
        if damage:
            raise StateError(damage)
        return there

    def keep(self, name: str) -> None:
        """Takes a file, if it is there, that has grown and is complete now for one written whole.

        Raises:
          StateError: it has been taken before, and is another now.
        """
        if self.check(name) and jax.process_index() == 0 and name not in self._checksums.files:
            self._checksums.note(name, checksums.digest(self / name))

    def forget(self, name: str) -> None:
        """Lets a file that ``keep`` has taken grow again."""
        if jax.process_index() == 0 and name in self._checksums.files:
            self._checksums.note(name, None)

    def finished(self, result: str, kind: Any, others: tuple[str, ...]) -> Any:
        """Reads the ``result`` of a finished run, as ``read_json`` does.

        Raises:
          StateError: it is damaged, or another file that the run has written; or one of ``others``
            is gone.
        """
        problem = hosts.from_first(self._incomplete(others) if jax.process_index() == 0 else "")
        if problem:
            raise StateError(
                f"the run in {self.path} is finished, but {problem}; put it back, or remove it and"
                f" {result}, and the same command makes it again, all but lines of metrics"
            )
        return self.read_json(result, kind)

    def _incomplete(self, others: tuple[str, ...]) -> str:
        """What is gone of a finished run, or damaged."""
        noted = self._checksums.files - REWRITTEN
        kept = {*others, *(name for name in noted if name.endswith(STATE))}
        gone = sorted(name for name in kept if not (self / name).exists())
        if gone:
            return f"{', '.join(gone)} is gone"
        damaged = sorted(name for name in noted if self._checked(name)[1])
        return f"{', '.join(damaged)} is not what it has written" if damaged else ""

    def _checked(self, name: str) -> tuple[bool, str]:
        """Whether the file ``name`` is there, and what is wrong with it."""
        if not (self / name).exists():
            return False, ""
        try:
            problem = self._checksums.problem(name)
        except StateError as error:
            return True, str(error)
        return True, self._damaged(name, problem) if problem else ""

    def _read(self, name: str) -> tuple[Any, str]:
        """What the JSON file ``name`` holds, and what is wrong with it."""
        there, damage = self._checked(name)
        if damage or not there:
            return None, damage
        try:
            values = loads(checksums.content(self / name))
            if not isinstance(values, dict):
                raise ValueError(f"expected a JSON object, got {str(values)[:80]}")
        except ValueError as error:
            return None, self._damaged(name, error)
        return values, ""

    def _damaged(self, name: str, reason: object) -> str:
        return (
            f"{self / name} is damaged ({reason}); put it back, or remove it, and the same command"
            " makes it again"
        )

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Has ``save`` write a local file, which then becomes ``name``; whole or not at all.

        Raises:
          StateError: something stands in its way.
        """
        if jax.process_index() == 0:
            with tempfile.TemporaryDirectory(
                prefix=checksums.PARTIAL, dir=None if is_remote(self.path) else self.path
            ) as folder:
                local, final = Path(folder, name), self / name
                local.parent.mkdir(parents=True, exist_ok=True)
                save(local)
                try:
                    if not is_remote(self.path):
                        final.parent.mkdir(parents=True, exist_ok=True)
                    self._checksums.note(name, checksums.digest(local))
                    publish(local, final)
                except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
                    raise StateError(
                        f"{final} cannot be written ({error.strerror}: {error.filename}); move"
                        " away what stands there, and run the same command again"
                    ) from error

    def write_json(self, name: str, value: Any) -> None:
        """A JSON file of a dataclass or a dict, whole or not at all."""
        self.write(name, lambda path: path.write_text(dumps(value)))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this run alone.

        Raises:
          ConfigError: it cannot be written, or another run is at work in it.
          OSError: it cannot be written now, and may be in a while, or the disk is full.
        """
        with contextlib.ExitStack() as stack:
            with hosts.together(OSError):
                problem = self._lock(stack) if jax.process_index() == 0 else ""
            problem = hosts.from_first(problem)
            if problem:
                raise ConfigError(problem)
            yield

    def _lock(self, stack: contextlib.ExitStack) -> str:
        """Takes the lock; returns what stands against it."""
        try:
            self._make()
            holder = stack.enter_context(lock.locked(self.path))
        except Exception as error:  # object stores raise many kinds
            return self._unwritable(error)
        if holder:
            return (
                f"another run is at work in --workdir={self.path}: {holder}; wait for it, stop it,"
                " or choose another --workdir"
            )
        return ""

    def _make(self) -> None:
        """Makes the folder; a bucket is not made, which a mistyped name would be.

        Raises:
          OSError: it cannot be, or is of no kind that is known.
        """
        if is_remote(self.path):
            return
        if not self.path.is_absolute():
            raise OSError("it is of no known kind; give a folder or gs://BUCKET/FOLDER")
        self.path.mkdir(parents=True, exist_ok=True)

    def _unwritable(self, error: Exception) -> str:
        """Says why the folder cannot be written; raises what has another remedy than a right."""
        remote = is_remote(self.path)
        raise_transient(error)
        if not (remote or isinstance(error, OSError)) or is_full(error):
            raise error
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return f"cannot write to --workdir={self.path} ({reason}); {REMEDIES[remote]}"

    def began(self, facts: dict[str, Any]) -> None:
        """Notes what a run began from, or compares it with what is noted.

        Args:
          facts: nested, of JSON's types, the same on all processes.

        Raises:
          ConfigError: it is something else now, and there are results of it; names all.
        """
        before = self.read_json(BEGAN, dict[str, Any])
        if before is None and hosts.from_first(
            jax.process_index() == 0 and self._other(BEGAN, facts)
        ):
            raise ConfigError(
                f"what the run in {self.path} began from has changed, and {BEGAN}, which says what"
                " it was, is gone. Put it back, or choose another --workdir"
            )
        changed = [] if before is None else hosts.differences(before, facts)
        results = hosts.from_first(jax.process_index() == 0 and self._has_results())
        if changed and results:
            more = f"; and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise ConfigError(
                f"what the run in {self.path} began from has changed:"
                f" {'; '.join(changed[:SHOWN])}{more}. Put it back, or choose another --workdir"
            )
        if changed or before is None:
            self.write_json(BEGAN, facts)

    def claim(self, config: Config) -> str:
        """Makes the folder this configuration's, and notes code, libraries and devices.

        Returns:
          What is to be said of the folder; "" where nothing is.

        Raises:
          ConfigError: it cannot be written, holds results of another configuration, or is not the
            same folder on every process.
          OSError: it cannot be written now, and may be in a while, or the disk is full.
        """
        first = jax.process_index() == 0
        with hosts.together(OSError):
            claimed = self._claim(config) if first else None
        note, problem = hosts.from_first(claimed)
        if problem:
            raise ConfigError(problem)
        if jax.process_count() > 1:
            self._check_shared()
        return note

    def _unchecked(self) -> str:
        """Says so where what a run's files could be compared with is gone, and nothing knows it."""
        notes = {CONFIG, BEGAN, checksums.FILE}
        there = {name for name in notes if (self / name).exists()} | self._checksums.files
        known = notes if self._has_results(STATE) else {checksums.FILE} if there else set()
        gone = ", ".join(sorted(known - there))
        return gone and f"gone: {gone}; whether files, data and weights are the run's is not known"

    def _claim(self, config: Config) -> tuple[str, str]:
        """Claims the folder; returns what is to be said of it, and what stands against it."""
        try:
            self._make()
            for left in [] if is_remote(self.path) else self.path.glob(f"{checksums.PARTIAL}*"):
                left.rmtree()  # by a kill
            note = self._unchecked()
            problem = self._not_ours(config)
            if not problem:
                self.write_json(CONFIG, dataclasses.asdict(config))
                self.write_json(VERSIONS, versions())
            return note, problem
        except StateError as error:
            return "", str(error)
        except Exception as error:  # object stores raise many kinds
            return "", self._unwritable(error)

    def _not_ours(self, config: Config) -> str:
        """Says why the folder is not this configuration's; else, nothing stands in its way."""
        old_values, damage = self._read(CONFIG)
        if damage:
            return damage
        changed = _differences(old_values, config)
        results = self._has_results()
        if old_values is None and results and self._other(CONFIG, dataclasses.asdict(config)):
            return (
                f"{self.path} belongs to a run with another configuration, and {CONFIG}, which"
                " says what it was, is gone; put it back, or choose another --workdir"
            )
        if changed and results:
            return (
                f"{self.path} belongs to a run with another configuration"
                f" ({'; '.join(changed)}); go on with that one or choose another --workdir"
            )
        if changed:
            self._checksums.note(BEGAN, None)
            (self / BEGAN).unlink(missing_ok=True)
        return ""

    def _has_results(self, ends: tuple[str, ...] = ("",)) -> bool:
        try:
            return any(_is_result(f) and f.name.endswith(ends) for f in self.path.iterdir())
        except FileNotFoundError:  # a folder of an object store is there once it has a file
            return False

    def _other(self, name: str, values: dict[str, Any]) -> bool:
        """Whether a JSON file that is gone had something else than ``values``."""
        known = self._checksums.read().get(name)
        return known is not None and checksums.digest_of(dumps(values)) not in known

    def _check_shared(self) -> None:
        """Raises ConfigError unless every process sees what process 0 writes."""
        name = hosts.from_first(f".seen-{secrets.token_hex(8)}")
        self.write(name, lambda path: path.touch())
        hosts.from_first(None)  # it is written
        end = time.monotonic() + SEEN_SECONDS
        while not (seen := (self / name).exists()) and time.monotonic() < end:
            time.sleep(0.5)
        blind = [str(number) for number, sees in enumerate(hosts.from_all(seen)) if not sees]
        if jax.process_index() == 0:
            (self / name).unlink()
        if blind:
            raise ConfigError(
                f"--workdir={self.path} is not the same folder for all: process"
                f" {', '.join(blind)} cannot see what process 0 writes there; use a file system"
                " that all hosts share, or gs://"
            )


def versions() -> dict[str, Any]:
    """What a result may depend on besides the configuration; the same on all processes."""
    devices = jax.devices()
    return {
        "code": code_version(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
    }


def code_version() -> str:
    """The first 16 hex digits of the SHA-256 of this package's Python files."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(str(file.relative_to(package)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _is_result(file: epath.Path) -> bool:
    return file.name not in NO_RESULTS and not file.name.startswith(".")


def _differences(old_values: dict[str, Any] | None, config: Config) -> list[str]:
    """Every field that another configuration, if there is one, has otherwise and that counts."""
    now = dataclasses.asdict(config)
    return [] if old_values is None else hosts.differences(_decisive(old_values), _decisive(now))


def _decisive(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without ``SAME_RESULTS``."""
    return {
        group: {k: v for k, v in part.items() if k not in SAME_RESULTS.get(group, ())}
        if isinstance(part, dict)
        else part
        for group, part in values.items()
    }
