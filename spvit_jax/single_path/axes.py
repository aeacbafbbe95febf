"""What a block may lose, an axis each: operation, heads, features of heads, tokens, FFN units.

An axis knows its gates and how they nest, what each adds to a price, its entry in an architecture
and its slice of the weights. ``AXES`` lists them in the order in which they nest and prune; nothing
else does. Tokens are merged and heads narrowed, not gated: what all else costs depends on them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Attention
from spvit_jax.models.swin import relative_positions
from spvit_jax.single_path.narrow import narrow, turnable
from spvit_jax.single_path.ops import OPS

Array = jax.Array
Gates = dict[str, Any]  # of one block, by axis
Kept = Any  # an axis' entry in an architecture, of one block


class Axis:
    """One thing that a block may lose.

    Attributes:
      name: in ``search.axes`` and among a block's gates.
      key: in an architecture and its JSON.
      gated: whether a search may put it under gates.
    """

    name: str
    key: str
    gated = True

    def gates(self, geometry: Geometry, ops: tuple[str, ...]) -> int:
        """Counts the gates of a block."""
        raise NotImplementedError

    def hard(self, logits: Array) -> Array:
        """Decides which gates of these logits are open."""
        return logits > 0

    def nest(self, own: Array, gates: Gates) -> Array:
        """Closes what stands inside a closed gate.

        Args:
          own: the gates of this axis by themselves.
          gates: the nested ones of the axes before it.
        """
        return own

    def macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        """Counts the multiply-accumulates per image that each gate adds, as the model runs."""
        raise NotImplementedError

    def published_macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        """Counts them by the paper's formula."""
        raise NotImplementedError

    def parameters(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        """Counts the parameters that each gate adds to the folded model."""
        raise NotImplementedError

    def opened(self, kept: Kept, op: str, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        """Turns an architecture's entry into integer gates, nested."""
        raise NotImplementedError

    def kept(self, gates: np.ndarray, ops: tuple[str, ...]) -> Kept:
        """Turns decided gates into an architecture's entry."""
        return tuple(int(index) for index in np.flatnonzero(gates))

    def problem(self, kept: Kept, op: str, geometry: Geometry) -> str:
        """Says what is wrong with an entry for a block of this operation; "": nothing."""
        raise NotImplementedError

    def prune(self, block: Any, kept: Kept) -> Kept:
        """Cuts the weights of ``block`` down to what is kept; returns it, numbers as indices."""
        raise NotImplementedError


class OpAxis(Axis):
    """The operation: gate j says "at least the operation j + 1", so that gates nest."""

    name = "op"
    key = "ops"

    def gates(self, geometry: Geometry, ops: tuple[str, ...]) -> int:
        return len(ops) - 1

    def nest(self, own: Array, gates: Gates) -> Array:
        return jnp.cumprod(own)

    def macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        return np.diff([OPS[op].macs(geometry) + OPS[op].merging(geometry) for op in ops])

    def published_macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        counts = [OPS[op].published_macs(geometry) + OPS[op].merging(geometry) for op in ops]
        return np.diff(counts)

    def parameters(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        return np.diff([OPS[op].parameters(geometry) for op in ops])

    def opened(self, kept: Kept, op: str, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        return (np.arange(len(ops) - 1) < ops.index(kept)).astype(np.int64)

    def kept(self, gates: np.ndarray, ops: tuple[str, ...]) -> str:
        return ops[round(float(gates.sum()))]

    def problem(self, kept: Kept, op: str, geometry: Geometry) -> str:
        if kept not in OPS:
            return f"op must be one of {', '.join(OPS)}; got {kept!r}"
        if OPS[kept].fits(geometry):
            return ""
        return (
            f"{kept} reads a map, of whose {math.prod(geometry.grid)} patches {geometry.merged} are"
            " merged away before it; merge in later blocks, or choose another op"
        )

    def prune(self, block: Any, kept: Kept) -> str:
        block.mixer = OPS[kept].pruned(block.mixer)
        if not OPS[kept].norm1:
            block.norm1 = None
        return kept


class Subset(Axis):
    """An axis of things that are alike, of which some are kept: indices, or only their number."""

    noun: str  # for messages

    def available(self, geometry: Geometry) -> int:
        """Counts what the dense block has."""
        raise NotImplementedError

    def strength(self, block: Any) -> np.ndarray:
        """Measures each by its weights: those of the largest are kept where only a number says."""
        raise NotImplementedError

    def indices(self, kept: Kept, block: Any) -> tuple[int, ...]:
        """Turns a number into the indices of the strongest, ascending."""
        if not isinstance(kept, int):
            return kept
        largest = np.argsort(-self.strength(block), kind="stable")[:kept]
        return tuple(int(index) for index in np.sort(largest))

    def opened(self, kept: Kept, op: str, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        gates = np.zeros(self.available(geometry), np.int64)
        gates[slice(kept) if isinstance(kept, int) else list(kept)] = 1
        return gates

    def problem(self, kept: Kept, op: str, geometry: Geometry) -> str:
        count = self.available(geometry)
        if isinstance(kept, int):
            good = 0 <= kept <= count
        else:
            good = set(kept) <= set(range(count)) and list(kept) == sorted(set(kept))
        if good:
            return ""
        return (
            f"{self.noun} must be a number up to {count}, or different ascending indices below it;"
            f" got {str(kept)[:80]}"
        )


class HeadsAxis(Subset):
    """Heads of attention, nested in the gate of the operation that is attention."""

    name = key = "heads"
    noun = "attention heads"

    def gates(self, geometry: Geometry, ops: tuple[str, ...]) -> int:
        return geometry.heads

    def available(self, geometry: Geometry) -> int:
        return geometry.heads

    def hard(self, logits: Array) -> Array:
        """Attention keeps a head at least: its best."""
        return (logits > 0) | (jnp.arange(len(logits)) == jnp.argmax(logits))

    def nest(self, own: Array, gates: Gates) -> Array:
        return gates["op"][-1] * own

    def macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        """Keys and values of all tokens; queries and outputs of those that are read."""
        inputs, outputs = (n // geometry.windows for n in (geometry.tokens, geometry.read))
        one = (inputs + outputs) * geometry.width + inputs * outputs  # of a key's and a value's
        one *= geometry.key_dim + geometry.value_dim
        return np.full(geometry.heads, geometry.windows * one)

    def published_macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        tokens = geometry.tokens // geometry.windows
        one = 2 * tokens * geometry.width + tokens**2
        one *= geometry.key_dim + geometry.value_dim
        return np.full(geometry.heads, geometry.windows * one)

    def parameters(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        table = relative_positions(geometry.window) if geometry.window else 0
        keys, values = geometry.key_dim, geometry.value_dim
        one = 2 * (geometry.width + 1) * keys + (2 * geometry.width + 1) * values + table
        return np.full(geometry.heads, one)

    def opened(self, kept: Kept, op: str, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        return super().opened(kept if op == "msa" else (), op, geometry, ops)

    def problem(self, kept: Kept, op: str, geometry: Geometry) -> str:
        if op != "msa":
            return f"{op} has no heads to keep; got {str(kept)[:80]}" if kept else ""
        if kept in (0, ()):
            return "attention needs a head at least; without any, write skip as its op"
        return super().problem(kept, op, geometry)

    def strength(self, block: Any) -> np.ndarray:
        """The product of the norms of a head's values and of its outputs."""
        attention = block.mixer
        values, out = attention.v.kernel[...], attention.out.kernel[...]
        into = jnp.linalg.norm(values.reshape(len(values), attention.heads, -1), axis=(0, 2))
        return np.asarray(into * jnp.linalg.norm(out.reshape(attention.heads, -1), axis=1))

    def prune(self, block: Any, kept: Kept) -> tuple[int, ...]:
        if not isinstance(block.mixer, Attention):
            return ()
        heads = self.indices(kept, block)
        block.mixer.keep_heads(heads)
        return heads


def are_two(kept: Any) -> bool:
    """Whether an entry is a pair of whole numbers."""
    return isinstance(kept, tuple) and [type(n) for n in kept] == [int, int]


class DimsAxis(Axis):
    """Features of each head of a block, by number: of queries and keys, and of values."""

    name = key = "dims"
    gated = False

    def kept(self, gates: np.ndarray, ops: tuple[str, ...]) -> Kept:
        return tuple(int(number) for number in gates)

    def problem(self, kept: Kept, op: str, geometry: Geometry) -> str:
        if op != "msa":
            return f"{op} has no heads, so their dims must be []; got {kept!r:.80}" if kept else ""
        whole, least = geometry.head_dim, 1 if turnable(geometry) else geometry.head_dim
        if are_two(kept) and least <= kept[0] <= whole and 1 <= kept[1] <= whole:
            return ""
        keys = f"up to {whole}" if least == 1 else f"{whole}, since they are normalised or turned,"
        return (
            f"dims must be two numbers, features of a head's keys ({keys}) and of its values (up to"
            f" {whole}); got {kept!r:.80}"
        )

    def prune(self, block: Any, kept: Kept) -> Kept:
        if kept and isinstance(block.mixer, Attention):
            narrow(block.mixer, *kept)
        return kept


class TokensAxis(Axis):
    """Tokens that a block merges away between its attention and its FFN, by number."""

    name = "tokens"
    key = "merges"
    gated = False

    def problem(self, kept: Kept, op: str, geometry: Geometry) -> str:
        pairs = geometry.patches // 2
        if type(kept) is int and 0 <= kept <= pairs and not (kept and self.refuses(geometry)):
            return ""
        if kept and self.refuses(geometry):
            return f"merges must be 0, for {self.refuses(geometry)}; got {kept!r}"
        return (
            f"merges must be a number from 0 to {pairs}, half of the patches that are left;"
            f" got {kept!r}"
        )

    def refuses(self, geometry: Geometry) -> str:
        """Says why a block cannot merge; "": it can."""
        if geometry.window:
            return "windows of a Swin need all of their tokens"
        return "only class tokens go on from here" if geometry.class_only else ""

    def prune(self, block: Any, kept: Kept) -> int:
        block.merges = kept
        return kept


class FfnAxis(Subset):
    """FFN units."""

    name = key = "ffn"
    noun = "FFN units"

    def gates(self, geometry: Geometry, ops: tuple[str, ...]) -> int:
        return geometry.hidden

    def available(self, geometry: Geometry) -> int:
        return geometry.hidden

    def macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        one = geometry.matrices * geometry.ffn_tokens * geometry.width
        return np.full(geometry.hidden, one)

    def published_macs(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        """The class tokens' share is left out, as the released formula does."""
        patches = geometry.patches - geometry.merges
        return np.full(geometry.hidden, geometry.matrices * patches * geometry.width)

    def parameters(self, geometry: Geometry, ops: tuple[str, ...]) -> np.ndarray:
        biases = geometry.matrices - 1
        return np.full(geometry.hidden, geometry.matrices * geometry.width + biases)

    def strength(self, block: Any) -> np.ndarray:
        """The product of the norms of a unit's weight vectors, two or with a gate three.

        It is invariant to moving scale from one to the other.
        """
        into = jnp.linalg.norm(block.ffn.fc1.kernel[...], axis=0)
        if block.ffn.gate is not None:
            into = into * jnp.linalg.norm(block.ffn.gate.kernel[...], axis=0)
        out = jnp.linalg.norm(block.ffn.fc2.kernel[...], axis=1)
        return np.asarray(into * out)

    def prune(self, block: Any, kept: Kept) -> tuple[int, ...]:
        kept = self.indices(kept, block)
        block.ffn.keep_units(kept)
        return kept


AXES: dict[str, Axis] = {
    axis.name: axis for axis in (OpAxis(), HeadsAxis(), DimsAxis(), TokensAxis(), FfnAxis())
}
GATED = {name: axis for name, axis in AXES.items() if axis.gated}
