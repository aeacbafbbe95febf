"""Parts of a dense model's blocks as programs of their own, and how long they take here.

A part is a block, folded as it is deployed, that keeps one operation or an FFN and nothing else.
Its program is a few such blocks one after another, with random weights of their own: what a call
costs besides counts for little, and caches see as many weights as in a whole model.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.convert import forms
from spvit_jax.models import MODELS, Geometry, Tokens
from spvit_jax.progress import Bar, Console
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.axes import AXES, Subset, TokensAxis
from spvit_jax.single_path.latency import Table, TableError, Times, described
from spvit_jax.single_path.narrow import levels, turnable
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.supernet import supernet
from spvit_jax.sizes import sides
from spvit_jax.workdir import versions

COPIES = 4  # blocks of a program
STEPS = 4  # numbers of heads that are measured, and of FFN units besides none
MIN_TURNS = 5  # even where one turn takes longer than the time given
LEAST = 0.01  # seconds of a program in a turn: shorter ones are called again, each call waited for
SHORTER = 2, 4  # where tokens may be merged: what all patches are divided by, to measure fewer
SHORTER_STEPS = 2  # as STEPS, with fewer tokens
NARROWER = 1, 3, 5  # which of ``narrow.levels`` of heads' features are measured, besides all
SHORTER_NARROWER = (1,)  # and with fewer tokens
MERGED = 8  # and the same for those that are merged, to time that
WARM_UP = 2  # calls that are not counted

NOTHING = 1e-6  # milliseconds, of merging that noise makes faster than none

Call = Callable[[], Any]  # of a compiled program
Array = jax.Array


class Part(NamedTuple):
    """What is kept of a block on each axis of ``AXES``, by number, and what the block works on."""

    geometry: Geometry
    op: str
    heads: int = 0
    dims: tuple[int, ...] = ()  # (): all
    tokens: int = 0
    ffn: int = 0


def part(geometry: Geometry, op: str, **kept: Any) -> Part:
    """Makes a part. Only attention sees windows, so that others do not differ by them."""
    plain = dataclasses.replace(geometry, window=None, shift=(0, 0))
    return Part(geometry if op == "msa" else plain, op, **kept)


class Parts(NamedTuple):
    """The parts of one block that are measured, as in ``Times``; those of ``merge`` merge some."""

    ops: dict[str, Part]
    heads: dict[int, Part]
    ffn: dict[int, Part]
    merge: dict[str, Part]
    shorter: dict[int, "Parts"]
    keys: dict[int, Part]
    values: dict[int, Part]

    def every(self) -> Iterator[Part]:
        """Lists them."""
        for kind in (self.ops, self.heads, self.ffn, self.merge, self.keys, self.values):
            yield from kind.values()
        for fewer in self.shorter.values():
            yield from fewer.every()

    def times(self, durations: dict[Part, float], scale: float) -> Times:
        """The milliseconds of each."""

        def of_kind(parts: dict[Any, Part]) -> dict[Any, float]:
            return {key: _digits(scale * durations[part]) for key, part in parts.items()}

        merge = {}
        for op, merging in self.merge.items():
            adds = durations[merging] - durations[merging._replace(tokens=0)]
            merge[op] = _digits(max(scale * adds, NOTHING))
        shorter = {n: fewer.times(durations, scale) for n, fewer in self.shorter.items()}
        ops, heads, ffn = of_kind(self.ops), of_kind(self.heads), of_kind(self.ffn)
        return Times(ops, heads, ffn, merge, shorter, of_kind(self.keys), of_kind(self.values))


def _digits(value: float) -> float:
    """Six of them: more is noise."""
    return float(f"{value:.6g}")


def parts_of(geometry: Geometry, ops: tuple[str, ...], axes: tuple[str, ...] = ()) -> Parts:
    """Makes the parts of a block: each of ``ops``, some numbers of heads and of FFN units.

    Args:
      geometry: what the block works on.
      ops: what a search chooses from.
      axes: that may be touched. With "tokens", these may be merged, here or before: what can be
        there with fewer of them, too. With "dims", heads of some numbers of features, too.
    """
    dims = "dims" in axes
    parts = _parts_of(geometry, ops, STEPS, NARROWER if dims else ())
    if "tokens" not in axes or geometry.window:
        return parts
    every, fewer = geometry.patches, {}
    for left in (every // divisor for divisor in SHORTER):
        if left:
            short = dataclasses.replace(geometry, merged=every - left)
            of_short = _parts_of(short, ops, SHORTER_STEPS, SHORTER_NARROWER if dims else ())
            fewer[short.tokens] = of_short._replace(merge=_merging(short))
    return parts._replace(merge=_merging(geometry), shorter=fewer)


def _parts_of(
    geometry: Geometry, ops: tuple[str, ...], steps: int, places: tuple[int, ...]
) -> Parts:
    units = np.linspace(0, geometry.hidden, steps + 1).round()
    heads = np.linspace(1, geometry.heads, steps).round()
    keys, values = _narrower(geometry, places) if places else ({}, {})
    return Parts(
        {op: part(geometry, op) for op in ops if op != "msa" and OPS[op].fits(geometry)},
        {n: part(geometry, "msa", heads=n) for n in map(int, heads)},
        {n: part(geometry, "skip", ffn=n) for n in map(int, units)},
        {},
        {},
        keys,
        values,
    )


def _narrower(
    geometry: Geometry, places: tuple[int, ...]
) -> tuple[dict[int, Part], dict[int, Part]]:
    """Parts that keep all heads, of some features of keys and of values, and of all.

    ``places`` are in ``narrow.levels``.
    """
    whole, every = part(geometry, "msa", heads=geometry.heads), geometry.head_dim
    some = [levels(geometry)[place] for place in places]
    keys = {n: whole._replace(dims=(n, every)) for n in some} | {every: whole}
    values = {n: whole._replace(dims=(every, n)) for n in some} | {every: whole}
    return keys if turnable(geometry) else {}, values


def _merging(geometry: Geometry) -> dict[str, Part]:
    """Parts that merge some tokens, behind what has keys and what has none."""
    if TokensAxis().refuses(geometry) or geometry.patches < 2:
        return {}
    count = max(geometry.patches // MERGED, 1)
    return {
        "skip": part(geometry, "skip", tokens=count),
        "msa": part(geometry, "msa", heads=1, tokens=count),
    }


def measured(
    spec: Any,
    ops: tuple[str, ...],
    batch: int,
    seconds: float,
    dtype: Any,
    console: Console,
    axes: tuple[str, ...] = (),
) -> Table:
    """Measures the table of a dense model on this process's first device.

    All programs take turns, the whole model among them. Each is compared with that in every turn,
    and of the comparisons the median is taken: a machine that slows down slows all of them.

    Args:
      spec: the dense model's.
      ops: what a search chooses from.
      batch: images per call.
      seconds: time given to all calls; at least five turns are taken however long they last.
      dtype: of the computation; None: float32.
      console: shows how far it is.
      axes: that may be touched, as for ``parts_of``.

    Raises:
      TableError: as ``table``.
    """
    parts = distinct(spec, ops, axes)
    calls = _calls(spec, parts, batch, dtype, console)
    times = 1e3 * alternate(calls, seconds, lambda turns: console.bar(turns, 0, "measure"))
    return table(spec, ops, times, _about(batch, dtype), axes)


def distinct(spec: Any, ops: tuple[str, ...], axes: tuple[str, ...] = ()) -> dict[Part, int]:
    """Lists the parts of all blocks, each with the first block that has it."""
    parts: dict[Part, int] = {}
    for i, geometry in enumerate(spec.blocks):
        for one in parts_of(geometry, ops, axes).every():
            parts.setdefault(one, i)
    return parts


def table(
    spec: Any,
    ops: tuple[str, ...],
    times: np.ndarray,
    about: dict[str, Any],
    axes: tuple[str, ...] = (),
) -> Table:
    """Makes a table of the times of programs that took turns.

    Args:
      spec: the dense model's.
      ops: what a search chooses from.
      times: milliseconds ``[turns, 2 + parts]``: of the dense model, of one of empty blocks, and of
        ``COPIES`` of each part, in the order of ``distinct``.
      about: what the times depend on.
      axes: as for ``distinct``.

    Raises:
      TableError: the dense model is not slower than the empty one: something else slows both.
    """
    dense = float(np.median(times[:, 0]))
    empty, *each = (dense * np.median(times / times[:, :1], axis=0)[1:]).tolist()
    parts = distinct(spec, ops, axes)
    durations = {one: ms / COPIES for one, ms in zip(parts, each, strict=True)}
    blocks = [parts_of(geometry, ops, axes) for geometry in spec.blocks]
    together = sum(block.times(durations, 1.0).whole for block in blocks)
    if min(dense - empty, together) <= 0:
        raise TableError(
            f"a call takes {dense:.3g} ms, without any block {empty:.3g}: the machine is busy with"
            " something else; try again, or give more --seconds"
        )
    scale = (dense - empty) / together
    about = {**about, "turns": len(times), "scale": _digits(scale)}
    scaled = tuple(block.times(durations, scale) for block in blocks)
    return Table(described(spec), about, _digits(dense), scaled)


def _about(batch: int, dtype: Any) -> dict[str, Any]:
    """What times depend on besides the model, in JSON's types."""
    libraries = versions()
    return {
        "device": jax.local_devices()[0].device_kind,
        "backend": libraries.pop("backend"),
        "dtype": "float32" if dtype is None else jnp.dtype(dtype).name,
        "batch": batch,
        "versions": libraries,
    }


def _calls(
    spec: Any, parts: dict[Part, int], batch: int, dtype: Any, console: Console
) -> list[Call]:
    """The programs: the dense model, one of empty blocks, and each part."""
    depth = len(spec.blocks)
    empty = Architecture(("skip",) * depth, (0,) * depth)
    with console.bar(2 + len(parts), 0, "compile") as bar:

        def counted(call: Call) -> Call:
            bar.update()
            return call

        calls = [counted(model_call(spec, whole, batch, dtype)) for whole in (None, empty)]
        for one, block in zip(parts, built(spec, parts, dtype), strict=True):
            calls.append(counted(_stack_call(one.geometry, block, batch, dtype)))
    return calls


def model_call(spec: Any, architecture: Architecture | None, batch: int, dtype: Any) -> Call:
    """Compiles a whole model with random weights: dense (None), or of an architecture, folded.

    Args:
      spec: the dense model's.
      architecture: for it.
      batch: images per call.
      dtype: of the computation; None: float32.
    """
    form = "deploy" if architecture else "dense"
    graph, shapes = nnx.split(forms.build(spec, form, architecture, dtype=dtype))
    images = _random((batch, *sides(spec.image_size), spec.channels), 1.0, 0)
    return _compiled(lambda state, x: nnx.merge(graph, state)(x), _filled(shapes, 0), images)


def _stack_call(geometry: Geometry, block: Any, batch: int, dtype: Any) -> Call:
    """Compiles ``COPIES`` of a block of shapes in sequence, each with weights of its own.

    Where tokens were merged before it, they have sizes, and are so many of the embedded ones.
    """
    graph, shapes = nnx.split(block)

    def run(states: list[Any], tokens: Tokens) -> Array:
        x = tokens.x
        for state in states:
            read = nnx.merge(graph, state)(tokens._replace(x=x)).x
            x = jnp.concatenate([read, x[:, read.shape[1] :]], axis=1)  # fewer may leave than enter
        return x

    x = _random((batch, geometry.tokens, geometry.width), 1.0, 0).astype(dtype or jnp.float32)
    tokens = Tokens(x)
    if geometry.merged:
        places = jnp.minimum(jnp.arange(geometry.tokens + geometry.merged), geometry.tokens - 1)
        sources = jnp.broadcast_to(places, (batch, len(places)))
        tokens = Tokens(x, jnp.ones(x.shape[:2]), sources)
    states = [_filled(shapes, copy) for copy in range(COPIES)]
    return _compiled(run, states, tokens)


def _compiled(function: Callable[[Any, Any], Any], weights: Any, x: Any) -> Call:
    weights, x = jax.device_put((weights, x), jax.local_devices()[0])
    return partial(jax.jit(function).lower(weights, x).compile(), weights, x)


def built(spec: Any, parts: dict[Part, int], dtype: Any = None) -> list[Any]:
    """Makes the folded blocks, of shapes, that are ``parts``, each of its block of the model."""

    def make() -> list[Any]:
        model = supernet(MODELS[type(spec)](spec, dtype=dtype, rngs=nnx.Rngs(0)), tuple(OPS))
        return [_cut(model.blocks[i], kept) for kept, i in parts.items()]

    return nnx.eval_shape(make)


def _cut(gated: Any, kept: Part) -> Any:
    """Cuts a block of a supernet down to a part, and folds it."""
    block = nnx.clone(gated).plain()
    for name, axis in AXES.items():
        entry = getattr(kept, name)
        counts = isinstance(axis, Subset)
        axis.prune(block, tuple(range(entry)) if counts else entry)
    block.mixer = OPS[kept.op].folded(block.mixer, True)
    return block


def _filled(shapes: Any, seed: int) -> Any:
    """Makes random weights, and norms that change nothing."""
    leaves = []
    for i, (path, leaf) in enumerate(nnx.to_flat_state(shapes)):
        still = path[-1] in ("scale", "var")
        value = jnp.ones(leaf.shape) if still else _random(leaf.shape, 0.02, seed, i)
        leaves.append((path, leaf.replace(value.astype(leaf.dtype))))
    return nnx.from_flat_state(leaves)


def _random(shape: tuple[int, ...], scale: float, *seed: int) -> Array:
    return jnp.asarray(scale * np.random.default_rng(seed).standard_normal(shape, np.float32))


def alternate(
    calls: Sequence[Call], seconds: float, bar: Callable[[int], Any] = nullcontext
) -> np.ndarray:
    """Times calls in turns, each turn in another order: seconds, ``[turns, calls]``.

    Args:
      calls: of compiled programs; what they return is waited for.
      seconds: for all of them; at least five turns are taken however long they last.
      bar: makes a progress bar of so many turns.
    """
    for call in [*calls] * WARM_UP:
        jax.block_until_ready(call())
    once = _turn(calls, np.ones(len(calls), int), 0)
    repeats = np.ceil(LEAST / once).astype(int)
    rows = [_turn(calls, repeats, 0)]
    turns = max(MIN_TURNS, int(seconds / (rows[0] * repeats).sum()))
    with bar(turns) as shown:
        for turn in range(1, turns):
            rows.append(_turn(calls, repeats, turn))
            if isinstance(shown, Bar):
                shown.update()
    return np.array(rows)


def _turn(calls: Sequence[Call], repeats: np.ndarray, number: int) -> np.ndarray:
    """The seconds per call of each, in a random order."""
    seconds = np.zeros(len(calls))
    for i in np.random.default_rng(number).permutation(len(calls)):
        begin = time.perf_counter()
        for _ in range(repeats[i]):
            jax.block_until_ready(calls[i]())
        seconds[i] = (time.perf_counter() - begin) / repeats[i]
    return seconds
