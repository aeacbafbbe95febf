"""What a person sees while the pipeline runs: a line per stage, and bars with rate and ETA."""

import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO, cast

import jax
from tqdm.auto import tqdm  # a notebook's own bar, in a notebook

_LINE_SECONDS = 10.0  # between lines of a bar where there is no terminal to redraw it on
_BAR = "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} "
_LINE = "{desc} {percentage:3.0f}% {n_fmt}/{total_fmt} "
_TIMES = "[{elapsed}<{remaining}, {speed}{postfix}]"
_NOTEBOOK = any(kind.__name__ == "tqdm_notebook" for kind in tqdm.__mro__)


class Bar(tqdm):
    """A tqdm bar over steps whose rate is in images/s where a step has images, else in it/s."""

    def __init__(self, *args: Any, images: int = 0, **kwargs: Any) -> None:
        self._images = images
        super().__init__(*args, **kwargs)

    def show(self, values: Mapping[str, float]) -> None:
        """Puts ``values`` behind the bar, four digits each, when it is next drawn."""
        text = {name: f"{float(value):.4g}" for name, value in values.items()}
        self.set_postfix(text, refresh=False)  # a redrawing at every step would flood a log file

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's fields and ``speed``, over the steps of this run only."""
        fields: dict[str, Any] = super().format_dict
        done = (fields["n"] or 0) - (fields.get("initial") or 0)
        if not done or not fields["elapsed"]:
            return {**fields, "speed": "?"}
        rate = fields["rate"] or done / fields["elapsed"]  # smoothed, once there are two readings
        speed = f"{rate * self._images:.0f} images/s" if self._images else f"{rate:.2f} it/s"
        return {**fields, "speed": speed}


class Console:
    """Where the pipeline speaks: stages and text on stdout, bars on stderr.

    Only process 0 of a run over several hosts prints, so the first line has to come after
    ``jax.distributed.initialize``. ``silent=True`` prints nothing anywhere (for tests).
    """

    def __init__(self, silent: bool = False) -> None:
        self._silent = silent
        self._start = time.monotonic()

    def stage(self, name: str, text: str) -> None:
        """One line for a stage, with the time since this console was made (minutes:seconds)."""
        self.say(f"[{tqdm.format_interval(time.monotonic() - self._start)}] {name:<9} {text}")

    def say(self, text: str) -> None:
        """Text of any number of lines; an open bar is redrawn below it."""
        if not self._muted():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def bar(self, total: int, initial: int, description: str, images: int = 0) -> Bar:
        """A bar to be used as a context manager; call ``show(values)`` and ``update()``.

        Args:
          total: steps of the whole stage.
          initial: steps done by an earlier run, which do not count towards rate and ETA.
          description: what stands in front of it.
          images: images per step; the rate is then in images/s.
        """
        redrawn = _NOTEBOOK or sys.stderr.isatty()
        return Bar(
            total=total,
            initial=initial,
            desc=description,
            images=images,
            disable=self._muted(),
            file=sys.stderr if redrawn else cast(TextIO, _Lines(sys.stderr)),
            bar_format=(_BAR if redrawn else _LINE) + _TIMES,
            mininterval=0.1 if redrawn else _LINE_SECONDS,
            dynamic_ncols=redrawn,
            miniters=1,
        )

    def _muted(self) -> bool:
        return self._silent or jax.process_index() != 0


class _Lines:
    """A text stream for tqdm that writes each redrawing as a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.strip():
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()
