"""Scalars for TensorBoard, written by whoever calls: no thread is there to fail on its own."""

import os
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

FORMAT = "brain.Event:2"


class Board:
    """An events file of its own in ``folder``.

    Args:
      folder: where TensorBoard looks; it is there.
      first: the first step that is written; TensorBoard forgets those that earlier files have from
        there on.

    Raises:
      OSError: it cannot be written; so do all methods.
    """

    def __init__(self, folder: Path, first: int):
        # The suffix keeps apart what would share a name: it has the time in whole seconds only.
        self._writer = EventsWriter(os.fspath(folder / "events"), f".{first - 1}")
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=first, file_version=FORMAT))
        self._write(Event(step=first, session_log=start))

    def add(self, name: str, value: float, step: int) -> None:
        """Writes one point of a curve."""
        self._write(Event(step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Has what was written in the file."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes, and closes the file."""
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
