"""The configurations that ship with the package, one a file: ``--config=NAME`` takes one by name.

In a checkout ``configs/`` leads to them as well.
"""

import difflib
from pathlib import Path

from spvit_jax.config import ConfigError

FOLDER = Path(__file__).parent


def names() -> tuple[str, ...]:
    """The names that ``--config`` takes, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__"))


def file_of(address: str) -> str:
    """Turns ``NAME[:VARIANT]`` into ``FILE.py[:VARIANT]``; what is a path already stays.

    Raises:
      ConfigError: there is no configuration of that name.
    """
    name, colon, variant = address.partition(":")
    if not name or name.endswith(".py") or "/" in name or Path(name).exists():
        return address
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"--config={address}: there is no configuration {name!r}, only {', '.join(names())}, or"
            f" a file of your own, FILE.py{hint}"
        )
    return f"{FOLDER / name}.py{colon}{variant}"
