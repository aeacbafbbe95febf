"""What each choice in each block would cost in error, measured on unlabelled images.

One pass of the dense model: for every block the moments of what its linear layers see are summed
up, whatever the number of images. Then least squares says how well the block does with fewer heads
or FFN units, or with a convolution, once what is left is fitted anew. Errors are relative to the
variance of what leaves the block, so that blocks can be compared.
"""

import dataclasses
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from spvit_jax.models import Geometry, Tokens, tokens_read
from spvit_jax.remote import followed
from spvit_jax.single_path.calibration import (
    Calibration,
    bare,
    enter,
    mean_square,
    starts_stage,
)
from spvit_jax.single_path.eliminate import DAMPING, Elimination, eliminate
from spvit_jax.single_path.key_scores import KeySums, key_errors, key_moments, value_errors
from spvit_jax.single_path.moments import Moments, joined, moments, reduced_rank
from spvit_jax.single_path.narrow import PARTS
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.ops.convolution import Convolution
from spvit_jax.single_path.sharing import windows_of
from spvit_jax.state import dumps, loads, typed

Array = jax.Array
POSITIONS = 49  # of a map, at which the inputs of convolutions are looked at


class ScoreError(ValueError):
    """Scores that cannot be made or read."""


class BlockScores(NamedTuple):
    """The errors of a block's choices, relative to the variance of its output.

    Attributes:
      ops: of each operation but attention in place of it.
      heads: of attention: which head goes first, and the error after each number of removals.
      ffn: of FFN units likewise.
      keys: of attention whose heads keep each of ``narrow.levels`` features of queries and keys;
        (): they keep all.
      values: of their values likewise.
    """

    ops: dict[str, float]
    heads: Elimination
    ffn: Elimination
    keys: tuple[float, ...] = ()
    values: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of each block of a dense model, and of how many images."""

    blocks: tuple[BlockScores, ...]
    images: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        blocks = tuple(
            _Row(b.ops, _listed(b.heads), _listed(b.ffn), b.keys, b.values) for b in self.blocks
        )
        path = followed(path)
        temporary = Path(f"{path}.tmp")
        temporary.write_text(dumps(_Saved(self.images, blocks)))
        temporary.replace(path)


@dataclasses.dataclass(frozen=True)
class _Listed:
    """An ``Elimination`` on disk."""

    order: tuple[int, ...]
    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.errors) - 1)):
            raise ValueError("an order is of something else than its errors")


@dataclasses.dataclass(frozen=True)
class _Row:
    """``BlockScores`` on disk."""

    ops: dict[str, float]
    heads: _Listed
    ffn: _Listed
    keys: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.keys) not in (0, PARTS) or len(self.values) != PARTS:
            raise ValueError(f"keys and values are no {PARTS} errors each")


@dataclasses.dataclass(frozen=True)
class _Saved:
    """``Scores`` on disk."""

    images: int
    blocks: tuple[_Row, ...]


def _listed(elimination: Elimination) -> _Listed:
    return _Listed(tuple(elimination.order.tolist()), tuple(elimination.errors.tolist()))


def load(path: str | os.PathLike[str]) -> Scores:
    """Reads the scores that ``Scores.save`` wrote.

    Raises:
      ScoreError: the file is not of that form.
    """
    try:
        saved: _Saved = typed(_Saved, loads(epath.Path(path).read_bytes()))
    except ValueError as error:
        raise ScoreError(
            f"{path} holds no scores ({error}); remove it: they are made again"
        ) from error

    def read(listed: _Listed) -> Elimination:
        return Elimination(np.array(listed.order, int), np.array(listed.errors, float))

    blocks = (
        BlockScores(row.ops, read(row.heads), read(row.ffn), row.keys, row.values)
        for row in saved.blocks
    )
    return Scores(tuple(blocks), saved.images)


class Seen(NamedTuple):
    """What is summed up over images in a block."""

    heads: Moments  # of the inputs of attention's output projection
    units: Moments  # of FFN units
    output: Moments  # of what leaves the block, per feature
    taps: dict[str, Moments]  # by convolution: of its inputs, then of attention's branch
    tokens: Array  # mean squared difference of the class tokens' branch where they pass instead
    keys: KeySums
    images: Array


def score(
    dense: Any,
    calibration: Calibration,
    ops: tuple[str, ...],
    after_batch: Callable[[], None] = lambda: None,
    after_block: Callable[[], None] = lambda: None,
) -> Scores:
    """Scores every choice in every block of a dense model.

    Args:
      dense: the model; stays as it is.
      calibration: images like those it will see, without labels.
      ops: the operations that may stand in for attention, ``skip`` and ``msa`` among them.
      after_batch: called for each batch that was run, may raise.
      after_block: called for each block that was solved.

    Raises:
      ScoreError: an operation that scores do not know.
    """
    known = ("skip", "msa")
    unknown = [op for op in ops if op not in known and not isinstance(OPS[op], Convolution)]
    if unknown:
        raise ScoreError(
            f"scores know skip, attention and convolutions; got {', '.join(unknown)} in search.ops."
            " Leave it out, or let gates decide: search.epochs above 0, search.start=released,"
            " shortlist.candidates=0"
        )
    model = bare(dense)
    seen = _pass(model, calibration, ops, after_batch)
    keys = key_errors(model, calibration, [one.keys for one in seen])
    blocks = []
    for i, block in enumerate(model.blocks):
        blocks.append(_block(block, jax.device_get(seen[i]), keys[i], model.spec.blocks[i]))
        seen[i] = None
        after_block()
    return Scores(tuple(blocks), sum(int(mask.sum()) for _, mask in calibration.batches))


def _pass(
    model: Any, calibration: Calibration, ops: tuple[str, ...], after_batch: Callable[[], None]
) -> list[Any]:
    """Runs the images through the model once; what was seen in each block."""
    placed = [calibration.place(block) for block in model.blocks]
    whole = calibration.place(model)
    read = tokens_read(model.spec)
    convolutions = tuple((op, OPS[op].size) for op in ops if OPS[op].size)
    seen: list[Any] = [None] * len(placed)
    for (_, mask), entering in zip(calibration.batches, calibration.embed(model), strict=True):
        tokens = entering
        for i, geometry in enumerate(model.spec.blocks):
            if starts_stage(model.spec, i):
                tokens = whole(enter, tokens, static=(i,))
            new, tokens = placed[i](_look, tokens, mask, static=(geometry, convolutions, read))
            seen[i] = new if seen[i] is None else _add(seen[i], new)
        after_batch()
    return seen


def _look(
    block: Any,
    tokens: Tokens,
    mask: Array,
    geometry: Geometry,
    convolutions: tuple[Any, ...],
    readers: int,
) -> tuple[Seen, Tokens]:
    """Runs a dense block; what its layers see, and its output."""
    x, read = tokens.x, geometry.read
    y = block.norm1(x)
    queries, keys = block.mixer.queries_and_keys(y)
    mixed = block.mixer.attend(queries, keys, block.mixer.v(y))
    branch = block.mixer.out(mixed)
    middle = x[:, :read] + branch
    units = block.ffn.units(block.norm2(middle))
    output = middle + block.ffn.fc2(units)
    taps = {}
    if not geometry.class_only:
        for name, size in convolutions:
            rows = tap_rows(y, branch, geometry, size)
            taps[name] = moments(rows, mask)
    before = min(geometry.prefix, geometry.read)
    passed = branch[:, :before] - y[:, :before]
    apart = mean_square(passed, mask) if geometry.prefix else jnp.zeros(())
    seen = Seen(
        moments(mixed, mask),
        moments(units, mask),
        moments(output, mask),
        taps,
        apart,
        key_moments(queries, keys, block.mixer.heads, mask, readers),
        mask.sum().astype(jnp.float32),
    )
    return seen, Tokens(output)


def tap_rows(y: Array, branch: Array, geometry: Geometry, size: int) -> Array:
    """What a convolution reads, then what it should give: ``[batch, positions, size^2 D + D]``.

    Args:
      y: normalised tokens ``[batch, tokens, D]``.
      branch: the targets ``[batch, tokens, D]``.
      geometry: of the block.
      size: taps per side. Of the map, about ``POSITIONS`` are taken.
    """
    places = np.arange(0, geometry.patches, _step(geometry))
    maps = windows_of(y[:, geometry.prefix :], geometry.grid, size)
    return jnp.concatenate([maps[:, places], branch[:, geometry.prefix :][:, places]], -1)


def _step(geometry: Geometry) -> int:
    """Every how many patches of a map, row by row, one is looked at: in all of its columns.

    Of a square one, in some that are as far apart.
    """
    (rows, columns), most = geometry.grid, max(geometry.patches // POSITIONS, 1)
    if rows == columns:
        return most
    return next(step for step in range(most, 0, -1) if math.gcd(step, columns) == 1)


@jax.jit
def _add(a: Seen, b: Seen) -> Seen:
    share = b.images / jnp.maximum(a.images + b.images, 1)
    return Seen(
        joined(a.heads, b.heads),
        joined(a.units, b.units),
        joined(a.output, b.output),
        {op: joined(a.taps[op], b.taps[op]) for op in a.taps},
        a.tokens + share * (b.tokens - a.tokens),
        jax.tree.map(jnp.add, a.keys, b.keys),
        a.images + b.images,
    )


def _block(block: Any, seen: Seen, by_key: np.ndarray, geometry: Geometry) -> BlockScores:
    """Solves a block; ``by_key`` are ``key_errors``."""
    heads, units, output = (m.on_host() for m in (seen.heads, seen.units, seen.output))
    variance = max(float(np.trace(output.covariance)), np.finfo(float).tiny)
    out = np.asarray(block.mixer.out.kernel[...], float)
    by_head = eliminate(heads.covariance, out, geometry.head_dim)
    by_unit = eliminate(units.covariance, np.asarray(block.ffn.fc2.kernel[...], float))
    branch = float(np.trace(out.T @ heads.covariance @ out))
    errors = {"skip": branch / variance}
    passed = float(seen.tokens) / variance  # a convolution hands class tokens through
    for name in OPS:
        if name in seen.taps:
            taps = seen.taps[name].on_host()
            *_, fit = reduced_rank(taps, geometry.width, geometry.head_dim, DAMPING)
            errors[name] = max(fit.error(taps) / variance, passed)
        elif geometry.class_only and OPS[name].size:
            errors[name] = passed
    relative = (Elimination(e.order, e.errors / variance) for e in (by_head, by_unit))
    by_value = value_errors(heads.covariance, out, geometry)
    narrower = (tuple((e / variance).tolist()) for e in (by_key, by_value))
    return BlockScores(errors, next(relative), next(relative), next(narrower), next(narrower))
