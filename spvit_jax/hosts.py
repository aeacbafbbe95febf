"""Several processes as one run: finding each other, agreeing, and stopping at the same step.

What is said here is said by all processes: each of them has to call it, in the same order. With
one process it costs nothing.
"""

import atexit
import contextlib
import json
import multiprocessing
import os
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from spvit_jax.remote import is_transient, public
from spvit_jax.signals import PATIENCE, Signals

LOST_SECONDS = 60  # without a sign of life, after which a process counts as lost
LEAVE_SECONDS = 2  # that process 0 gives the others where it cannot go on
LAST_SECONDS = 0.3  # that the others end before process 0 after a signal
LONGEST = 2**31 - 1  # milliseconds that a process waits for a signal to another one


class HostError(RuntimeError):
    """Processes that cannot work together; the message says why and what to do."""


class Passing(HostError, ConnectionError):
    """Processes that cannot work together now, and may in a while."""


def connect(coordinator: str = "", processes: int = 0, process: int = -1) -> None:
    """Joins the processes of this run; to be called before anything touches a device.

    On TPU pods, GKE's TPU slices, under SLURM and Open MPI, JAX finds the others by itself.
    Elsewhere all three arguments are needed. With none of them the run is this process alone.

    Args:
      coordinator: ``HOST:PORT`` of process 0, within reach of all.
      processes: how many there are.
      process: the number of this one, from 0.

    Raises:
      HostError: only some of the arguments, impossible ones, or the others cannot be reached.
    """
    flags = (bool(coordinator), processes > 0, process >= 0)
    if any(flags) and not all(flags):
        raise HostError(
            "--coordinator=HOST:PORT, --processes=N and --process=I (from 0) belong together: give"
            " all three, or none where JAX finds the processes by itself (TPU pods, SLURM)"
        )
    options: dict[str, Any] = {"heartbeat_timeout_seconds": LOST_SECONDS}
    if all(flags):
        if process >= processes or not coordinator.rpartition(":")[2].isdecimal():
            raise HostError(
                f"--process must be below --processes and --coordinator of the form HOST:PORT; got"
                f" {process}, {processes} and {coordinator}"
            )
        options |= {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError, KeyError) as error:
        if not any(flags) and "coordinator_address should be defined" in str(error):
            return  # no cluster was found
        raise HostError(
            f"the processes of this run cannot be joined: {str(error).strip()[:300]}; check that"
            " each of them was started and reaches process 0 at its port"
        ) from error


def from_first(value: Any) -> Any:
    """Process 0's ``value``, which JSON can write, on every process."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value if jax.process_index() == 0 else None).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text))))
    padded = np.zeros(_rounded(size), np.uint8)
    if jax.process_index() == 0:
        padded[:size] = np.frombuffer(text, np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:size].tobytes())


def from_all(value: Any) -> list[Any]:
    """Every process's ``value``, which JSON can write, in their order."""
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
    padded = np.zeros(_rounded(int(sizes.max())), np.uint8)
    padded[: len(text)] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def agree(facts: dict[str, Any]) -> None:
    """Compares ``facts``, nested and of JSON's types, with those of the other processes.

    Raises:
      HostError: they are not the same everywhere; on every process, with what differs where.
    """
    first, *others = from_all(facts)
    lines = [
        f"process {number}: {difference}"
        for number, other in enumerate(others, start=1)
        for difference in differences(first, other)
    ]
    if lines:
        more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
        raise HostError(
            "the processes of this run differ (process 0's value first):\n  "
            + "\n  ".join(lines[:20])
            + more
            + "\ngive all of them the same command, files and code"
        )


def agree_on(what: str, arrays: Any) -> None:
    """Compares ``arrays``, a pytree that each process has read for itself and that is ``what``.

    Global arrays are made of them, each process giving its own: what differs would go unnoticed.

    Raises:
      HostError: they are not the same everywhere, to the bit.
    """
    if jax.process_count() > 1:
        agree({f"CRC-32 of what is in {what}": checksum(arrays)})


def checksum(arrays: Any) -> int:
    """The CRC-32 of a pytree's arrays, in their order."""
    crc = 0
    for leaf in jax.tree.leaves(arrays):
        crc = zlib.crc32(np.asarray(leaf).tobytes(), crc)
    return crc


@contextlib.contextmanager
def together(*kinds: type[Exception]) -> Iterator[None]:
    """Surrounds what each process does for itself: an error of these ``kinds`` on one ends all.

    Raises:
      HostError: where another process had one, with what it says; ``Passing`` where that may pass.
    """
    error = None
    try:
        yield
    except kinds as raised:
        error = raised
    errors = from_all(None if error is None else (str(error), is_transient(error)))
    if error is not None:
        raise error
    failures = [(number, *found) for number, found in enumerate(errors) if found is not None]
    if failures:
        kind = Passing if all(passes for *_, passes in failures) else HostError
        lines = [f"process {number}: {text}" for number, text, _ in failures]
        raise kind("not every process can go on:\n  " + "\n  ".join(lines[:20]))


def differences(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    """``"group.field: old, now new"`` of everything that is not the same in two nested dicts."""
    changes = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if {type(old), type(new)} in ({dict}, {dict, type(None)}):
            changes += differences(old or {}, new or {}, f"{path}{name}.")
        elif json.dumps(old) != json.dumps(new):
            old, new = (public(v) if isinstance(v, str) else v for v in (old, new))
            changes.append(f"{path}{name}: {old}, now {new}")
    return changes


def leave(code: int) -> None:
    """Ends this process with ``code`` where others may be waiting for it, or for what it lost.

    An orderly end waits until the others end as well. Process 0 goes last: without it, the others
    are ended by force, also those that are about to report the same error.
    """
    if jax.process_count() == 1:
        return
    for child in multiprocessing.active_children():  # the input's workers
        child.terminate()
    if jax.process_index() == 0:
        time.sleep(LEAVE_SECONDS)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Stop:
    """Says whether the run is to stop, with one answer for all processes.

    Each call passes this process's signals on to the others and answers with what was known at
    the call before: so the agreement travels while the devices compute, and costs no waiting.
    """

    def __init__(self, signals: Signals):
        self._signals = signals
        if jax.process_count() > 1:
            _share(signals)
        self._calls = 0
        self._known: jax.Array | None = None
        self._stopped = False
        devices = Mesh(np.array(jax.devices()), "all")
        self._rows = NamedSharding(devices, PartitionSpec("all"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(devices, PartitionSpec()))

    def __call__(self) -> bool:
        self._signals.looked()
        self._signals.obeyed = self._asked()
        return self._signals.obeyed

    def unsaved(self, steps: bool) -> None:
        """Notes whether steps have been taken that a stop saves."""
        self._signals.unsaved = steps

    def _asked(self) -> bool:
        if jax.process_count() == 1:
            return bool(self._signals.received)
        self._calls += 1
        noticed = multihost_utils.reached_preemption_sync_point(self._calls)
        mine = np.full(jax.local_device_count(), bool(self._signals.received) or noticed)
        flags = jax.make_array_from_process_local_data(self._rows, mine)
        before, self._known = self._known, self._any(flags)
        self._stopped = self._stopped or (before is not None and bool(before))
        return self._stopped


def _share(signals: Signals) -> None:
    """Has a signal to one process obeyed by all of them, whatever their main threads are at.

    JAX has no public way to say something outside of a program that all of them run; Orbax takes
    this one as well.
    """
    key, all_well = "spvit_jax/signal", 0
    client: Any = distributed.global_state.client

    def tell(number: int) -> None:
        with contextlib.suppress(Exception):  # of a run that falls apart
            client.key_value_set(key, str(number), allow_overwrite=True)

    def wait() -> None:
        with contextlib.suppress(Exception):
            number = int(client.blocking_key_value_get(key, LONGEST))
            if number != all_well:
                signals.hear(number)

    signals.tell = tell
    signals.patience = PATIENCE - (LAST_SECONDS if jax.process_index() else 0)
    threading.Thread(target=wait, daemon=True).start()
    atexit.register(tell, all_well)  # a thread that waits may not see the end of Python


def unsaved(should_stop: Callable[[], bool]) -> Callable[[bool], None]:
    """Whom to tell whether steps have been taken that a stop saves; none but a ``Stop`` cares."""
    return should_stop.unsaved if isinstance(should_stop, Stop) else lambda steps: None


def _rounded(size: int) -> int:
    """The next power of two, so that few lengths are ever compiled."""
    return 1 << (size - 1).bit_length()
