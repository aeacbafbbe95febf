"""A ``jax.profiler`` trace of some steps, for TensorBoard's profile page or Perfetto."""

import jax

SKIPPED, STEPS = 5, 5  # steps before it, which compile and fill the input's buffers; steps in it


class Trace:
    """A trace of a few steps on process 0, written to ``folder``; with "" it is none.

    A context manager: leaving it ends a trace that is under way.
    """

    def __init__(self, folder: str):
        self._folder = folder if jax.process_index() == 0 else ""
        self._taken = 0
        self._running = False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def before_step(self) -> None:
        """To be called before each step; begins and ends the trace where it is due."""
        if self._folder and self._taken == SKIPPED:
            jax.profiler.start_trace(self._folder)
            self._running = True
        if self._taken == SKIPPED + STEPS:
            self._stop()
        self._taken += 1

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
