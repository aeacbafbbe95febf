"""Checkpoints of a training state with Orbax: atomic, asynchronous, the last two kept."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding

from spvit_jax.training.step import TrainState

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """No checkpoint could be written or read; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one stage, in one directory. A context manager: leaving waits for writes.

    Two are kept, so that a damaged last one costs an interval and not the run.
    """

    def __init__(self, directory: Path, every: int):
        self.directory = directory.absolute()
        self.every = every
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, *, wait: bool = False) -> None:
        """Begins to save; with ``wait``, also ends. The state may be donated at once."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(_plain(state)), force=True)
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
                values = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
                return TrainState(**values)
            except Exception as error:  # Orbax and TensorStore raise many kinds
                failures.append(f"step {step}: {type(error).__name__}: {str(error)[:300]}")
                log.warning("checkpoint of %s is unreadable, trying an older one", failures[-1])
        if failures:
            raise CheckpointError(
                f"no checkpoint in {self.directory} fits this run:\n  " + "\n  ".join(failures)
                + "\nuse the config they were written with, or another --workdir"
            )
        return None


def _plain(state: TrainState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
