"""Sub-splits such as ``train[:90%]``, with the meaning TFDS gives them, for every source."""

import re
from typing import NamedTuple

from spvit_jax.data.errors import DataError

_SPLIT = re.compile(r"([\w-]+)(?:\[([^:\]]*):([^:\]]*)\])?")
_BOUND = re.compile(r"-?\d+|-?\d+(\.\d+)?%")


class Bound(NamedTuple):
    """Where a slice begins or ends; below 0: counted from the end."""

    at: float
    percent: bool

    def image(self, length: int) -> int:
        """The index in a split of ``length`` images; percents are rounded to the nearest."""
        at = round(self.at * length / 100.0) if self.percent else int(self.at)
        return at + length if at < 0 else at


class Split(NamedTuple):
    """A split and a slice of it; None: from its first, or to its last image."""

    split_name: str
    start: Bound | None
    stop: Bound | None


def parse(spec: str) -> Split:
    """The split's name and slice: ``train``, ``train[5000:]``, ``train[:90%]``, ``train[-10%:]``.

    Raises:
      DataError: no such syntax.
    """
    match = _SPLIT.fullmatch(spec)
    name, *texts = match.groups(default="") if match else ("all",)
    units = {text[-1] == "%" for text in texts if text}
    if name == "all" or len(units) > 1 or not all(map(_BOUND.fullmatch, filter(None, texts))):
        raise DataError(
            f"cannot read the split {spec!r}: expected a name, or a name and one slice in images or"
            " percent, such as train, train[5000:] or train[:90%]"
        )
    start, stop = (_bound(text) for text in texts)
    return Split(name, start, stop)


def _bound(text: str) -> Bound | None:
    return Bound(float(text.removesuffix("%")), text.endswith("%")) if text else None


def bounds(spec: str, length: int) -> tuple[int, int]:
    """First and one past the last index of the sub-split ``spec`` of a split of ``length`` images.

    ``x[:a]`` and ``x[a:]`` are disjoint and complete for every a, percents included.

    Raises:
      DataError: no such syntax, or nothing lies between the bounds.
    """
    split = parse(spec)
    start = split.start.image(length) if split.start else 0
    stop = split.stop.image(length) if split.stop else length
    for index in (start, stop):
        if not 0 <= index <= length:
            raise DataError(f"split {spec!r} of {length} images: there is no image {index}")
    if start >= stop:
        raise DataError(f"split {spec!r} of {length} images is empty")
    return start, stop
