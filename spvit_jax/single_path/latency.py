"""Time as a price: a table of measured blocks, read as a base and what every gate adds."""

import os
from typing import Any

from spvit_jax.single_path.prices import Prices


class TableError(ValueError):
    """A table of times that cannot be read, or is of another model."""


def load(path: str | os.PathLike) -> Any:
    """Reads a table."""
    raise TableError(f"{path}: not there yet")


def prices(table: Any, spec: Any, ops: tuple[str, ...]) -> Prices:
    """Milliseconds per call, by the gates over ``ops``."""
    raise TableError("not there yet")
