"""The fields of a JSON object, each of the type that it has to be."""

import math
from collections.abc import Mapping
from typing import Any

from spvit_jax.convert.errors import CheckpointError
from spvit_jax.sizes import Size, as_size


class Fields:
    """A JSON object whose fields are None where they are missing or null.

    Args:
      content: the object.
      where: it is from, for messages.
    """

    def __init__(self, content: Mapping[str, Any], where: str):
        self._content = content
        self._where = where

    def __contains__(self, name: str) -> bool:
        return self._content.get(name) is not None

    def wrong(self, name: str, expected: str) -> CheckpointError:
        """The error for a field that is not as expected."""
        value = f"{self._content.get(name)!r:.80}"
        return CheckpointError(
            f"{self._where}: {name} is {value}, expected {expected}; correct the file, or move it"
            " away"
        )

    def inner(self, name: str) -> "Fields":
        """The object in a field; without one, an empty one."""
        value = self._content.get(name)
        if not isinstance(value, Mapping | None):
            raise self.wrong(name, "a JSON object")
        return Fields(value or {}, f"{self._where}, {name}")

    def over(self, other: "Fields") -> "Fields":
        """These fields, and another object's where these have none."""
        own = {name: value for name, value in self._content.items() if value is not None}
        return Fields({**other._content, **own}, self._where)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self._content.get(name)
        if not isinstance(value, str | None):
            raise self.wrong(name, "a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self._content.get(name)
        if not isinstance(value, bool | None):
            raise self.wrong(name, "true or false")
        return default if value is None else value

    def number(self, name: str) -> float | None:
        """A positive number."""
        value = self._content.get(name)
        if value is None:
            return None
        if not _is_number(value) or value <= 0:
            raise self.wrong(name, "a positive number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """Three numbers, one for each colour."""
        value = self._content.get(name)
        if value is None:
            return None
        if (
            not isinstance(value, list | tuple)
            or len(value) != 3
            or not all(map(_is_number, value))
        ):
            raise self.wrong(name, "three numbers, one for each colour")
        return tuple(map(float, value))

    def count(self, name: str, *, least: int = 1, first: bool = False) -> int | None:
        """A whole number, of a list the ``first``."""
        value = self._content.get(name)
        if first and isinstance(value, list | tuple) and value:
            value = value[0]
        if value is None:
            return None
        if not _is_whole(value) or value < least:
            raise self.wrong(name, f"a whole number of at least {least}")
        return value

    def total(self, name: str) -> int | None:
        """The sum of a list of whole numbers."""
        value = self._content.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(_is_whole(n) and n > 0 for n in value):
            raise self.wrong(name, "a list of whole numbers")
        return sum(value)

    def side(self, name: str) -> int | None:
        """Pixels a side of a square; see ``size``."""
        expected = "the side of a square, in pixels"
        size = self._size(name, expected)
        if isinstance(size, tuple):
            raise self.wrong(name, expected)
        return size

    def size(self, name: str) -> Size | None:
        """Pixels of an image: a number, or height and width, which may stand behind the channels.

        Of an object, its ``shortest_edge``, or its ``height`` and ``width``.
        """
        return self._size(name, "pixels: the side of a square, or height and width")

    def channels(self, name: str) -> int | None:
        """How many channels stand before height and width; None where only these are."""
        value = self._content.get(name)
        if not isinstance(value, list | tuple) or len(value) != 3:
            return None
        if not _is_whole(value[0]) or value[0] < 1:
            raise self.wrong(name, "channels, height and width")
        return value[0]

    def has_both_sides(self, name: str) -> bool:
        """Whether a size is of both sides, whatever shape an image has, not of the shorter one."""
        value = self._content.get(name)
        return isinstance(value, Mapping) and "height" in value

    def _size(self, name: str, expected: str) -> Size | None:
        value = self._content.get(name)
        if value is None:
            return None
        sides: list[Any]
        if isinstance(value, Mapping):
            names = ("shortest_edge",) if "shortest_edge" in value else ("height", "width")
            sides = [value.get(edge) for edge in names]
        elif isinstance(value, list | tuple):
            sides = list(value)[-2:]
        else:
            sides = [value]
        try:
            return as_size(sides)
        except ValueError:
            raise self.wrong(name, expected) from None

    def names(self, name: str) -> tuple[str, ...] | None:
        """Names in a list, or by their numbers from 0 in an object."""
        value = self._content.get(name)
        if value is None:
            return None
        if isinstance(value, Mapping):
            try:
                by_number = {int(number): one for number, one in value.items()}
            except ValueError:
                raise self.wrong(name, "names by their numbers") from None
            value = [by_number.get(number) for number in range(len(value))]
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise self.wrong(name, "names in a list, or by their numbers from 0 without gaps")
        return tuple(value) or None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
