"""The blocks of ViT and Swin in checkpoints: dense, and in the three forms SPViT released.

Both families write a block alike but for its name, the order of a kernel's taps, the name of its
gate logits and Swin's relative position bias. What an operation's arrays are called it says itself;
here stands what that means. Released skip blocks compute ``x + norm1(x)``,
which here is the op ``norm_skip``; one whose norm1 is all zero is a true ``skip``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.tables import (
    CONV,
    CONV_1X1,
    LINEAR,
    QKV,
    SAME,
    Pair,
    Rule,
    batch_norm,
    half_split,
    layer,
    norm,
    rule,
)
from spvit_jax.single_path.ops import OPS, PAPER, Names

Kinds = Mapping[str, Callable[[str, str], tuple[Rule, ...]]]  # rules of a pair of names, by kind

NORM1 = norm("{block}.norm1", "blocks.{i}.norm1")
FFN = (
    *norm("{block}.norm2", "blocks.{i}.norm2"),
    *layer("{block}.mlp.fc1", "blocks.{i}.ffn.fc1", LINEAR),
    *layer("{block}.mlp.fc2", "blocks.{i}.ffn.fc2", LINEAR),
)
GATED_FFN = (
    *norm("{block}.norm2", "blocks.{i}.norm2"),
    *layer("{block}.mlp.fc1_g", "blocks.{i}.ffn.gate", LINEAR),
    *layer("{block}.mlp.fc1_x", "blocks.{i}.ffn.fc1", LINEAR),
    *layer("{block}.mlp.fc2", "blocks.{i}.ffn.fc2", LINEAR),
)
QK_NORMS = (
    *norm("{block}.attn.q_norm", "blocks.{i}.mixer.q_norm"),
    *norm("{block}.attn.k_norm", "blocks.{i}.mixer.k_norm"),
)


def kinds(taps: Pair, position_bias: bool = False) -> Kinds:
    """The kinds of arrays that operations name.

    Args:
      taps: between the released order of a kernel's taps and ours.
      position_bias: whether attention has a table of relative position biases.
    """

    def one(pair: Pair) -> Callable[[str, str], tuple[Rule, ...]]:
        return lambda source, target: (rule(source, target, pair),)

    return {
        "linear": partial(layer, kernel=LINEAR),
        "convolution": partial(layer, kernel=CONV),
        "pointwise": partial(layer, kernel=CONV_1X1),
        "batch_norm": batch_norm,
        "taps": one(taps),
        "position_bias": one(SAME) if position_bias else lambda source, target: (),
    }


def _named(by_kind: Kinds, mixer: str, names: Names) -> tuple[Rule, ...]:
    """The rules of arrays below ``mixer``."""
    pairs = ((".".join(filter(None, (mixer, ours))), *rest) for ours, *rest in names)
    rules = (by_kind[kind](f"{{block}}.{theirs}", f"blocks.{{i}}.{o}") for o, theirs, kind in pairs)
    return tuple(r for some in rules for r in some)


def dense(by_kind: Kinds, blocks: Sequence[str], spec: Any) -> tuple[Rule, ...]:
    """The rules of a dense ViT's blocks, with all that one may have."""
    qkv = half_split(spec.heads) if spec.rotary == "eva" else QKV
    rules = _fused(by_kind, qkv) + (QK_NORMS if spec.qk_norm else ())
    rules += GATED_FFN if spec.gated else FFN
    return tuple(r.at(i, block) for i, block in enumerate(blocks) for r in rules)


def _fused(by_kind: Kinds, qkv: Pair = QKV) -> tuple[Rule, ...]:
    """A dense model's attention: queries, keys and values in one array."""

    def fused(source: str, name: str) -> Rule:
        targets = f"blocks.{{i}}.mixer.qk.{name}", f"blocks.{{i}}.mixer.v.{name}"
        return Rule((f"{{block}}.attn.qkv.{source}",), targets, qkv)

    names = OPS["msa"].names("shared") or ()
    own = tuple(name for name in names if name[0] not in ("qk", "v"))
    return (
        *NORM1,
        fused("weight", "kernel"),
        fused("bias", "bias"),
        *_named(by_kind, "mixer", own),
    )


def _searched(by_kind: Kinds, gate_logits: str) -> tuple[Rule, ...]:
    parts = (
        r
        for op in PAPER
        for r in _named(by_kind, f"mixer.parts.{op}", OPS[op].names("supernet") or ())
    )
    return (
        *NORM1,
        *_named(by_kind, "mixer.attention", OPS["msa"].names("shared") or ()),
        *_named(by_kind, "mixer", (("head_logits", "attn.head_probs", "taps"),)),
        *parts,
        rule(f"{{block}}.attn.{gate_logits}", "gates.{i}.op", SAME),
        rule("{block}.mlp.ffn_thresholds", "gates.{i}.ffn", SAME),
    )


def _mixing(by_kind: Kinds, gate_logits: str, form: str, op: str) -> tuple[Rule, ...]:
    """The rules of norm1 and what mixes tokens.

    Raises:
      CheckpointError: the released code has no such operation.
    """
    if form == "dense":
        return _fused(by_kind)
    if form == "supernet":
        return _searched(by_kind, gate_logits)
    names = OPS[op].names(form)
    if names is None:
        raise CheckpointError(
            f"the released PyTorch code has no {OPS[op].label}; keep the model as .safetensors of"
            " this package"
        )
    return (*(NORM1 if OPS[op].norm1 else ()), *_named(by_kind, "mixer", names))


def rules(
    by_kind: Kinds, gate_logits: str, form: str, blocks: Sequence[str], ops: Sequence[str]
) -> tuple[Rule, ...]:
    """The rules of all blocks; without ``ops``, of attention in each.

    Args:
      by_kind: the family's ``kinds``.
      gate_logits: the released name of the operations' gate logits.
      form: which the model is in.
      blocks: what the checkpoint calls each.
      ops: of each.
    """
    ops = ops or ("msa",) * len(blocks)
    return tuple(
        r.at(i, block)
        for i, (block, op) in enumerate(zip(blocks, ops, strict=True))
        for r in (*_mixing(by_kind, gate_logits, form, op), *FFN)
    )


def form_of(state: State) -> str:
    """Which form a ViT's or Swin's checkpoint is in."""
    names = " ".join(state)
    if ".attn.qkv." in names:
        return "dense"
    if "_thresholds" in names:
        return "supernet"
    return "folded" if ".attn.bconv." in names else "shared"


def ops_of(state: State, blocks: Iterable[str]) -> tuple[str, ...]:
    """The op of each block, from the names, shapes and zeros that are there."""
    ops = []
    for block in blocks:
        own = {
            n.removeprefix(f"{block}."): v for n, v in state.items() if n.startswith(f"{block}.")
        }
        ops.append(next(name for name in reversed(OPS) if OPS[name].found_in(own)))
    return tuple(ops)


def dead_norms(blocks: Iterable[str]) -> set[str]:
    """What these blocks, each a ``skip``, hold as zeros: the released code adds ``norm1(x)``."""
    return {f"{block}.norm1.{name}" for block in blocks for name in ("weight", "bias")}


def ffn_widths(state: State, blocks: Iterable[str], width: int) -> tuple[int, ...]:
    """The FFN units of each of these ``width`` wide blocks; where missing, the usual number."""
    usual = (4 * width, width)

    def name(block: str) -> str:
        gated = f"{block}.mlp.fc1_x.weight"
        return gated if gated in state else f"{block}.mlp.fc1.weight"

    return tuple(shape(state, name(block), 2, usual)[0] for block in blocks)


def heads_of(state: State, blocks: Iterable[str], width: int) -> int | None:
    """How many heads these ``width`` wide blocks have, if any of them tells."""
    for block in blocks:
        for name in ("attn.head_probs", "attn.relative_position_bias_table"):
            value = state.get(f"{block}.{name}")
            if value is not None and value.ndim == 2:
                return value.shape[name.endswith("table")]
        bias = state.get(f"{block}.attn.bconv.0.bias")
        if bias is not None and bias.size:
            return width // bias.size
    return None


def shape(
    state: State, name: str, axes: int, default: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """A shape; ``default`` for what is missing, so that it is reported with all else missing.

    Raises:
      CheckpointError: it has not so many axes, or is missing without a default.
    """
    dimensions = state[name].shape if name in state else default
    if dimensions is None or len(dimensions) != axes:
        was = "missing" if dimensions is None else f"of shape {list(dimensions)}"
        raise CheckpointError(f"{name} is {was}; expected an array of {axes} axes")
    return dimensions


def classes_of(state: State, head: str, width: int, default: int) -> int:
    """How many classes a head knows: by its kernel, else its bias; ``default``: without both."""
    known = shape(state, f"{head}.bias", 1, (default,))
    return shape(state, f"{head}.weight", 2, (*known, width))[0]
