"""Sizes of images: a number of pixels where they are square, else height and width."""

from collections.abc import Sequence
from typing import Any

Size = int | tuple[int, int]
MOST = 1 << 14  # pixels a side: what more take, no device has, and XLA aborts for want of it


def as_size(value: Any) -> Size:
    """Reads a size, of one number or a pair; a pair of equal numbers becomes one.

    Raises:
      ValueError: it is neither, or a number is not whole, not above 0 or above ``MOST``.
    """
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers)
    if len(numbers) not in (1, 2) or not whole:
        raise ValueError(
            "expected pixels, one number above 0 for a square or two, height and width; got"
            f" {value!r}"
        )
    if max(numbers) > MOST:
        raise ValueError(f"expected at most {MOST:,} pixels a side, got {value!r}; give fewer")
    return numbers[0] if len(set(numbers)) == 1 else (numbers[0], numbers[1])


def wanted_size(value: Any) -> Size:
    """Reads a size that may be left open: 0, or nothing, gives 0; errors as ``as_size``'s."""
    return 0 if value in (None, 0, (0,), [0], (), []) else as_size(value)


def sides(size: Size) -> tuple[int, int]:
    """Gives height and width."""
    return (size, size) if isinstance(size, int) else size


def shown(size: Size) -> str:
    """Writes a size for messages: ``224``, or ``224x384``, height before width."""
    return str(size) if isinstance(size, int) else "x".join(map(str, size))
