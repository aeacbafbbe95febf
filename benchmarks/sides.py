"""A framework's contestants in a process of their own, which may fail without taking others along.

A side's ``prepare(*arguments)`` compiles and returns ``(begin functions, what failed)``, both by
contestant. ``begin()`` puts a contestant on the device and returns ``(run, facts)``;
``run(count)`` does so many steps and waits for them.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Run = Callable[[int], None]
Begin = Callable[[], tuple[Run, dict[str, Any]]]
Prepared = tuple[dict[str, Begin], dict[str, str]]

NO_TIME = "no time left"
STOPPING = 3.0  # seconds for a process to end by itself


class Failed(Exception):
    """Why there is no number."""


class Side:
    """A process that prepares contestants and runs them one after the other, as it is asked to."""

    def __init__(self, prepare: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")  # a forked process may not use a device
        self._pipe, theirs = context.Pipe()
        work = (theirs, prepare, arguments)
        self._process = context.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        theirs.close()  # so that its end is noticed here
        self.ended = False

    def hear(self, until: float) -> Any:
        """Waits for an answer until ``time.monotonic()`` is ``until``; a late process is ended.

        Raises:
          Failed: it could not be done, the process has ended, or time is up.
        """
        try:
            if not self._pipe.poll(max(until - time.monotonic(), 0)):
                self._process.kill()
                self.close()
                raise Failed(NO_TIME)
            good, answer = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            self.close()
            raise Failed(f"its process ended with exit code {code}") from None
        if not good:
            raise Failed(answer)
        return answer

    def ask(self, name: str, count: int, until: float) -> Any:
        """Runs ``count`` steps of a contestant: their seconds. 0 begins it: its facts.

        Raises:
          Failed: as ``hear`` does.
        """
        with contextlib.suppress(OSError):  # a process that has ended, which hear says
            self._pipe.send((name, count))
        return self.hear(until)

    def close(self) -> None:
        """Ends the process: one that is at work by force."""
        if not self.ended:
            self.ended = True
            self._pipe.close()
            self._process.join(STOPPING)
            self._process.kill()
            self._process.join()


def _serve(pipe: Connection, prepare: Callable[..., Any], arguments: tuple) -> None:
    """Answers ``(True, value)`` or ``(False, reason)``: to its start first, then to requests."""
    try:
        begin, answer = prepare(*arguments)
        pipe.send((True, answer))
    except Exception as error:
        pipe.send((False, reason(error)))
        return
    runs: dict[str, Run] = {}
    while True:
        try:
            name, count = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        try:
            if count:
                start = time.perf_counter()
                runs[name](count)
                answer = time.perf_counter() - start
            else:
                runs[name], answer = begin[name]()
                runs[name](1)  # warm-up
            pipe.send((True, answer))
        except Exception as error:
            runs.pop(name, None)
            begin.pop(name)
            pipe.send((False, reason(error)))


def reason(error: BaseException | None) -> str:
    """Says in a line what went wrong."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if "RESOURCE_EXHAUSTED" in text or "OutOfMemory" in text:
        return "out of memory"
    return text if len(text) <= 160 else f"{text[:157]}..."
