"""Time as a price: a table of measured blocks, read as a base and what every gate adds.

``python -m spvit_jax.prices`` makes the table, on the device that counts. A block's attention takes
a time that grows by the head, its FFN by the unit: lines through a few measured points. What those
lines do not explain of the dense model's time is the base: embedding, heads, norms, launches.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from spvit_jax.models import Geometry
from spvit_jax.remote import reading
from spvit_jax.single_path.merging import Merges
from spvit_jax.single_path.prices import Prices

VERSION = 1
_AGAIN = "measure it: python -m spvit_jax.prices --config=…"
FREE = {"classes"}  # of a spec; what a head of other classes takes is nothing beside the blocks


class TableError(ValueError):
    """A table of times that cannot be read, or is of another model."""


@dataclasses.dataclass(frozen=True)
class Times:
    """What one block takes by what it keeps, the rest of it empty; milliseconds.

    Attributes:
      ops: by operation; attention is not among them.
      heads: attention, by its number of heads.
      ffn: by the number of FFN units, 0 and others.
    """

    ops: dict[str, float]
    heads: dict[int, float]
    ffn: dict[int, float]

    @property
    def no_head(self) -> float:
        """What attention would take without a head."""
        return _line(self.heads)[0]

    @property
    def head(self) -> float:
        """What each head adds to that."""
        return _line(self.heads)[1]

    @property
    def unit(self) -> float:
        """What an FFN unit adds to others. Without any there is no FFN, which is off the line."""
        some = {units: time for units, time in self.ffn.items() if units}
        return _line(some if len(some) > 1 else self.ffn)[1]

    @property
    def whole(self) -> float:
        """What attention and FFN add to an empty block, with all heads and units."""
        empty = self.ffn[0]
        return self.heads[max(self.heads)] - empty + self.ffn[max(self.ffn)] - empty


def _line(times: Mapping[int, float]) -> tuple[float, float]:
    """Intercept and slope of the line through ``times``; more of anything is not faster."""
    counts, values = np.array(list(times), float), np.array(list(times.values()))
    away = counts - counts.mean()
    slope = max(float(away @ values / (away @ away)), 0.0) if away.any() else 0.0
    return float(values.mean() - slope * counts.mean()), slope


@dataclasses.dataclass(frozen=True)
class Table:
    """The measured times of a dense model and of parts of its blocks.

    Attributes:
      model: the dense model's, as ``described``.
      about: what they depend on besides: device, dtype, batch, versions.
      dense: milliseconds of a call of the dense model.
      blocks: the times of each block, scaled so that together they explain that.
    """

    model: dict[str, Any]
    about: dict[str, Any]
    dense: float
    blocks: tuple[Times, ...]

    def to_json(self) -> str:
        """Writes the JSON text, one line per block."""
        head = {
            "version": VERSION,
            "unit": "ms per call",
            **self.about,
            "model": self.model,
            "dense": self.dense,
        }
        rows = ",\n  ".join(json.dumps(dataclasses.asdict(times)) for times in self.blocks)
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
        return "{\n" + ",\n".join(lines) + f',\n "blocks": [\n  {rows}\n ]\n}}\n'

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON file, whole or not at all."""
        temporary = Path(f"{path}.tmp")
        temporary.write_text(self.to_json())
        temporary.replace(path)


def described(spec: Any) -> dict[str, Any]:
    """What a table says of the dense model of ``spec``, in JSON's types."""
    said = {"type": type(spec).__name__, **dataclasses.asdict(spec)}
    return json.loads(json.dumps(said))


def prices(table: Table, spec: Any, ops: tuple[str, ...], merges: Merges = ()) -> Prices:
    """Milliseconds per call, by the gates over ``ops``.

    Raises:
      TableError: the table is of another model or image size, or lacks an operation.
    """
    _check_model(table.model, described(spec))
    if len(table.blocks) != len(spec.blocks):
        raise TableError(
            f"the table of times has {len(table.blocks)} blocks, its model has {len(spec.blocks)};"
            f" {_AGAIN}"
        )
    others = ops[:-1]  # the last is attention
    measured = set.intersection(*(set(times.ops) for times in table.blocks))
    if not set(others) <= measured:
        raise TableError(
            f"the table of times has {', '.join(sorted(measured))} besides attention; search.ops"
            f" asks for {', '.join(others)}; {_AGAIN}"
        )
    blocks = tuple(
        _block(times, geometry, others)
        for times, geometry in zip(table.blocks, spec.blocks, strict=True)
    )
    gates = Prices("ms", 0.0, blocks)
    return dataclasses.replace(gates, base=table.dense - gates.dense)


def _block(times: Times, geometry: Geometry, others: tuple[str, ...]) -> dict[str, np.ndarray]:
    """What each gate of a block adds; of the operations but attention, a dearer one never less."""
    rising = np.maximum.accumulate([times.ops[op] for op in others])
    return {
        "op": np.diff([*rising, times.no_head]),
        "heads": np.full(geometry.heads, times.head),
        "ffn": np.full(geometry.hidden, times.unit),
    }


def _check_model(measured: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ``TableError`` unless the table's model is the one it is asked about."""
    fields = sorted(set(measured) | set(wanted))
    other = [f for f in fields if f not in FREE and measured.get(f) != wanted.get(f)]
    if other:
        found, asked = (
            " ".join(f"{field}={model.get(field)}" for field in other)
            for model in (measured, wanted)
        )
        raise TableError(
            f"the table of times is of a model with {found}, the run's has {asked}; {_AGAIN}"
        )


def load(path: str | os.PathLike) -> Table:
    """Reads the table in a JSON file, local or on ``gs://``.

    Raises:
      TableError: there is none, or it cannot be read.
    """
    try:
        with reading(path, TableError):
            text = epath.Path(path).read_text()
        return _from_json(text)
    except FileNotFoundError:
        raise TableError(f"no table of times at {path}; {_AGAIN} --output={path}") from None
    except OSError as error:
        raise TableError(f"{path}: {error.strerror or error}; {_AGAIN}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, TableError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise TableError(
            f"{path}: expected a table that python -m spvit_jax.prices wrote; {reason}; {_AGAIN}"
            f" --output={path}"
        ) from error


def _from_json(text: str) -> Table:
    values = dict(json.loads(text))
    version, _ = values.pop("version"), values.pop("unit")
    if version != VERSION:
        raise ValueError(f"version {version!r}, this code reads {VERSION}")
    model, dense, rows = (values.pop(name) for name in ("model", "dense", "blocks"))
    if not isinstance(model, dict):
        raise TypeError(f"model must be an object, got {str(model)[:80]}")
    blocks = tuple(_times(i, dict(row)) for i, row in enumerate(rows))
    if not blocks:
        raise ValueError("no block")
    return Table(model, values, _time("dense", dense), blocks)


def _times(i: int, row: dict[str, Any]) -> Times:
    def times(key: str) -> dict[str, float]:
        return {name: _time(f"block {i}: {key} {name}", value) for name, value in row[key].items()}

    heads, ffn = ({int(n): time for n, time in times(key).items()} for key in ("heads", "ffn"))
    if not heads or 0 not in ffn or len(ffn) < 2:
        raise ValueError(f"block {i}: needs times of attention, of no FFN unit and of some units")
    return Times(times("ops"), heads, ffn)


def _time(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be milliseconds above 0, got {str(value)[:80]}")
    return float(value)
