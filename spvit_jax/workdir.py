"""The folder of one run: whose it is, and files that are there whole or not at all.

It may be on ``gs://``. Only process 0 of several writes, and what one reads all of them read.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from etils import epath

from spvit_jax import hosts, lock
from spvit_jax.config import Config, ConfigError
from spvit_jax.remote import ADVICE, absolute, is_remote, publish

CONFIG, VERSIONS, BEGAN = "config.json", "versions.json", "began.json"
NO_RESULTS = {CONFIG, VERSIONS, BEGAN, "compilation_cache"}  # there before anything is done
SAME_RESULTS = {"sharding": {"fsdp"}, "data": {"workers"}}  # fields that may change on the way
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
SEEN_SECONDS = 20  # until what process 0 writes is to be seen by all
REMEDIES = {  # of a folder that cannot be written, remote or not
    False: "choose a folder you own",
    True: ADVICE,
}


class Workdir:
    """Where a run keeps what it has."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = absolute(path)

    def __truediv__(self, name: str) -> epath.Path:
        return self.path / name

    def exists(self, name: str) -> bool:
        """Whether process 0 sees the file ``name``, for all processes."""
        return hosts.from_first(jax.process_index() == 0 and (self / name).exists())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object that process 0 reads in the JSON file ``name``, for all; None without one.

        Raises:
          ConfigError: the file is damaged.
        """
        first = jax.process_index() == 0
        values, damage = hosts.from_first(self._read(name) if first else None)
        if damage:
            raise ConfigError(damage)
        return values

    def _read(self, name: str) -> tuple[dict[str, Any] | None, str]:
        """What the JSON file ``name`` holds, and what is wrong with it."""
        file = self / name
        if not file.exists():
            return None, ""
        try:
            values = json.loads(file.read_text())
            if not isinstance(values, dict):
                raise ValueError(f"expected a JSON object, got {str(values)[:80]}")
        except (ValueError, RecursionError) as error:
            return None, (
                f"{file} is damaged ({error}); remove it if the folder is this run's, or choose"
                " another --workdir"
            )
        return values, ""

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Has ``save`` write a local file, which then becomes ``name``; whole or not at all."""
        if jax.process_index() == 0:
            with tempfile.TemporaryDirectory(
                prefix=".", dir=None if is_remote(self.path) else self.path
            ) as folder:
                local, final = Path(folder, name), self / name
                local.parent.mkdir(parents=True, exist_ok=True)
                save(local)
                if not is_remote(self.path):
                    final.parent.mkdir(parents=True, exist_ok=True)
                publish(local, final)

    def write_json(self, name: str, values: Any) -> None:
        """A JSON file, whole or not at all."""
        self.write(name, lambda path: path.write_text(json.dumps(values, indent=1) + "\n"))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this run alone.

        Raises:
          ConfigError: it cannot be written, or another run is at work in it.
        """
        with contextlib.ExitStack() as stack:
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
        """Says why the folder cannot be written; raises what is no such error."""
        remote = is_remote(self.path)
        if not remote and not isinstance(error, OSError):
            raise error
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return f"cannot write to --workdir={self.path} ({reason}); {REMEDIES[remote]}"

    def began(self, facts: dict[str, Any]) -> None:
        """Notes what a run began from, or compares it with what is noted.

        Args:
          facts: nested, of JSON's types, the same on all processes.

        Raises:
          ConfigError: it is something else now; names all.
        """
        before = self.read_json(BEGAN)
        changed = [] if before is None else hosts.differences(before, facts)
        if changed:
            raise ConfigError(
                f"what the run in {self.path} began from has changed: {'; '.join(changed)}. Put"
                " it back, or choose another --workdir"
            )
        if before is None:
            self.write_json(BEGAN, facts)

    def claim(self, config: Config) -> None:
        """Makes the folder this configuration's, and notes code, libraries and devices.

        Raises:
          ConfigError: it cannot be written, holds results of another configuration, or is not the
            same folder on every process.
        """
        problem = hosts.from_first(self._claim(config) if jax.process_index() == 0 else "")
        if problem:
            raise ConfigError(problem)
        if jax.process_count() > 1:
            self._check_shared()

    def _claim(self, config: Config) -> str:
        """Claims the folder; returns what stands against it."""
        try:
            self._make()
            found, damage = self._read(CONFIG)
            if damage:
                return damage
            changed = _differences(found, config)
            if changed and any(map(_is_result, self.path.iterdir())):
                return (
                    f"{self.path} belongs to a run with another configuration"
                    f" ({'; '.join(changed)}); go on with that one or choose another --workdir"
                )
            if changed:
                (self / BEGAN).unlink(missing_ok=True)
            self.write_json(CONFIG, dataclasses.asdict(config))
            self.write_json(VERSIONS, versions())
        except Exception as error:  # object stores raise many kinds
            return self._unwritable(error)
        return ""

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


class LocalCopy:
    """A local folder for files that grow: the run's own, or one beside a remote one.

    Object stores cannot append, so what is written there reaches a remote folder whole, at each
    ``push``.
    """

    def __init__(self, folder: epath.Path):
        self._folder, self._remote = folder, is_remote(folder)
        self.path = Path(tempfile.mkdtemp(prefix="spvit_")) if self._remote else Path(folder)
        self.path.mkdir(parents=True, exist_ok=True)

    def fetch(self, name: str) -> None:
        """Has the remote's file ``name``, if it has one, in the local folder as well."""
        if self._remote and (self._folder / name).exists():
            (self.path / name).write_bytes((self._folder / name).read_bytes())

    def push(self) -> None:
        """Brings the remote up to date."""
        for file in self.path.rglob("*") if self._remote else ():
            if file.is_file():
                publish(file, self._folder / file.relative_to(self.path))

    def close(self) -> None:
        """Removes the local files of a remote folder."""
        if self._remote:
            shutil.rmtree(self.path)


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


def _differences(found: dict[str, Any] | None, config: Config) -> list[str]:
    """Every field that another configuration, if there is one, has otherwise and that counts."""
    now = dataclasses.asdict(config)
    return [] if found is None else hosts.differences(_decisive(found), _decisive(now))


def _decisive(values: dict[str, Any]) -> dict[str, Any]:
    """A configuration without ``SAME_RESULTS``."""
    return {
        group: {k: v for k, v in part.items() if k not in SAME_RESULTS.get(group, ())}
        if isinstance(part, dict)
        else part
        for group, part in values.items()
    }
