"""``Signals``: SIGINT and SIGTERM, obeyed in seconds whatever the main thread is at.

Python lets its main thread see a signal between two of its instructions, and a compilation or a
decomposition of a matrix is a single one. So a thread of its own hears them, and ends the process
where the run does not end itself.
"""

import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

CAUGHT = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 1.5  # seconds that a run has to end itself
_FLUSH = 0.3  # seconds for what is printed and not shown yet
_FIRST = b"\nstopping once this step is saved; a second signal stops at once\n"
_CUT = b"stopped in the midst of what begins again; the same command goes on from there\n"


class Signals:
    """What was received, and what the run says of itself meanwhile.

    Attributes:
      received: number of the first signal; empty before.
      tell: passes it on to the other processes of the run, which call ``hear``.
      patience: seconds that the run has, after a signal or after it last looked, to end itself.
      unsaved: whether it has taken steps that are saved if it ends itself; then it has longer.
      obeyed: whether it is ending itself; likewise.
    """

    def __init__(self) -> None:
        self.received: list[int] = []
        self.tell: Callable[[int], object] = lambda number: None
        self.patience = PATIENCE
        self.unsaved = False
        self.obeyed = False
        self._looked = 0.0
        self._own = False  # whether a signal was to this process

    def listen(self) -> None:
        """Begins to hear signals; to be called by the main thread."""
        heard, self._writer = socket.socketpair()  # a pipe would not do on Windows
        self._writer.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        self.catch()

    def catch(self) -> None:
        """Takes the signals again from who has taken them since."""
        for number in CAUGHT:
            signal.signal(number, lambda number, frame: None)

    def looked(self) -> None:
        """Notes that the run has looked whether it is to stop."""
        self._looked = time.monotonic()

    def hear(self, number: int) -> None:
        """Obeys a signal that was to another process; it is the first one or none."""
        if not self.received:
            self._begin(number)
            self._writer.send(b"\0")  # wakes the thread

    def _listen(self, heard: socket.socket) -> None:
        while True:
            if select.select([heard], [], [], 0.1 if self.received else None)[0]:
                self._hear(heard.recv(1)[0])
            if not self.received or self.unsaved or self.obeyed:
                self.looked()
            elif time.monotonic() - self._looked > self.patience:
                os.write(2, _CUT)
                self._end()

    def _hear(self, number: int) -> None:
        if number not in CAUGHT:
            return
        if self._own:
            self._end()
        self._own = True
        if not self.received:
            self._begin(number)
            threading.Thread(target=self.tell, args=(number,), daemon=True).start()

    def _begin(self, number: int) -> None:
        self.looked()
        self.received.append(number)
        os.write(2, _FIRST)  # stderr; print could be interrupting itself

    def _end(self) -> None:
        """Ends the process at once; what it has saved is whole, as after kill -9."""
        for child in multiprocessing.active_children():  # the input's workers
            child.terminate()
        flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # who reads may be slow
        flush.start()
        flush.join(_FLUSH)
        os._exit(128 + self.received[0])
