"""Checkpoints of a training state with Orbax: atomic, asynchronous, verified, the last two kept."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from spvit_jax import hosts
from spvit_jax.remote import absolute, is_remote, raise_transient
from spvit_jax.training import sums
from spvit_jax.training.quiet import quiet
from spvit_jax.training.step import TrainState

log = logging.getLogger(__name__)
CHECKSUM = "checksum"  # Orbax's files alone let flipped bits in the numbers pass
METADATA = "_CHECKPOINT_METADATA"  # Orbax's, with the checksum in it
BESIDE = 4096  # bytes, at most about, that a checkpoint takes besides each array's
ASIDE = ".damaged"  # the end of the name of a checkpoint that Orbax cannot even list


class CheckpointError(RuntimeError):
    """No checkpoint could be written or read; the message says which and what to do."""


class Checkpoints:
    """The checkpoints of one stage, in one directory. A context manager: leaving waits for writes.

    Two are kept, so that a damaged last one costs an interval and not the run. On a disk, the files
    of a finished one are summed up as well: an object store does that itself.
    """

    def __init__(self, directory: str | os.PathLike[str], every: int):
        self.directory = absolute(directory)
        self.every = every
        self._unreadable: list[int] = []
        self._stack = contextlib.ExitStack()
        with self._explained("opened"):
            self.directory.mkdir(parents=True, exist_ok=True)
            with hosts.together(OSError):
                failures = self._set_aside() if self._sums_up else []
            self._aside = hosts.from_first(failures)
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True),
            )

    def __enter__(self) -> "Checkpoints":
        self._stack.enter_context(quiet())
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack, self._explained("written"):
            self._manager.close()
            self._sum_up()

    @property
    def steps(self) -> list[int]:
        """Steps that have a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: TrainState, *, wait: bool = False) -> None:
        """Begins to save; with ``wait``, also ends. The state may be donated at once.

        Raises:
          CheckpointError: this one, or the one before it, could not be written.
          OSError: it cannot be now, and may be in a while.
        """
        values = jax.tree.map(_filled, _plain(state))
        with self._explained("written"):
            self._manager.wait_until_finished()
            self._sum_up()
            while self._unreadable:  # they would take the places of good ones
                self._manager.delete(self._unreadable.pop())
            for path in self._damaged() if self._sums_up else ():
                shutil.rmtree(path)
            self._aside = []
            self._check_space(values)
            self._manager.save(
                step,
                args=ocp.args.StandardSave(values),
                custom_metadata={CHECKSUM: _checksum(values)},
                force=True,
            )
            if wait:
                self._manager.wait_until_finished()

    def restore(self, template: TrainState, shards: TrainState) -> TrainState | None:
        """The newest state that all processes can read, or None if nothing was ever saved.

        Args:
          template: for its shapes and types; may be abstract.
          shards: the sharding of each of its arrays, whatever it was when they were saved.

        Raises:
          CheckpointError: there are checkpoints, but none fits or can be read.
          OSError: one cannot be read now, and may be in a while.
        """
        wanted = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            _plain(template),
            _plain(shards),
        )
        failures = list(self._aside)
        for step in reversed(self.steps):
            damage = self._damage(step)  # of which Orbax would print pages
            with hosts.together(OSError):
                state, failure = (None, damage) if damage else self._tried(step, wanted)
            elsewhere = [reason for reason in hosts.from_all(failure) if reason]
            if state is not None and not elsewhere:
                return state
            failures.append(f"step {step}: {elsewhere[0]}")
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

    def _damage(self, step: int) -> str:
        """What is wrong with the files of ``step`` by their sums, for all processes."""
        with hosts.together(OSError):
            damage = sums.damage(self._folder(step)) if self._sums_up else ""
        return hosts.from_first(damage)

    def _tried(self, step: int, wanted: dict[str, Any]) -> tuple[TrainState | None, str]:
        """The state of ``step``, or why it cannot be read."""
        abstract = jax.tree.map(_abstract, wanted)
        try:
            values = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
            written = self._manager.metadata(step).custom_metadata or {}
            if CHECKSUM not in written:
                return None, "its checksum is missing"
            if written[CHECKSUM] != _checksum(values):
                return None, "its numbers are not those that were saved"
            return TrainState(**jax.tree.map(_emptied, wanted, values)), ""
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise_transient(error)
            return None, _reason(error)

    def _check_space(self, values: dict[str, Any]) -> None:
        """Raises OSError where the disk has no room for a checkpoint of ``values``.

        Orbax would begin to write, and each of its threads print a page.
        """
        leaves = jax.tree.leaves(values)
        needed = sum(leaf.nbytes for leaf in leaves) + BESIDE * (len(leaves) + 100)
        free = shutil.disk_usage(self.directory).free if self._sums_up else needed
        if hosts.from_first(free < needed):
            raise OSError(
                errno.ENOSPC, f"one takes {needed / 1e6:,.1f} MB, and there is less on the disk"
            )

    @property
    def _sums_up(self) -> bool:
        """Whether this process looks after the files: the first one does, on a disk."""
        return jax.process_index() == 0 and not is_remote(self.directory)

    def _folder(self, step: int) -> Path:
        return Path(self.directory, str(step))

    def _damaged(self) -> list[Path]:
        return sorted(Path(self.directory).glob(f"*{ASIDE}"))

    def _sum_up(self) -> None:
        """Notes the sums of what is finished and has none."""
        for step in self.steps if self._sums_up else ():
            if not sums.noted(self._folder(step)) and step not in self._unreadable:
                sums.note(self._folder(step))

    def _set_aside(self) -> list[str]:
        """Renames checkpoints that Orbax cannot list; with them, it lists none of the others."""
        for path in Path(self.directory).iterdir():
            if path.name.isdecimal() and not _lists(path):
                os.replace(path, path.with_name(path.name + ASIDE))
        failures = [
            f"step {path.name.removesuffix(ASIDE)}: its {METADATA} is damaged"
            for path in self._damaged()
        ]
        for failure in failures:
            log.warning("unreadable checkpoint in %s, %s", self.directory, failure)
        return failures

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds
            raise_transient(error)
            raise CheckpointError(
                f"checkpoints in {self.directory} cannot be {what}: {_reason(error)}; free some"
                " space, or make the folder writable, and run the same command again"
            ) from error


def _lists(folder: Path) -> bool:
    """Whether Orbax can list a checkpoint by its file of metadata, if it has one."""
    if not (folder / METADATA).exists():
        return True
    try:
        values = json.loads((folder / METADATA).read_text())
        return CHECKSUM in values["custom_metadata"] and not sums.damage(folder, METADATA)
    except (OSError, ValueError, RecursionError, TypeError, KeyError) as error:
        raise_transient(error)
        return False


def _reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def _plain(state: TrainState) -> dict[str, Any]:
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def _filled(leaf: jax.Array) -> jax.Array:
    """What is saved of an array: of one without elements a zero, since Orbax takes no such.

    A block without FFN units has some.
    """
    return leaf if leaf.size else jax.device_put(np.zeros(1, leaf.dtype), _spread(leaf.sharding))


def _abstract(wanted: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """What ``_filled`` saves of such an array."""
    if wanted.size:
        return wanted
    return jax.ShapeDtypeStruct((1,), wanted.dtype, sharding=_spread(wanted.sharding))


def _emptied(wanted: jax.ShapeDtypeStruct, saved: jax.Array) -> jax.Array:
    """The array that ``_filled`` saved."""
    if wanted.size:
        return saved
    return jax.device_put(np.zeros(wanted.shape, wanted.dtype), wanted.sharding)


def _spread(sharding: Any) -> Any:
    """A sharding for a single number on the same devices."""
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding


def _checksum(values: dict[str, Any]) -> int:
    """A sum over all bits, the same however the arrays are divided; each flipped bit changes it."""
    return int(_weighted_bits(jax.tree.leaves(values)))


@jax.jit
def _weighted_bits(leaves: list[jax.Array]) -> jax.Array:
    """The sum modulo 2^32 of each word times an odd number that depends on its place."""
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(leaves):
        word = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
        bits = leaf if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, word)
        bits = bits.astype(jnp.uint32).ravel()
        places = jax.lax.iota(jnp.uint32, bits.size) + jnp.uint32(number)
        total += (bits * (2 * places + 1)).sum(dtype=jnp.uint32)
    return total
