"""The blocks of ViT and Swin in checkpoints: dense, and in the three forms SPViT released.

Both families write a block alike but for its name, the order of a kernel's taps, the name of its
gate logits and Swin's relative position bias. Released skip blocks compute ``x + norm1(x)``,
which here is the op ``norm_skip``; one whose norm1 is all zero is a true ``skip``.
"""

from collections.abc import Iterable, Mapping, Sequence

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
    layer,
    norm,
    rule,
)
from spvit_jax.single_path.architecture import NORM_SKIP

Mixers = Mapping[str, Mapping[str, tuple[Rule, ...]]]  # by form, then by op

NORM1 = norm("{block}.norm1", "blocks.{i}.norm1")
FFN = (
    *norm("{block}.norm2", "blocks.{i}.norm2"),
    *layer("{block}.mlp.fc1", "blocks.{i}.ffn.fc1", LINEAR),
    *layer("{block}.mlp.fc2", "blocks.{i}.ffn.fc2", LINEAR),
)
FOLDED = (
    *NORM1,
    *layer("{block}.attn.bconv.0", "blocks.{i}.mixer", CONV),
    *batch_norm("{block}.attn.bconv.1", "blocks.{i}.mixer.norm"),
    *layer("{block}.attn.bconv.3", "blocks.{i}.mixer.out", CONV_1X1),
)


def mixers(taps: Pair, gate_logits: str, position_bias: bool = False) -> Mixers:
    """The rules of norm1 and what mixes tokens.

    Args:
      taps: between the released order of a kernel's taps and ours.
      gate_logits: the released name of the kernel gates' logits.
      position_bias: whether attention has a table of relative position biases.
    """
    bias = (_position_bias("mixer"),) if position_bias else ()
    searched_bias = (_position_bias("mixer.attention"),) if position_bias else ()
    pruned = {
        "skip": (),
        NORM_SKIP: NORM1,
        "msa": (*NORM1, *_split("mixer", "qk", "v"), *bias),
    }
    shared = {f"conv{size}": _shared(size, taps) for size in ("1x1", "3x3")}
    return {
        "dense": {"msa": (*NORM1, *_fused(), *bias)},
        "supernet": {"msa": (*_searched(taps, gate_logits), *searched_bias)},
        "shared": pruned | shared,
        "folded": pruned | {"conv1x1": FOLDED, "conv3x3": FOLDED},
    }


def _position_bias(mixer: str) -> Rule:
    source = "{block}.attn.relative_position_bias_table"
    return rule(source, f"blocks.{{i}}.{mixer}.position_bias", SAME)


def _fused() -> tuple[Rule, ...]:
    def fused(source: str, name: str) -> Rule:
        targets = f"blocks.{{i}}.mixer.qk.{name}", f"blocks.{{i}}.mixer.v.{name}"
        return Rule((f"{{block}}.attn.qkv.{source}",), targets, QKV)

    out = layer("{block}.attn.proj", "blocks.{i}.mixer.out", LINEAR)
    return (fused("weight", "kernel"), fused("bias", "bias"), *out)


def _split(mixer: str, *names: str) -> tuple[Rule, ...]:
    """The projections ``names`` of an attention layer, and its output."""
    pairs = [(name, name) for name in names] + [("proj", "out")]
    rules = [layer(f"{{block}}.attn.{a}", f"blocks.{{i}}.{mixer}.{b}", LINEAR) for a, b in pairs]
    return tuple(r for both in rules for r in both)


def _shared(size: str, taps: Pair) -> tuple[Rule, ...]:
    return (
        *NORM1,
        *_split("mixer", "v"),
        rule("{block}.attn.head_probs", "blocks.{i}.mixer.head_logits", taps),
        *batch_norm(f"{{block}}.attn.bn_{size}", "blocks.{i}.mixer.norm"),
    )


def _searched(taps: Pair, gate_logits: str) -> tuple[Rule, ...]:
    return (
        *NORM1,
        *_split("mixer.attention", "qk", "v"),
        rule("{block}.attn.head_probs", "blocks.{i}.mixer.head_logits", taps),
        *batch_norm("{block}.attn.bn_1x1", "blocks.{i}.mixer.norm1x1"),
        *batch_norm("{block}.attn.bn_3x3", "blocks.{i}.mixer.norm3x3"),
        rule(f"{{block}}.attn.{gate_logits}", "gates.{i}.kernel", SAME),
        rule("{block}.mlp.ffn_thresholds", "gates.{i}.ffn", SAME),
    )


def rules(mixers: Mixers, form: str, blocks: Sequence[str], ops: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of all blocks; without ``ops``, of attention in each."""
    ops = ops or ("msa",) * len(blocks)
    return tuple(
        r.at(i, block)
        for i, (block, op) in enumerate(zip(blocks, ops, strict=True))
        for r in (*mixers[form][op], *FFN)
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
    return tuple(_op(state, f"{block}.") for block in blocks)


def _op(state: State, block: str) -> str:
    folded = state.get(f"{block}attn.bconv.0.weight")
    if folded is not None:
        return "conv1x1" if folded.shape[-1:] == (1,) else "conv3x3"
    mine = [name for name in state if name.startswith(block)]
    if any(".attn.qk" in name for name in mine):  # qk, or qkv; a supernet has all of them
        return "msa"
    for op, mark in (("conv3x3", ".attn.bn_3x3."), ("conv1x1", ".attn.bn_1x1.")):
        if any(mark in name for name in mine):
            return op
    norm1 = (state.get(f"{block}norm1.{name}") for name in ("weight", "bias"))
    return NORM_SKIP if any(value is not None and value.any() for value in norm1) else "skip"


def dead_norms(blocks: Iterable[str]) -> set[str]:
    """What these blocks, each a ``skip``, hold as zeros: the released code adds ``norm1(x)``."""
    return {f"{block}.norm1.{name}" for block in blocks for name in ("weight", "bias")}


def ffn_widths(state: State, blocks: Iterable[str], width: int) -> tuple[int, ...]:
    """The FFN units of each of these ``width`` wide blocks; where missing, the usual number."""
    usual = (4 * width, width)
    return tuple(shape(state, f"{block}.mlp.fc1.weight", 2, usual)[0] for block in blocks)


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
    found = state[name].shape if name in state else default
    if found is None or len(found) != axes:
        was = "missing" if found is None else f"of shape {list(found)}"
        raise CheckpointError(f"{name} is {was}; expected an array of {axes} axes")
    return found
