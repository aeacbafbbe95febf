"""The folder of one run: whose it is, and files that are there whole or not at all."""

import dataclasses
import json
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from spvit_jax.config import Config, ConfigError

CONFIG, VERSIONS = "config.json", "versions.json"
NO_RESULTS = {CONFIG, VERSIONS, "compilation_cache"}  # what may be there before anything is done
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


class Workdir:
    """Where a run keeps what it has. Only process 0 of several writes."""

    def __init__(self, path: Path):
        self.path = path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def write(self, name: str, save: Callable[[Path], object]) -> None:
        """Has ``save`` write the file ``name``."""
        if jax.process_index() == 0:
            save(self.path / name)

    def write_json(self, name: str, values: Any) -> None:
        """A JSON file, whole or not at all."""
        self.write(name, lambda path: _replace(path, json.dumps(values, indent=1) + "\n"))

    def claim(self, config: Config) -> None:
        """Makes the folder this configuration's, and notes libraries and devices.

        Raises:
          ConfigError: it cannot be written, or holds results of another configuration.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            changed = self._differences(config)
            if changed and any(file.name not in NO_RESULTS for file in self.path.iterdir()):
                raise ConfigError(
                    f"{self.path} belongs to a run with another configuration"
                    f" ({'; '.join(changed)}); go on with that one or choose another --workdir"
                )
            self.write_json(CONFIG, dataclasses.asdict(config))
            self.write_json(VERSIONS, _versions())
        except OSError as error:
            raise ConfigError(
                f"cannot write to --workdir={self.path} ({error.strerror}); choose a folder you own"
            ) from error

    def _differences(self, config: Config) -> list[str]:
        """Every field of ``config`` that is another one in the folder's."""
        file = self.path / CONFIG
        if not file.exists():
            return []
        try:
            return _differences(json.loads(file.read_text()), dataclasses.asdict(config))
        except ValueError as error:
            raise ConfigError(
                f"{file} is damaged ({error}); remove it if the folder is this run's, or choose"
                " another --workdir"
            ) from error


def _differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{path}{name}.")
        elif json.dumps(old) != json.dumps(new):
            found.append(f"{path}{name}: {old}, now {new}")
    return found


def _versions() -> dict[str, Any]:
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in LIBRARIES},
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in devices],
        "processes": jax.process_count(),
    }


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
