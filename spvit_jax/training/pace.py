"""How fast steps go, and how much of that is waiting for input."""

import contextlib
import time
from collections.abc import Iterator


class Pace:
    """A clock over steps; evaluations and checkpoints do not count."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._since, self._waited, self._paused, self._steps = time.perf_counter(), 0.0, 0.0, 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Times the asking for a step's input."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start
        self._steps += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Times what is not part of a step."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def lap(self) -> dict[str, float]:
        """Seconds a step since the last lap, and the share of them spent waiting."""
        seconds = time.perf_counter() - self._since - self._paused
        metrics = {
            "step_seconds": seconds / max(self._steps, 1),
            "input_wait": self._waited / max(seconds, 1e-9),
        }
        self._begin()
        return metrics
