"""Numbers over steps: ``metrics.jsonl``, the source of truth, and TensorBoard beside it.

Each line ends with a checksum of itself and of all lines before it.
"""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from etils import epath

from spvit_jax.checksums import content
from spvit_jax.local_copy import LocalCopy
from spvit_jax.state import StateError, loads
from spvit_jax.training.board import Board

METRICS_FILE = "metrics.jsonl"
_CHECKSUM = b', "crc": "'  # before the eight digits that end a line
_WAY_OUT = "put it back, or remove it to go on without the lines that it has"


class MetricWriter:
    """Appends scalars of one stage to ``directory``; what a resumed run redoes is cut first.

    Every line reaches the operating system as it is written, or a remote directory at each flush,
    so that a killed process leaves all lines up to its last checkpoint behind. On processes other
    than 0 it does nothing.

    Args:
      directory: of this stage, local or remote; made where it is missing.
      start_step: the step of the checkpoint the run continues from (0: none). Lines and
        TensorBoard events of later steps are removed.

    Raises:
      StateError: the file is damaged elsewhere than in its last line.
    """

    def __init__(self, directory: str | os.PathLike[str], start_step: int) -> None:
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._folder = LocalCopy(epath.Path(directory))
        self._folder.fetch(METRICS_FILE)
        path = self._folder.path / METRICS_FILE
        self._crc = _cut(path, start_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._board = Board(path.parent, start_step + 1)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line of ``values`` (numbers or 0-d arrays) at ``step``.

        Raises:
          ValueError: a value is called "step".
        """
        if not self._active:
            return
        if "step" in values:
            raise ValueError('a metric cannot be called "step": that key is the line\'s own')
        numbers = {name: float(value) for name, value in values.items()}
        # JSON has no NaN or infinity; null stands for both and is read back as NaN.
        finite = {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        text = json.dumps({"step": int(step), **finite}, allow_nan=False)[:-1]
        self._crc = zlib.crc32(text.encode(), self._crc)
        self._file.write(f'{text}{_CHECKSUM.decode()}{self._crc:08x}"}}\n')
        for name, x in numbers.items():
            self._board.add(name, x, int(step))

    def amend(self, values: Mapping[str, float]) -> None:
        """Adds ``values`` to the last line, or replaces what it has under their names."""
        if not self._active:
            return
        path = Path(self._file.name)
        rows = read_metrics(path.parent)
        self._file.close()
        self._crc = _cut(path, rows[-1]["step"] - 1)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        last = rows[-1]
        self.write(last.pop("step"), {**last, **values})

    def flush(self) -> None:
        """Everything written so far reaches the disk."""
        if self._active:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()
            self._folder.push()

    def close(self) -> None:
        """Flushes and closes both files."""
        if self._active:
            self.flush()
            self._file.close()
            self._board.close()
            self._folder.close()
            self._active = False

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of ``directory``'s metrics in order, each with its "step"; [] without a file.

    A half-written last line is left out.

    Raises:
      StateError: a line before the last is not one that was written there.
    """
    return [row for _, _, row in _lines(epath.Path(directory) / METRICS_FILE)]


def _lines(path: Path | epath.Path) -> list[tuple[bytes, int, dict[str, Any]]]:
    """The lines of a file, the checksum of each, and what it says."""
    if not path.exists():
        return []
    try:
        lines = content(path).splitlines(keepends=True)
    except ValueError as error:
        raise StateError(f"{path} is damaged ({error}); {_WAY_OUT}") from error
    entries: list[tuple[bytes, int, dict[str, Any]]] = []
    crc = 0
    for number, line in enumerate(lines, start=1):
        body, _, end = line.rpartition(_CHECKSUM)
        crc = zlib.crc32(body, crc)
        row = _parse(line) if end.rstrip(b"\n") == b'%08x"}' % crc else None
        if row is not None:
            entries.append((line.rstrip(b"\n") + b"\n", crc, row))
        elif number < len(lines) or line.endswith(b"\n"):
            raise StateError(
                f"{path} is damaged (line {number} is not one that was written there:"
                f" {line[:60]!r}); {_WAY_OUT}"
            )
    return entries


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int or not row.pop("crc", ""):
        return None
    return {name: math.nan if value is None else value for name, value in row.items()}


def _cut(path: Path, last_step: int) -> int:
    """Leaves only whole lines up to ``last_step``, byte for byte; an interruption loses none.

    Returns:
      The checksum of the last one.
    """
    if not path.exists():
        return 0
    lines = [line for line in _lines(path) if line[2]["step"] <= last_step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(line for line, _, _ in lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return lines[-1][1] if lines else 0
