"""``Architecture``: what every block keeps on each axis, and nothing else.

It is all that choosing hands to pruning. It lives as JSON, and a person can write one by hand:
``{"model": "deit_tiny_patch16_224", "ops": ["conv1x1", "msa", ...], "heads": [0, [0, 2], ...],
"dims": [[], [24, 32], ...], "merges": [16, 12, ...], "ffn": [744, [0, 5, 9], ...]}`` where a number
keeps that many of the block's heads or units, those of the largest pretrained magnitude. Without
``heads`` every attention keeps all of them; ``dims`` are the features of each head's queries and
keys, and of its values, without it all; ``merges`` are the tokens that each block merges away,
without it none.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from spvit_jax.models import Geometry
from spvit_jax.remote import followed, reading
from spvit_jax.single_path import prices
from spvit_jax.single_path.axes import AXES, GATED, are_two
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.merging import Dims, Merges, merged
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.prices import Prices, cost

KEYS = tuple(axis.key for axis in AXES.values())
Kept = int | tuple[int, ...]


class ArchitectureError(ValueError):
    """An architecture that does not fit its model or its format."""


@dataclasses.dataclass(frozen=True, repr=False)
class Architecture:
    """What each block keeps.

    Attributes:
      ops: the name of one of ``ops.OPS`` per block.
      ffn: the kept units of each block, ascending, or only their number.
      model: the dense model it was found for, a row of ``spvit_jax.models.VARIANTS``; or "".
      heads: the kept heads of each block, ascending, or only their number; none where the op is
        not attention. (): all, wherever it is.
      merges: the tokens that each block merges away between attention and FFN; (): none.
      dims: the features that each head of a block keeps, of its queries and keys and of its values;
        () where the op is not attention. (): all, wherever it is.
    """

    ops: tuple[str, ...]
    ffn: tuple[Kept, ...]
    model: str = ""
    heads: tuple[Kept, ...] = ()
    merges: Merges = ()
    dims: Dims = ()

    def __repr__(self) -> str:
        """Says what each block keeps, in counts: of heads and of FFN units."""
        heads = [f":{_count(kept)}" if kept else "" for kept in self.heads or [()] * len(self.ops)]
        merges = [f"-{away}" if away else "" for away in self.merges or [0] * len(self.ops)]
        dims = [_narrowed(kept) for kept in self.dims or [()] * len(self.ops)]
        rows = zip(self.ops, heads, dims, merges, self.widths, strict=False)
        blocks = " ".join(f"{op}{mixed}{of}{away}|{width}" for op, mixed, of, away, width in rows)
        return f"<Architecture: {len(self.ops)} blocks, {blocks}>"

    @property
    def widths(self) -> tuple[int, ...]:
        """Counts the FFN units of each block."""
        return tuple(map(_count, self.ffn))

    def head_counts(self, spec: Any) -> tuple[int, ...]:
        """Counts the heads of each block of the dense model of ``spec``."""
        return tuple(map(_count, self._per_block(spec)["heads"]))

    def check(self, spec: Any) -> None:
        """Raises ``ArchitectureError`` unless it fits the dense model of ``spec``."""
        blocks = spec.blocks
        entries = self._per_block(spec)
        for key, kept in entries.items():
            if len(kept) != len(blocks):
                raise ArchitectureError(
                    f"{key} must name {len(blocks)} blocks, as the model has; it names {len(kept)}"
                )
        for i, block in enumerate(self._geometries(spec)):
            for axis in AXES.values():
                problem = axis.problem(entries[axis.key][i], self.ops[i], block)
                if problem:
                    raise ArchitectureError(f"block {i}: {problem}")

    def geometries(self, spec: Any) -> tuple[Geometry, ...]:
        """What its blocks work on, tokens merged; ``spec`` is the dense model's."""
        self.check(spec)
        return self._geometries(spec)

    def _geometries(self, spec: Any) -> tuple[Geometry, ...]:
        """``geometries`` of one that is being checked: what is no number merges nothing."""
        dims = tuple(kept if are_two(kept) else () for kept in self.dims)
        return merged(spec, [n if type(n) is int else 0 for n in self.merges], dims)

    def of_block(self, i: int, spec: Any) -> dict[str, Any]:
        """What block ``i`` keeps, by axis; ``spec`` is the dense model's."""
        entries = self._per_block(spec)
        return {axis.name: entries[axis.key][i] for axis in AXES.values()}

    def _per_block(self, spec: Any) -> dict[str, tuple[Any, ...]]:
        """The entries by key, with those of ``heads``, ``dims`` and ``merges`` written out."""
        whole = tuple(
            tuple(range(block.heads)) if op == "msa" else ()
            for op, block in zip(self.ops, spec.blocks, strict=False)
        )
        return {
            "ops": self.ops,
            "heads": self.heads or whole,
            "dims": self.dims or self._every_dim(spec),
            "merges": self.merges or (0,) * len(self.ops),
            "ffn": self.ffn,
        }

    def _every_dim(self, spec: Any) -> Dims:
        rows = zip(self.ops, spec.blocks, strict=False)
        return tuple((b.head_dim, b.head_dim) if op == "msa" else () for op, b in rows)

    def gates(self, spec: Any, ops: tuple[str, ...] = ()) -> Gates:
        """Makes the integer gates that compute it; ``ops``: what they span, () for ``OPS``."""
        self.check(spec)
        ops = ops or tuple(OPS)
        return tuple(
            {
                name: axis.opened(self.of_block(i, spec)[name], self.ops[i], block, ops)
                for name, axis in GATED.items()
            }
            for i, block in enumerate(spec.blocks)
        )

    def price(self, pricing: Callable[..., Prices], spec: Any) -> Any:
        """Its price; ``pricing`` is one of ``prices``' functions."""
        gates = self.gates(spec)  # which checks it
        return cost(pricing(spec, merges=self.merges, dims=self.dims), gates).item()

    def macs(self, spec: Any) -> int:
        """Counts the multiply-accumulates per image of its folded program, exactly."""
        return self.price(prices.macs, spec)

    def published_macs(self, spec: Any) -> int:
        """Counts them by the paper's formula."""
        return self.price(prices.published_macs, spec)

    def to_json(self) -> str:
        """Writes the JSON text, one line per block of units."""
        rows = ",\n  ".join(json.dumps(units) for units in self.ffn)
        keys = ("model", "ops", "heads", "dims", "merges")
        fields = {key: getattr(self, key) for key in keys}
        lines = [
            f' "{k}": {json.dumps(v)},' for k, v in fields.items() if v or k in ("model", "ops")
        ]
        return "\n".join(["{", *lines, ' "ffn": [', f"  {rows}", " ]", "}", ""])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        path = followed(path)
        temporary = Path(f"{path}.tmp")
        temporary.write_text(self.to_json())
        temporary.replace(path)


def _count(kept: Kept) -> int:
    return kept if isinstance(kept, int) else len(kept)


def _narrowed(kept: tuple[int, ...]) -> str:
    """``x24/32`` of heads whose keys have 24 features and whose values 32."""
    return "x" + "/".join(map(str, kept)) if kept else ""


def from_json(text: str) -> Architecture:
    """Reads the architecture of a JSON text.

    Raises:
      ArchitectureError: not JSON, or not of this form.
    """
    try:
        values = json.loads(text)
        ops, ffn, heads = values["ops"], values["ffn"], values.get("heads", [])
        merges, dims = values.get("merges", []), values.get("dims", [])
        for name, value in (("ops", ops), ("merges", merges), ("dims", dims)):
            if not isinstance(value, list):
                raise TypeError(f"{name} must be a list, got {value!r}")
        unknown = set(values) - {"model", *KEYS}
        if unknown:
            raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
        return Architecture(
            tuple(map(str, ops)),
            tuple(_kept("ffn", v) for v in ffn),
            str(values.get("model", "")),
            tuple(_kept("heads", v) for v in heads),
            tuple(merges),
            tuple(tuple(kept) if isinstance(kept, list) else kept for kept in dims),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ArchitectureError(
            'expected JSON like {"model": "deit_tiny_patch16_224", "ops": ["msa", ...],'
            ' "heads": [2, [0, 2], ...], "ffn": [512, [0, 3, 4], ...]};'
            f" {type(error).__name__}: {error}"
        ) from error


def _kept(key: str, value: Any) -> Kept:
    if type(value) is int:
        return value
    if isinstance(value, list) and all(type(index) is int for index in value):
        return tuple(value)
    raise TypeError(f"{key} must hold numbers or lists of indices, got {str(value)[:80]!r}")


def load(path: str | os.PathLike[str]) -> Architecture:
    """Reads the architecture in a JSON file, local or on ``gs://``.

    Raises:
      ArchitectureError: there is none, or it cannot be read.
    """
    try:
        with reading(path, ArchitectureError):
            text = epath.Path(path).read_text()
        return from_json(text)
    except FileNotFoundError:
        raise ArchitectureError(
            f"no architecture at {path}; run a search, write one by hand, or take one of"
            " configs/architectures/"
        ) from None
    except (ArchitectureError, UnicodeDecodeError) as error:
        raise ArchitectureError(f"{path}: {error}") from error


def from_gates(
    gates: Gates, ops: tuple[str, ...], model: str = "", merges: Merges = ()
) -> Architecture:
    """Reads the architecture of decided gates (0 or 1, nested) over ``ops``."""
    blocks = [
        {name: AXES[name].kept(np.asarray(gate), ops) for name, gate in block.items()}
        for block in gates
    ]
    whole = all(
        block["op"] != "msa" or len(block["heads"]) == len(gate["heads"])
        for block, gate in zip(blocks, gates, strict=True)
    )
    return Architecture(
        tuple(block["op"] for block in blocks),
        tuple(block["ffn"] for block in blocks),
        model,
        () if whole else tuple(block["heads"] for block in blocks),
        merges,
        tuple(block["dims"] for block in blocks if "dims" in block),
    )


def describe(architecture: Architecture, spec: Any) -> str:
    """Names the op of each block, attention with its number of heads where it lost some.

    Behind it stand the features of its heads' keys and values, where they lost some, and how many
    tokens the block merges away, if any: ``msa:4x24/32-8``.
    """
    whole = architecture._every_dim(spec)
    rows = zip(
        architecture.ops,
        architecture.head_counts(spec),
        architecture.merges or (0,) * len(architecture.ops),
        spec.blocks,
        architecture.dims or whole,
        whole,
        strict=True,
    )
    return " ".join(
        op
        + (f":{count}" if count not in (0, block.heads) else "")
        + (_narrowed(kept) if kept != every else "")
        + (f"-{away}" if away else "")
        for op, count, away, block, kept, every in rows
    )
