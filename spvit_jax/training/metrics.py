"""Numbers over steps: ``metrics.jsonl``, the source of truth, and TensorBoard beside it."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
from etils import epath

from spvit_jax.training.board import Board
from spvit_jax.workdir import LocalCopy

METRICS_FILE = "metrics.jsonl"


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
      ValueError: the file is damaged elsewhere than in its last line.
    """

    def __init__(self, directory: str | os.PathLike[str], start_step: int) -> None:
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._folder = LocalCopy(epath.Path(directory))
        self._folder.fetch(METRICS_FILE)
        path = self._folder.path / METRICS_FILE
        _cut(path, start_step)
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
        self._file.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
        for name, x in numbers.items():
            self._board.add(name, x, int(step))

    def amend(self, values: Mapping[str, float]) -> None:
        """Adds ``values`` to the last line, or replaces what it has under their names."""
        if not self._active:
            return
        path = Path(self._file.name)
        rows = read_metrics(path.parent)
        self._file.close()
        _cut(path, rows[-1]["step"] - 1)
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
      ValueError: a line before the last is not a JSON object with a "step".
    """
    path = epath.Path(directory) / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif number < len(lines):
            raise ValueError(
                f'{path}, line {number}: expected a JSON object with a whole "step", got'
                f" {line[:80]!r}; remove that line to go on"
            )
    return rows


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return {name: math.nan if value is None else value for name, value in row.items()}


def _cut(path: Path, last_step: int) -> None:
    """Leaves only whole lines up to ``last_step``, byte for byte; an interruption loses none."""
    if not path.exists():
        return
    read_metrics(path.parent)  # a damaged file is reported, not repaired by deleting lines
    lines = [(line, _parse(line)) for line in path.read_bytes().splitlines()]
    kept = [line + b"\n" for line, row in lines if row is not None and row["step"] <= last_step]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
