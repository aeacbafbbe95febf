"""Time as a price: a table of measured blocks, read as a base and what every gate adds.

``python -m spvit_jax.prices`` makes the table, on the device that counts. A block's attention takes
a time that grows by the head, its FFN by the unit: lines through a few measured points. What those
lines do not explain of the dense model's time is the base: embedding, heads, norms, launches. Where
tokens are merged, all of it is that between the lengths that were measured; where heads have fewer
features, each head's is less by what was measured with so many.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from spvit_jax.models import Geometry
from spvit_jax.remote import followed, raise_transient, reading
from spvit_jax.single_path.merging import Dims, Merges, merged
from spvit_jax.single_path.narrow import turnable
from spvit_jax.single_path.prices import Prices

VERSION = 1
_AGAIN = "measure it: python -m spvit_jax.prices --config=…"
_AXES = """measure it with {axis} in search.axes: python -m spvit_jax.prices --config=…\
 --config.search.axes="('op','heads','{axis}','ffn')\""""
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
      merge: what merging tokens adds, behind "msa" and behind "skip", as all others; {}: unknown.
      shorter: the same of fewer tokens, by their number; {}: unknown.
      keys: attention with all heads, by the features of the keys of each; {}: unknown.
      values: likewise by those of its values.
    """

    ops: dict[str, float]
    heads: dict[int, float]
    ffn: dict[int, float]
    merge: dict[str, float] = dataclasses.field(default_factory=dict)
    shorter: dict[int, "Times"] = dataclasses.field(default_factory=dict)
    keys: dict[int, float] = dataclasses.field(default_factory=dict)
    values: dict[int, float] = dataclasses.field(default_factory=dict)

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
        return self.attention + self.ffn[max(self.ffn)] - self.ffn[0]

    @property
    def attention(self) -> float:
        """What attention adds to an empty block, with all heads."""
        return self.heads[max(self.heads)] - self.ffn[0]

    def saved(self, geometry: Geometry) -> float:
        """What attention with all heads saves where these have the features of ``geometry``.

        Fewer than were measured save no more; what was not measured saves nothing.
        """
        total = 0.0
        for features, times in ((geometry.key_dim, self.keys), (geometry.value_dim, self.values)):
            if times:
                counts = sorted(times)
                rising = np.maximum.accumulate([times[n] for n in counts])
                total += float(rising[-1] - np.interp(features, counts, rising))
        return total

    def knows(self, geometry: Geometry) -> bool:
        """Whether heads of as few features were measured."""
        whole = geometry.head_dim
        keys = geometry.key_dim == whole or self.keys or not turnable(geometry)
        return bool(keys and (geometry.value_dim == whole or self.values))

    def row(self) -> dict[str, Any]:
        """What JSON says of it; no word of merging and of narrower heads where that is unknown."""
        fields = {"ops": self.ops, "heads": self.heads, "ffn": self.ffn}
        some = {"keys": self.keys, "values": self.values, "merge": self.merge}
        some["shorter"] = {n: t.row() for n, t in self.shorter.items()}
        return fields | {key: value for key, value in some.items() if value}


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

    @property
    def narrower(self) -> bool:
        """Whether heads of fewer features were measured."""
        return all(times.values for times in self.blocks)

    def to_json(self) -> str:
        """Writes the JSON text, one line per block."""
        head = {
            "version": VERSION,
            "unit": "ms per call",
            **self.about,
            "model": self.model,
            "dense": self.dense,
        }
        rows = ",\n  ".join(json.dumps(times.row()) for times in self.blocks)
        lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
        return "{\n" + ",\n".join(lines) + f',\n "blocks": [\n  {rows}\n ]\n}}\n'

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        path = followed(path)
        temporary = Path(f"{path}.tmp")
        temporary.write_text(self.to_json())
        temporary.replace(path)


def described(spec: Any) -> dict[str, Any]:
    """What a table says of the dense model of ``spec``, in JSON's types."""
    fields = {"type": type(spec).__name__, **dataclasses.asdict(spec)}
    return json.loads(json.dumps(fields))


def prices(
    table: Table, spec: Any, ops: tuple[str, ...], merges: Merges = (), dims: Dims = ()
) -> Prices:
    """Milliseconds per call, by the gates over ``ops``.

    Args:
      table: of the dense model.
      spec: the dense model's.
      ops: what the gates choose from; the last is attention.
      merges: the tokens that each block merges away; (): none.
      dims: the features of the heads' keys and values in each block; (): all.

    Raises:
      TableError: the table is of another model or image size, lacks an operation, or the times of
        fewer tokens where some are merged, or of heads of fewer features where they have fewer.
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
    pairs = list(zip(table.blocks, merged(spec, merges, dims), strict=True))
    if any(merges) and not all(t.shorter and (t.merge or not g.merges) for t, g in pairs):
        missing = _AXES.format(axis="tokens")
        raise TableError(f"the table of times has none of merged tokens; {missing}")
    if not all(times.knows(geometry) for times, geometry in pairs):
        missing = _AXES.format(axis="dims")
        raise TableError(f"the table of times has none of heads of fewer features; {missing}")
    blocks, more = zip(*(_block(times, geometry, others) for times, geometry in pairs), strict=True)
    gates = Prices("ms", 0.0, blocks)
    return dataclasses.replace(gates, base=table.dense + sum(more) - gates.dense)


def _block(
    times: Times, geometry: Geometry, others: tuple[str, ...]
) -> tuple[dict[str, np.ndarray], float]:
    """What each gate of a block adds, and how much longer than unmerged it takes with all of them.

    Of the operations but attention, a dearer one never adds less. One that was not measured with
    fewer tokens cannot stand there, and is as dear as with all.
    """
    every = geometry.prefix + math.prod(geometry.grid)
    lengths = {n: dataclasses.replace(t, ops=times.ops | t.ops) for n, t in times.shorter.items()}
    lengths[every] = times
    leaving = every if geometry.class_only else geometry.ffn_tokens  # class tokens are always all

    def mixing(t: Times) -> list[float]:
        rising = np.maximum.accumulate([t.ops[op] for op in others])
        less = t.saved(geometry)
        return [t.attention - less, t.head - less / geometry.heads, *rising, t.no_head]

    def feeding(t: Times) -> list[float]:
        return [t.ffn[max(t.ffn)], t.unit]

    mix, feed = _at(lengths, geometry.tokens, mixing), _at(lengths, leaving, feeding)
    more = float(mix[0] - times.attention + feed[0] - feeding(times)[0])
    steps = np.diff(mix[2:])
    if geometry.merges:
        merging = {n: t for n, t in lengths.items() if t.merge}
        keyed, other = _at(merging, geometry.tokens, lambda t: [t.merge["msa"], t.merge["skip"]])
        more, steps[-1] = more + float(keyed), steps[-1] + keyed - other
    gates = {
        "op": steps,
        "heads": np.full(geometry.heads, max(mix[1], 0.0)),
        "ffn": np.full(geometry.hidden, max(feed[1], 0.0)),
    }
    return gates, more


def _at(
    lengths: dict[int, Times], tokens: int, read: Callable[[Times], Sequence[float]]
) -> np.ndarray:
    """Reads what was measured at some lengths at another: on the line through the two next to it.

    Below the shortest, through the two shortest.
    """
    if tokens in lengths or len(lengths) == 1:
        return np.array(read(lengths.get(tokens) or next(iter(lengths.values()))))
    counts = sorted(lengths)
    i = min(max(int(np.searchsorted(counts, tokens)), 1), len(counts) - 1)
    low, high = counts[i - 1 : i + 1]
    share = (tokens - low) / (high - low)
    return (1 - share) * np.array(read(lengths[low])) + share * np.array(read(lengths[high]))


def _check_model(measured: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises ``TableError`` unless the table's model is the one it is asked about."""
    fields = sorted(set(measured) | set(wanted))
    other = [f for f in fields if f not in FREE and measured.get(f) != wanted.get(f)]
    if other:
        actual, asked = (
            " ".join(f"{field}={model.get(field)}" for field in other)
            for model in (measured, wanted)
        )
        raise TableError(
            f"the table of times is of a model with {actual}, the run's has {asked}; {_AGAIN}"
        )


def load(path: str | os.PathLike[str]) -> Table:
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
        raise_transient(error)
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
    blocks = tuple(_times(f"block {i}", dict(row)) for i, row in enumerate(rows))
    if not blocks:
        raise ValueError("no block")
    return Table(model, values, _time("dense", dense), blocks)


def _times(block: str, row: dict[str, Any]) -> Times:
    def times(key: str) -> dict[str, float]:
        return {name: _time(f"{block}: {key} {name}", value) for name, value in row[key].items()}

    heads, ffn = ({int(n): time for n, time in times(key).items()} for key in ("heads", "ffn"))
    if not heads or 0 not in ffn or len(ffn) < 2:
        raise ValueError(f"{block}: needs times of attention, of no FFN unit and of some units")
    merge = times("merge") if "merge" in row else {}
    if merge and not {"skip", "msa"} <= set(merge):
        raise ValueError(f"{block}: needs times of merging behind skip and behind msa, or none")
    shorter = {
        int(n): _times(f"{block}, {n} tokens", dict(fewer))
        for n, fewer in row.get("shorter", {}).items()
    }
    keys, values = (
        {int(n): time for n, time in times(key).items()} if key in row else {}
        for key in ("keys", "values")
    )
    return Times(times("ops"), heads, ffn, merge, shorter, keys, values)


def _time(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be milliseconds above 0, got {str(value)[:80]}")
    return float(value)
