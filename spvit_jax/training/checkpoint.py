"""Checkpoints of a training state with Orbax: atomic, asynchronous, verified, the last two kept."""

import contextlib
import dataclasses
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from spvit_jax.training.step import TrainState

log = logging.getLogger(__name__)
CHECKSUM = "crc32"  # Orbax's files alone let flipped bits in the numbers pass


class CheckpointError(RuntimeError):
    """No checkpoint could be written or read; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one stage, in one directory. A context manager: leaving waits for writes.

    Two are kept, so that a damaged last one costs an interval and not the run.
    """

    def __init__(self, directory: Path, every: int):
        self.directory = directory.absolute()
        self.every = every
        self._unreadable: list[int] = []
        with self._explained("opened"):
            self.directory.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        with self._explained("written"):
            self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, *, wait: bool = False) -> None:
        """Begins to save; with ``wait``, also ends. The state may be donated at once.

        Raises:
          CheckpointError: this one, or the one before it, could not be written.
        """
        values = _plain(state)
        with self._explained("written"):
            while self._unreadable:  # they would take the places of good ones
                self._manager.delete(self._unreadable.pop())
            self._manager.save(
                step,
                args=ocp.args.StandardSave(values),
                custom_metadata={CHECKSUM: _checksum(values)},
                force=True,
            )
            if wait:
                self._manager.wait_until_finished()

    def restore(self, template: TrainState, sharding: Sharding) -> TrainState | None:
        """The newest readable state, or None if nothing was ever saved.

        Raises:
          CheckpointError: there are checkpoints, but none fits or can be read.
        """
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            _plain(template),
        )
        failures = []
        for step in reversed(self.steps):
            try:
                return self._read(step, abstract)
            except Exception as error:  # Orbax and TensorStore raise many kinds
                reason = str(error).strip().partition("\n")[0][:300]
                failures.append(f"step {step}: {type(error).__name__}: {reason}")
                log.warning("unreadable checkpoint in %s, %s", self.directory, failures[-1])
                self._unreadable.append(step)
        if not failures:
            return None
        raise CheckpointError(
            f"no checkpoint in {self.directory} fits this run:\n  "
            + "\n  ".join(failures)
            + "\nuse the config they were written with, or another --workdir; if the disk damaged"
            " them, remove that folder, and the stage begins again"
        )

    def _read(self, step: int, abstract: dict[str, Any]) -> TrainState:
        values = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        written = self._manager.metadata(step).custom_metadata or {}
        if CHECKSUM in written and written[CHECKSUM] != _checksum(values):
            raise CheckpointError("its numbers are not those that were saved")
        return TrainState(**values)

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise CheckpointError(
                f"checkpoints in {self.directory} cannot be {what}: {type(error).__name__}:"
                f" {str(error)[:300]}; free some space, or make the folder writable, and run the"
                " same command again"
            ) from error


def _plain(state: TrainState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def _checksum(values: dict[str, Any]) -> int:
    checksum = 0
    for leaf in jax.tree.leaves(values):
        checksum = zlib.crc32(np.asarray(leaf).tobytes(), checksum)
    return checksum
