"""``Geometry``: the sizes that one block works on, and whether a spec's numbers can be any."""

import dataclasses
import math
from numbers import Integral, Real
from typing import Any


@dataclasses.dataclass(frozen=True)
class Geometry:
    """What one block works on: enough to price it and to build its convolutions."""

    width: int  # D, features of a token
    heads: int  # H
    hidden: int  # FFN units
    grid: tuple[int, int]  # rows and columns of the map that the patch tokens form
    prefix: int = 0  # class tokens and registers before the map
    registers: int = 0  # the last of these, which nobody reads behind the last block
    gated: bool = False  # each FFN unit is multiplied by another one, its gate
    qk_norm: bool = False  # queries and keys of each head are normalised
    rotary: bool = False  # and turned by their place
    window: tuple[int, int] | None = None  # attention runs in windows of so many rows and columns;
    # None: over all tokens
    shift: tuple[int, int] = (0, 0)  # the windows' offset, in tokens down and to the right
    class_only: bool = False  # of what leaves the block, class tokens alone are read
    merged: int = 0  # patches that are merged away before the block
    merges: int = 0  # and those that it merges away between attention and FFN
    keys: int = 0  # features that each head's queries and keys keep; 0: all
    values: int = 0  # and those that its values keep

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def key_dim(self) -> int:
        """Features of a head's queries and of its keys."""
        return self.keys or self.head_dim

    @property
    def value_dim(self) -> int:
        """Features of a head's values."""
        return self.values or self.head_dim

    @property
    def patches(self) -> int:
        """Patches that enter attention."""
        return math.prod(self.grid) - self.merged

    @property
    def tokens(self) -> int:
        """Tokens that enter attention."""
        return self.prefix + self.patches

    @property
    def class_tokens(self) -> int:
        """Tokens that stand for the whole image, the first of all."""
        return self.prefix - self.registers

    @property
    def read(self) -> int:
        """Tokens that leave attention, the first of ``tokens``."""
        return self.class_tokens if self.class_only else self.tokens

    @property
    def ffn_tokens(self) -> int:
        """Tokens that enter the FFN and leave the block."""
        return self.read - self.merges

    @property
    def matrices(self) -> int:
        """Matrices of the FFN: each unit has a column or a row of each."""
        return 3 if self.gated else 2

    @property
    def windows(self) -> int:
        """How many windows attention runs in."""
        return math.prod(self.grid) // math.prod(self.window) if self.window else 1


def check_numbers(spec: Any) -> None:
    """Raises ``ValueError`` unless a spec's numbers are above 0, or 0 classes or registers."""
    for field in dataclasses.fields(spec):
        name, value = field.name, getattr(spec, field.name)
        if field.type is float:
            good, wanted = _is_above(0, value, Real) and value < math.inf, "a number above 0"
        elif field.type in (int, tuple[int, ...]):
            least = int(name not in ("classes", "registers"))
            counts = (value,) if field.type is int else tuple(value)
            good = all(_is_above(least - 1, count, Integral) for count in counts)
            wanted = f"whole and {least} or more"
        elif field.type is bool:
            good, wanted = isinstance(value, bool), "true or false"
        else:
            continue
        if not good:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _is_above(least: int, value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(value > least)
