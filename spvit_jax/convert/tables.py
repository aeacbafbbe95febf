"""Tables that say which arrays of a checkpoint become which of ours, readable in both directions.

A table is a list of rules; a rule turns the arrays of its sources into those of its targets by
a ``Pair`` of inverse functions. Every name stands in one rule, and what does not fit is reported
all at once.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from spvit_jax.convert.errors import CheckpointError

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
Function = Callable[..., tuple[np.ndarray, ...]]

CENTRE_FIRST = [4, 0, 1, 2, 3, 5, 6, 7, 8]  # released Swin's taps, as numbers of released DeiT's


@dataclasses.dataclass(frozen=True)
class Pair:
    """A named function of some arrays to some arrays, and its inverse."""

    name: str
    forward: Function
    backward: Function


@dataclasses.dataclass(frozen=True)
class Rule:
    """``sources`` of a checkpoint become our ``targets``.

    In the names of a block's rules ``{block}`` is what the checkpoint calls it, ``{i}`` its number.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    pair: Pair

    def at(self, i: int, block: str) -> "Rule":
        """The rule of one block."""
        return dataclasses.replace(
            self,
            sources=tuple(name.format(i=i, block=block) for name in self.sources),
            targets=tuple(name.format(i=i, block=block) for name in self.targets),
        )


def rule(source: str, target: str, pair: Pair) -> Rule:
    """A rule of one array."""
    return Rule((source,), (target,), pair)


def layer(source: str, target: str, kernel: Pair) -> tuple[Rule, Rule]:
    """The rules of ``weight`` and ``bias``."""
    return (
        rule(f"{source}.weight", f"{target}.kernel", kernel),
        rule(f"{source}.bias", f"{target}.bias", SAME),
    )


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """The rules of a layer norm."""
    return (
        rule(f"{source}.weight", f"{target}.scale", SAME),
        rule(f"{source}.bias", f"{target}.bias", SAME),
    )


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """The rules of a batch norm."""
    return (
        *norm(source, target),
        rule(f"{source}.running_mean", f"{target}.mean", SAME),
        rule(f"{source}.running_var", f"{target}.var", SAME),
    )


def _unflatten_taps(kernel: np.ndarray) -> tuple[np.ndarray, ...]:
    inputs, taps, outputs = kernel.shape
    side = round(taps**0.5)
    return (kernel.reshape(inputs, side, side, outputs).transpose(3, 0, 1, 2),)


def _split_qkv(weight: np.ndarray) -> tuple[np.ndarray, ...]:
    """``[3 D, …]`` as query and key, and value, each transposed."""
    cut = weight.shape[0] // 3 * 2
    return weight[:cut].T, weight[cut:].T


def _swap_taps(logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return (logits.reshape(-1, 3, 3).swapaxes(1, 2).reshape(logits.shape),)


def _from_centre_first(logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return _swap_taps(logits[:, np.argsort(CENTRE_FIRST)])


def _to_centre_first(logits: np.ndarray) -> tuple[np.ndarray, ...]:
    return (_swap_taps(logits)[0][:, CENTRE_FIRST],)


def _same(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (x,)


def _transpose(x: np.ndarray) -> tuple[np.ndarray, ...]:
    return (x.T,)


SAME = Pair("same", _same, _same)
LINEAR = Pair("[out, in] <-> [in, out]", _transpose, _transpose)
CONV_1X1 = Pair(
    "[out, in, 1, 1] <-> [in, out]",
    lambda w: (w[:, :, 0, 0].T,),
    lambda k: (k.T[:, :, None, None],),
)
CONV = Pair(
    "[out, in, ky, kx] <-> [in, taps, out]",
    lambda w: (w.transpose(1, 2, 3, 0).reshape(w.shape[1], -1, w.shape[0]),),
    _unflatten_taps,
)
QKV = Pair(
    "[3 D, D] or [3 D] <-> query and key, value",
    _split_qkv,
    lambda qk, v: (np.concatenate([qk.T, v.T]),),
)
COLUMN_MAJOR_TAPS = Pair("taps [(x, y)] <-> [(y, x)]", _swap_taps, _swap_taps)
CENTRE_FIRST_TAPS = Pair(
    "taps [centre, (x, y) of the others] <-> [(y, x)]", _from_centre_first, _to_centre_first
)
CONV_HWIO = Pair(
    "[out, in, ky, kx] <-> [ky, kx, in, out]",
    lambda w: (w.transpose(2, 3, 1, 0),),
    lambda k: (k.transpose(3, 2, 0, 1),),
)
KEYS_VALUES = Pair(
    "[2 D, D] or [2 D] <-> key, value",
    lambda w: tuple(part.T for part in np.split(w, 2)),
    lambda k, v: (np.concatenate([k.T, v.T]),),
)
UNBATCHED = Pair("[1, n, D] <-> [n, D]", lambda x: (x[0],), lambda x: (x[None],))


def patches(channels: int) -> Pair:
    """The kernel of a patch embedding of so many channels."""

    def unflatten(kernel: np.ndarray) -> tuple[np.ndarray, ...]:
        side = round((kernel.shape[0] / channels) ** 0.5)
        return (kernel.reshape(side, side, channels, -1).transpose(3, 2, 0, 1),)

    return Pair(
        f"[out, {channels}, py, px] <-> [(py, px, channel), out]",
        lambda w: (w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),),
        unflatten,
    )


def tokens(counts: tuple[int, ...]) -> Pair:
    """Arrays ``[1, n, D]`` of so many tokens each, and all of them, ``[tokens, D]``."""
    ends = np.cumsum(counts)[:-1].tolist()
    return Pair(
        f"[1, n, D] of n = {counts} <-> [tokens, D]",
        lambda *rows: (np.concatenate([row[0] for row in rows]),),
        lambda whole: tuple(part[None] for part in np.split(whole, ends)),
    )


def half_split(heads: int) -> Pair:
    """``QKV`` where a rotary embedding turns features 2j and 2j + 1 of a head together."""

    def reordered(rows: np.ndarray, inverse: bool) -> np.ndarray:
        per_head = len(rows) // heads
        order = np.concatenate([np.arange(0, per_head, 2), np.arange(1, per_head, 2)])
        order = np.argsort(order) if inverse else order
        return rows.reshape(heads, per_head, *rows.shape[1:])[:, order].reshape(rows.shape)

    def split(weight: np.ndarray) -> tuple[np.ndarray, ...]:
        q, k, v = np.split(weight, 3)
        return QKV.forward(np.concatenate([reordered(q, False), reordered(k, False), v]))

    def joined(qk: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, ...]:
        (weight,) = QKV.backward(qk, v)
        q, k, v = np.split(weight, 3)
        return (np.concatenate([reordered(q, True), reordered(k, True), v]),)

    return Pair(f"QKV, {heads} heads' queries and keys reordered", split, joined)


def apply(
    rules: Iterable[Rule], state: Arrays, shapes: Shapes, ignored: Callable[[str], bool]
) -> Arrays:
    """Our arrays, from a checkpoint's.

    Args:
      rules: the table.
      state: the checkpoint.
      shapes: of all our arrays; each is the target of one rule.
      ignored: whether a name of the checkpoint has no counterpart and needs none.

    Raises:
      CheckpointError: naming everything missing, unexpected or of another shape.
    """
    rules = tuple(rules)
    blank = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    expected = {name: value.shape for name, value in revert(rules, blank).items()}
    actual = {name: value.shape for name, value in state.items() if not ignored(name)}
    require(actual, expected)
    arrays: Arrays = {}
    for r in rules:
        results = r.pair.forward(*(state[name] for name in r.sources))
        arrays.update(zip(r.targets, results, strict=True))
    return arrays


def revert(rules: Iterable[Rule], arrays: Arrays) -> Arrays:
    """A checkpoint's arrays, from ours.

    Raises:
      ValueError: the table and the arrays do not name the same things, each once.
    """
    state: Arrays = {}
    left = dict(arrays)
    for r in rules:
        if not set(r.targets) <= set(left):
            raise ValueError(f"no array, or not one left, for the targets {', '.join(r.targets)}")
        results = r.pair.backward(*(left.pop(name) for name in r.targets))
        for name, value in zip(r.sources, results, strict=True):
            if name in state:
                raise ValueError(f"two rules of the table have the source {name}")
            state[name] = value
    if left:
        raise ValueError(f"no rule of the table has the target {', '.join(left)}")
    return state


def require(found: Shapes, expected: Shapes) -> None:
    """Raises ``CheckpointError`` unless both have the same names and shapes."""
    lines = [f"missing {n} {list(s)}" for n, s in expected.items() if n not in found]
    lines += [f"unexpected {n} {list(s)}" for n, s in found.items() if n not in expected]
    lines += [
        f"wrong shape {n}: the checkpoint has {list(found[n])}, the model needs {list(s)}"
        for n, s in expected.items()
        if n in found and tuple(found[n]) != tuple(s)
    ]
    if lines:
        raise CheckpointError(
            f"the checkpoint does not fit the model in {len(lines)} places:\n  "
            + "\n  ".join(lines)
        )
