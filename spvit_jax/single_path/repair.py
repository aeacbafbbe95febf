"""Least squares after the choice: what is left of each layer makes up for what is gone.

From the front, block by block, on the pruned model's own activations: each output projection (of
attention, of a convolution, of the FFN) is fitted so that the stream becomes the dense model's
again, which also corrects what earlier blocks did wrong. Fits are shrunk towards the kept weights,
so that a layer that lost nothing hardly moves; how much, held-out images decide.

Where a layer is gone altogether, the one before it aims at the dense stream behind it; where tokens
are merged, at the mean of the dense model's over the same.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from flax import nnx

from spvit_jax.models import Geometry, Tokens, token_weights, tokens_read
from spvit_jax.models.layers import Attention
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import (
    Calibration,
    Placed,
    bare,
    enter,
    starts_stage,
)
from spvit_jax.single_path.features import error
from spvit_jax.single_path.fits import damped, fitted_convolution
from spvit_jax.single_path.key_scores import KeySums, key_moments
from spvit_jax.single_path.moments import Moments, joined, moments, ridge
from spvit_jax.single_path.narrow import of_heads, turn_keys, turn_values
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.repair_plan import Plan, cut, plan
from spvit_jax.single_path.score import tap_rows
from spvit_jax.single_path.sharing import FoldedConv

Array = jax.Array
Model = TypeVar("Model", bound=Any)


def repair(
    model: Model,
    dense: Model,
    calibration: Calibration,
    architecture: Architecture | None = None,
    after_block: Callable[[], None] = lambda: None,
) -> Model:
    """Prunes a model and repairs it on unlabelled images; in deployable form.

    Args:
      model: dense or a supernet, to be pruned to ``architecture``; or, without one, pruned already.
        Stays as it is. A dense model's convolutions are fitted freely, others keep their kernels.
      dense: whose stream is aimed at.
      calibration: images like those the model will see.
      architecture: what to keep; numbers are heads and units of the largest magnitudes.
      after_block: called for each block that was repaired; may raise.

    Raises:
      ArchitectureError: the architecture does not fit the model.
    """
    work = plan(model, architecture)
    worker = _Repair(work.model, bare(dense), work, calibration)
    for i in range(len(work.model.blocks)):
        worker.block(i)
        after_block()
    return cut(work, model)


def repaired_error(
    dense: Any,
    calibration: Calibration,
    judges: Calibration,
    architecture: Architecture,
    patches: float = 0.0,
    after_block: Callable[[], None] = lambda: None,
) -> float:
    """Measures the ``feature_error`` on other images that a repaired model would have.

    Args:
      dense: the model.
      calibration: images to repair on.
      judges: the others, in batches of the same size.
      architecture: for the model.
      patches: as for ``feature_error``.
      after_block: as for ``repair``.
    """
    work = plan(dense, architecture)
    worker = _Repair(work.model, bare(dense), work, calibration, judges)
    for i in range(len(work.model.blocks)):
        worker.block(i)
        after_block()
    worker.dense_to(2 * i + 1)
    count = len(calibration.batches)
    mine = judges.place(worker.model), worker.pruned[count:]
    theirs = judges.place(worker.dense), worker.target[count:]
    return error(mine, theirs, judges, patches)


@dataclasses.dataclass
class _Repair:
    """Where the repair is: the streams of both models in front of a block.

    Batches of ``calibration`` come first, and are fitted to; those that judge go along.
    """

    model: Any
    dense: Any
    plan: Plan
    calibration: Calibration
    judges: Calibration | None = None

    def __post_init__(self) -> None:
        images = [self.calibration] + ([] if self.judges is None else [self.judges])
        self.pruned = [x for some in images for x in some.embed(self.model)]
        self.target = [x for some in images for x in some.embed(self.dense)]
        self.read = tokens_read(self.model.spec)
        self.station = -1  # of the dense stream: 2i is behind block i's mixer, 2i + 1 its FFN

    def block(self, i: int) -> None:
        """Repairs a block and runs it."""
        block, geometry = self.model.blocks[i], self.plan.geometries[i]
        if starts_stage(self.model.spec, i):
            self.pruned = self._each(self.calibration.place(self.model), enter, self.pruned, i)
        op = self.plan.architecture.ops[i]
        if block.mixer is not None:
            self.dense_to(self._aim(2 * i))
            self._mixer(i, op, geometry)
        self._advance(i, _mix, geometry.merges)
        self.dense_to(self._aim(2 * i + 1))
        self._ffn(i)
        self._advance(i, _feed)

    def _aim(self, station: int) -> int:
        """The last station of the dense stream before the pruned model's next layer."""
        spec, ops, widths = self.model.spec, self.plan.architecture.ops, self._widths()
        while station + 1 < 2 * len(ops):
            i, ffn = divmod(station + 1, 2)
            absent = widths[i] == 0 if ffn else ops[i] == "skip"
            if not absent or (not ffn and starts_stage(spec, i)):
                break
            station += 1
        return station

    def _widths(self) -> list[int]:
        return [len(rows["ffn"]) for rows in self.plan.rows]

    def dense_to(self, station: int) -> None:
        """Runs the dense model's streams to a station."""
        while self.station < station:
            self.station += 1
            i, ffn = divmod(self.station, 2)
            if not ffn and starts_stage(self.dense.spec, i):
                self.target = self._each(self.calibration.place(self.dense), enter, self.target, i)
            placed = self.calibration.place(self.dense.blocks[i])
            function, static = (_feed, ()) if ffn else (_mix, (0,))
            self.target = self._each(placed, function, self.target, *static)

    def _each(
        self, placed: Placed, function: Callable[..., Any], stream: list[Tokens], *static: Any
    ) -> list[Tokens]:
        return [placed(function, tokens, static=static) for tokens in stream]

    def _advance(self, i: int, function: Callable[..., Any], *static: Any) -> None:
        placed = self._place(i, function)
        self.pruned = self._each(placed, function, self.pruned, *static)

    def _place(self, i: int, function: Callable[..., Any]) -> Placed:
        """The half of a block that a function is of: what the other is needs no other program."""
        half: Any = nnx.merge(*nnx.split(self.model.blocks[i]))
        if function in (_feed, _fed):
            half.norm1 = half.mixer = None
        else:
            half.ffn = None
        return self.calibration.place(half)

    def _mixer(self, i: int, op: str, geometry: Geometry) -> None:
        block, rows = self.model.blocks[i], self.plan.rows[i]["mixer"]
        if self.plan.free[i]:
            size = OPS[op].size
            fitted, held = self._moments(i, _tapped, (geometry, size))
            block.mixer = fitted_convolution(fitted, held, geometry, block.ffn.fc1.dtype)
        elif isinstance(block.mixer, FoldedConv):
            if self.target[0].x.shape[1] > geometry.prefix:  # the patches are aimed somewhere
                self._fit(block.mixer.out, rows, self._moments(i, _convolved))
        elif isinstance(block.mixer, Attention):
            if self.plan.kept is not None:
                self._narrow_keys(i, geometry)
            seen = self._moments(i, _attended, (self.read,))
            if self.plan.kept is not None:
                seen = _narrow_values(block.mixer, geometry, seen)
            self._fit(block.mixer.out, rows, seen)

    def _narrow_keys(self, i: int, geometry: Geometry) -> None:
        """Turns queries and keys so that their kept features say the most; the others are zero."""
        if geometry.key_dim == geometry.head_dim:
            return
        placed = self._place(i, _keyed)
        batches = zip(self.calibration.batches, self.pruned, strict=self.judges is None)
        sums = [placed(_keyed, tokens, mask, static=(self.read,)) for (_, mask), tokens in batches]
        seen = jax.tree.map(lambda *parts: sum(parts), *sums).on_host()
        turn_keys(self.model.blocks[i].mixer, seen.bases(geometry.key_dim))

    def _ffn(self, i: int) -> None:
        rows = self.plan.rows[i]["ffn"]
        self._fit(self.model.blocks[i].ffn.fc2, rows, self._moments(i, _fed, (self.read,)))

    def _moments(
        self, i: int, function: Callable[..., Any], static: tuple[Any, ...] = ()
    ) -> tuple[Moments, Moments | None]:
        """Moments of a layer's inputs and what it should add to the stream; held-out ones apart."""
        placed = self._place(i, function)
        sums: dict[bool, Moments] = {}
        pairs = zip(self.calibration.batches, self.pruned, self.target, strict=self.judges is None)
        for number, ((_, mask), x, target) in enumerate(pairs):
            new = placed(function, x, target, mask, static=static)
            apart = self.calibration.held_out(number)
            sums[apart] = _joined(sums[apart], new) if apart in sums else new
        held = sums.get(True)
        return sums[False].on_host(), None if held is None else held.on_host()

    def _fit(self, layer: Any, rows: np.ndarray, seen: tuple[Moments, Moments | None]) -> None:
        """Fits a layer's kept rows; the others become zero."""
        kernel = np.asarray(layer.kernel[...], float)
        outputs = np.arange(len(kernel), len(kernel) + kernel.shape[1])
        some = np.concatenate([rows, outputs])
        fitted, held = (None if m is None else _part(m, some) for m in seen)
        assert fitted is not None
        fit = damped(fitted, held, lambda s, damping: ridge(s, kernel[rows], damping))
        whole = np.zeros_like(kernel)
        whole[rows] = fit.kernel
        dtype = layer.kernel[...].dtype
        layer.kernel[...] = jnp.asarray(whole, dtype)
        layer.bias[...] = jnp.asarray(fit.bias, dtype)


def _part(seen: Moments, some: np.ndarray) -> Moments:
    return Moments(seen.count, seen.mean[some], seen.scatter[np.ix_(some, some)])


_joined = jax.jit(joined)


def _mix(block: Any, tokens: Tokens, merges: int) -> Tokens:
    """The stream behind a block's mixer, and behind its merging.

    How much is merged is not the block's yet: blocks that are alike are compiled once.
    """
    block.merges = merges
    return block.mix(tokens)


def _feed(block: Any, middle: Tokens) -> Tokens:
    """The stream behind its FFN."""
    return block.feed(middle)


def _rows(inputs: Array, tokens: Tokens, target: Tokens, mask: Array, read: int) -> Moments:
    """Of a layer's inputs and what it should add, at the tokens that are aimed at.

    The first ``read`` of them are those that heads read.
    """
    aim = tokens.means(target.x)
    aimed = min(aim.shape[1], inputs.shape[1])
    missing = aim[:, :aimed] - tokens.x[:, :aimed]
    weight = mask[:, None] * token_weights(aimed, read)
    return moments(jnp.concatenate([inputs[:, :aimed], missing], -1), weight)


def _narrow_values(
    mixer: Attention, geometry: Geometry, seen: tuple[Moments, Moments | None]
) -> tuple[Moments, Moments | None]:
    """Turns values likewise, and what was seen of them."""
    if geometry.value_dim == geometry.head_dim:
        return seen
    own = seen[0].covariance[: geometry.width, : geometry.width]
    turn = turn_values(mixer, of_heads(own, geometry.heads), geometry.value_dim)
    turn = scipy.linalg.block_diag(turn, np.eye(len(seen[0].mean) - len(turn)))
    fitted, held = (
        None if m is None else Moments(m.count, m.mean @ turn, turn.T @ m.scatter @ turn)
        for m in seen
    )
    assert fitted is not None
    return fitted, held


def _keyed(block: Any, tokens: Tokens, mask: Array, read: int) -> KeySums:
    queries, keys = block.mixer.queries_and_keys(block.norm1(tokens.x))
    return key_moments(queries, keys, block.mixer.heads, mask, read)


def _attended(block: Any, tokens: Tokens, target: Tokens, mask: Array, read: int) -> Moments:
    y = block.norm1(tokens.x)
    attended = block.mixer.attend(*block.mixer.queries_and_keys(y), block.mixer.v(y), tokens)
    return _rows(attended, tokens, target, mask, read)


def _convolved(block: Any, tokens: Tokens, target: Tokens, mask: Array) -> Moments:
    prefix = block.mixer.geometry.prefix
    hidden = block.mixer.hidden(block.norm1(tokens.x)[:, prefix:])
    missing = tokens.means(target.x)[:, prefix:] - tokens.x[:, prefix:]
    return moments(jnp.concatenate([hidden, missing], -1), mask)


def _tapped(
    block: Any, tokens: Tokens, target: Tokens, mask: Array, geometry: Geometry, size: int
) -> Moments:
    missing = tokens.means(target.x) - tokens.x
    return moments(tap_rows(block.norm1(tokens.x), missing, geometry, size), mask)


def _fed(block: Any, middle: Tokens, target: Tokens, mask: Array, read: int) -> Moments:
    units = block.ffn.units(block.norm2(middle.x))
    return _rows(units, middle, target, mask, read)
