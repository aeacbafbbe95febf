"""A ``jax.profiler`` trace of some steps, for TensorBoard's profile page or Perfetto."""

import jax

from spvit_jax.local_copy import LocalCopy
from spvit_jax.remote import absolute

SKIPPED, STEPS = 5, 5  # steps before it, which compile and fill the input's buffers; steps in it


class Trace:
    """A trace of a few steps on process 0, in ``folder``, local or remote; with "" it is none.

    A context manager: leaving it ends a trace that is under way.
    """

    def __init__(self, folder: str):
        self._folder = folder if jax.process_index() == 0 else ""
        self._taken = 0
        self._written: LocalCopy | None = None  # while it is under way

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def before_step(self) -> None:
        """To be called before each step; begins and ends the trace where it is due."""
        if self._folder and self._taken == SKIPPED:
            self._written = LocalCopy(absolute(self._folder))
            jax.profiler.start_trace(str(self._written.path))
        if self._taken == SKIPPED + STEPS:
            self._stop()
        self._taken += 1

    def _stop(self) -> None:
        if self._written:
            jax.profiler.stop_trace()
            self._written.push()
            self._written.close()
            self._written = None
