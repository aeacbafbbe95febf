"""``Architecture``: the op and the kept FFN units of every block, and nothing else.

It is all that search hands to pruning. It lives as JSON, and a person can write one by hand:
``{"model": "deit_tiny_patch16_224", "ops": ["conv1x1", "msa", ...], "ffn": [744, [0, 5, 9], ...]}``
where a number keeps that many units of that block, those of the largest pretrained magnitude.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from spvit_jax.remote import reading
from spvit_jax.single_path.cost import cost
from spvit_jax.single_path.gates import BlockGates, Gates

OPS = ("skip", "conv1x1", "conv3x3", "msa")  # by cost; the index is how many kernel gates are open
NORM_SKIP = "norm_skip"  # the branch is norm1(x): in released models, never chosen by pruning


class ArchitectureError(ValueError):
    """An architecture that does not fit its model or its format."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The op and the FFN units of each block.

    Attributes:
      ops: one of ``OPS`` or ``norm_skip`` a block.
      ffn: the kept units of each block, ascending, or only their number.
      model: the dense model it was found for, a row of ``spvit_jax.models.VARIANTS``; or "".
    """

    ops: tuple[str, ...]
    ffn: tuple[int | tuple[int, ...], ...]
    model: str = ""

    @property
    def widths(self) -> tuple[int, ...]:
        """FFN units of each block."""
        return tuple(units if isinstance(units, int) else len(units) for units in self.ffn)

    def check(self, spec: Any) -> None:
        """Raises ``ArchitectureError`` unless it fits the dense model of ``spec``."""
        for name, found in (("ops", self.ops), ("ffn", self.ffn)):
            if len(found) != len(spec.blocks):
                raise ArchitectureError(
                    f"{name} must name {len(spec.blocks)} blocks, as the model has;"
                    f" it names {len(found)}"
                )
        for i, (op, units, block) in enumerate(zip(self.ops, self.ffn, spec.blocks, strict=True)):
            if op not in (*OPS, NORM_SKIP):
                raise ArchitectureError(
                    f"block {i}: op must be one of {', '.join((*OPS, NORM_SKIP))}; got {op!r}"
                )
            if isinstance(units, int):
                good = 0 <= units <= block.hidden
            else:
                good = set(units) <= set(range(block.hidden)) and list(units) == sorted(set(units))
            if not good:
                raise ArchitectureError(
                    f"block {i}: FFN units must be a number up to {block.hidden}, or different"
                    f" ascending indices below it; got {str(units)[:80]}"
                )

    def gates(self, spec: Any) -> Gates:
        """Integer gates of the dense model that compute this architecture."""
        self.check(spec)
        gates = []
        for op, units, block in zip(self.ops, self.ffn, spec.blocks, strict=True):
            level = OPS.index(op) if op in OPS else 0
            ffn = np.zeros(block.hidden, np.int64)
            ffn[slice(units) if isinstance(units, int) else list(units)] = 1
            gates.append(BlockGates((np.arange(3) < level).astype(np.int64), ffn))
        return tuple(gates)

    def macs(self, spec: Any) -> int:
        """Exact multiply-accumulates, counted as ``cost`` does."""
        return int(cost(spec, self.gates(spec)))

    def to_json(self) -> str:
        """The JSON text, one line a block of units."""
        rows = ",\n  ".join(json.dumps(units) for units in self.ffn)
        return (
            f'{{\n "model": {json.dumps(self.model)},\n "ops": {json.dumps(self.ops)},\n'
            f' "ffn": [\n  {rows}\n ]\n}}\n'
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the JSON file, whole or not at all."""
        temporary = Path(f"{path}.tmp")
        temporary.write_text(self.to_json())
        temporary.replace(path)


def from_json(text: str) -> Architecture:
    """The architecture of a JSON text.

    Raises:
      ArchitectureError: not JSON, or not of this form.
    """
    try:
        values = json.loads(text)
        ops, ffn, model = values["ops"], values["ffn"], values.get("model", "")
        if not isinstance(ops, list):
            raise TypeError(f"ops must be a list, got {ops!r}")
        return Architecture(tuple(map(str, ops)), tuple(map(_units, ffn)), str(model))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchitectureError(
            'expected JSON like {"model": "deit_tiny_patch16_224", "ops": ["msa", ...],'
            f' "ffn": [512, [0, 3, 4], ...]}}; {type(error).__name__}: {error}'
        ) from error


def _units(value: Any) -> int | tuple[int, ...]:
    if type(value) is int:
        return value
    if isinstance(value, list) and all(type(unit) is int for unit in value):
        return tuple(value)
    raise TypeError(f"ffn must hold numbers or lists of indices, got {str(value)[:80]!r}")


def load(path: str | os.PathLike) -> Architecture:
    """The architecture in a JSON file, local or on ``gs://``.

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
    except ArchitectureError as error:
        raise ArchitectureError(f"{path}: {error}") from error


def from_gates(gates: Gates, model: str = "") -> Architecture:
    """The architecture of decided gates (0 or 1, kernel gates nested)."""
    kernel = [np.asarray(g.kernel) for g in gates]
    ffn = [np.flatnonzero(np.asarray(g.ffn)) for g in gates]
    return Architecture(
        tuple(OPS[round(float(k.sum()))] for k in kernel),
        tuple(tuple(int(u) for u in units) for units in ffn),
        model,
    )


def by_magnitude(architecture: Architecture, model: Any) -> Architecture:
    """The architecture with every number replaced by that many units of ``model``.

    The released models' widths are published, not which units they kept. A unit's magnitude is
    the product of the norms of its two weight vectors, which is invariant to moving scale from
    one to the other.
    """
    ffn = []
    for units, block in zip(architecture.ffn, model.blocks, strict=True):
        if isinstance(units, int):
            into = jnp.linalg.norm(block.ffn.fc1.kernel[...], axis=0)
            out = jnp.linalg.norm(block.ffn.fc2.kernel[...], axis=1)
            largest = np.argsort(-np.asarray(into * out), kind="stable")[:units]
            units = tuple(int(u) for u in np.sort(largest))
        ffn.append(units)
    return dataclasses.replace(architecture, ffn=tuple(ffn))
