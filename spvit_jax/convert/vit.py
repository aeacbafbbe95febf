"""DeiT and ViT checkpoints: timm's and DeiT's own names, and the three forms SPViT released.

The released single-path checkpoints number a kernel's taps column by column; ours are row by
row. Their skip blocks compute ``x + norm1(x)``, which here is the op ``norm_skip``.
"""

import math
import re

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.tables import (
    COLUMN_MAJOR_TAPS,
    CONV,
    CONV_1X1,
    LINEAR,
    PATCHES,
    QKV,
    SAME,
    TOKENS,
    UNBATCHED,
    Rule,
    batch_norm,
    layer,
    norm,
    rule,
)
from spvit_jax.models import ViTSpec
from spvit_jax.single_path.architecture import NORM_SKIP

HEAD_DIM = 64  # of every published DeiT and ViT

STEM = (
    *layer("patch_embed.proj", "patch_embed", PATCHES),
    rule("pos_embed", "pos_embed", UNBATCHED),
    *norm("norm", "norm"),
    *layer("head", "head", LINEAR),
)
PLAIN = (Rule(("cls_token",), ("tokens",), TOKENS),)
DISTILLED = (
    Rule(("cls_token", "dist_token"), ("tokens",), TOKENS),
    *layer("head_dist", "head_dist", LINEAR),
)
NORM1 = norm("blocks.{i}.norm1", "blocks.{i}.norm1")
FFN = (
    *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *layer("blocks.{i}.mlp.fc1", "blocks.{i}.ffn.fc1", LINEAR),
    *layer("blocks.{i}.mlp.fc2", "blocks.{i}.ffn.fc2", LINEAR),
)


def _fused(name: str) -> Rule:
    targets = f"blocks.{{i}}.mixer.qk.{name}", f"blocks.{{i}}.mixer.v.{name}"
    source = "weight" if name == "kernel" else name
    return Rule((f"blocks.{{i}}.attn.qkv.{source}",), targets, QKV)


def _split(mixer: str, *names: str) -> tuple[Rule, ...]:
    """The projections ``names`` of an attention layer, and its output."""
    pairs = [(name, name) for name in names] + [("proj", "out")]
    rules = [layer(f"blocks.{{i}}.attn.{a}", f"blocks.{{i}}.{mixer}.{b}", LINEAR) for a, b in pairs]
    return tuple(r for both in rules for r in both)


def _shared(size: str) -> tuple[Rule, ...]:
    return (
        *NORM1,
        *_split("mixer", "v"),
        rule("blocks.{i}.attn.head_probs", "blocks.{i}.mixer.head_logits", COLUMN_MAJOR_TAPS),
        *batch_norm(f"blocks.{{i}}.attn.bn_{size}", "blocks.{i}.mixer.norm"),
    )


FUSED = (
    *NORM1,
    _fused("kernel"),
    _fused("bias"),
    *layer("blocks.{i}.attn.proj", "blocks.{i}.mixer.out", LINEAR),
)
FOLDED = (
    *NORM1,
    *layer("blocks.{i}.attn.bconv.0", "blocks.{i}.mixer", CONV),
    *batch_norm("blocks.{i}.attn.bconv.1", "blocks.{i}.mixer.norm"),
    *layer("blocks.{i}.attn.bconv.3", "blocks.{i}.mixer.out", CONV_1X1),
)
SEARCHED = (
    *NORM1,
    *_split("mixer.attention", "qk", "v"),
    rule("blocks.{i}.attn.head_probs", "blocks.{i}.mixer.head_logits", COLUMN_MAJOR_TAPS),
    *batch_norm("blocks.{i}.attn.bn_1x1", "blocks.{i}.mixer.norm1x1"),
    *batch_norm("blocks.{i}.attn.bn_3x3", "blocks.{i}.mixer.norm3x3"),
    rule("blocks.{i}.attn.kernel_thresholds", "gates.{i}.kernel", SAME),
    rule("blocks.{i}.mlp.ffn_thresholds", "gates.{i}.ffn", SAME),
)
PRUNED: dict[str, tuple[Rule, ...]] = {
    "skip": (),
    NORM_SKIP: NORM1,
    "msa": (*NORM1, *_split("mixer", "qk", "v")),
}
MIXERS: dict[str, dict[str, tuple[Rule, ...]]] = {
    "dense": {"msa": FUSED},
    "supernet": {"msa": SEARCHED},
    "shared": PRUNED | {"conv1x1": _shared("1x1"), "conv3x3": _shared("3x3")},
    "folded": PRUNED | {"conv1x1": FOLDED, "conv3x3": FOLDED},
}


def table(form: str, ops: tuple[str, ...], distilled: bool = False) -> tuple[Rule, ...]:
    """The rules between a checkpoint and our model of ``form``, with the op of each block."""
    blocks = [r.at(i) for i, op in enumerate(ops) for r in (*MIXERS[form][op], *FFN)]
    return (*STEM, *(DISTILLED if distilled else PLAIN), *blocks)


def ignored(name: str) -> bool:
    """Whether a name of the checkpoint is of no use here."""
    return name.endswith(".num_batches_tracked")


def form_of(state: State) -> str:
    """Which form a ViT checkpoint is in.

    Raises:
      CheckpointError: it is not a ViT's.
    """
    if "patch_embed.proj.weight" not in state or "cls_token" not in state:
        raise CheckpointError(
            "expected a DeiT or ViT checkpoint, with cls_token, patch_embed.proj.weight,"
            f" blocks.0.norm1.weight …; this one has {len(state)} names:"
            f" {', '.join(list(state)[:5])} …"
        )
    names = " ".join(state)
    if ".attn.qkv." in names:
        return "dense"
    if "_thresholds" in names:
        return "supernet"
    return "folded" if ".attn.bconv." in names else "shared"


def ops_of(state: State) -> tuple[str, ...]:
    """The op of each block, from the names and shapes that are there."""
    indices = [int(m[1]) for name in state if (m := re.match(r"blocks\.(\d+)\.", name))]
    return tuple(_op(state, f"blocks.{i}.") for i in range(len(set(indices))))


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
    return NORM_SKIP if any(".norm1." in name for name in mine) else "skip"


def spec_from_state(state: State, heads: int | None = None) -> ViTSpec:
    """The dense model a checkpoint comes from, by its shapes.

    A pruned checkpoint does not say how many FFN units there were: 4 for each feature, as in
    every published model. Neither does a dense one say its heads: of 64 features, likewise.

    Args:
      state: a checkpoint of any form.
      heads: where the checkpoint does not tell and a head is not 64 wide.

    Raises:
      CheckpointError: an array is missing, or the shapes are not those of a ViT.
    """
    form = form_of(state)
    width, _, patch, _ = _shape(state, "patch_embed.proj.weight", 4)
    tokens = _shape(state, "pos_embed", 3)[1]
    classes = _shape(state, "head.weight", 2, (1000, width))[0]
    depth = len(ops_of(state))
    widths = ffn_widths(state, depth, width)
    pruned = form not in ("dense", "supernet")
    distilled = "dist_token" in state
    try:
        return ViTSpec(
            width=width,
            depth=depth,
            heads=heads or _heads(state, width),
            hidden=max(4 * width, *widths) if pruned else widths[0],
            patch_size=patch,
            image_size=patch * grid_of(tokens - 1 - distilled),
            classes=classes,
            distilled=distilled,
        )
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the checkpoint is of no ViT that can be built: {error}") from error


def ffn_widths(state: State, depth: int, width: int) -> tuple[int, ...]:
    """The FFN units of each block; where they are missing, the usual number."""
    usual = (4 * width, width)
    return tuple(_shape(state, f"blocks.{i}.mlp.fc1.weight", 2, usual)[0] for i in range(depth))


def _shape(
    state: State, name: str, axes: int, default: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """A shape; ``default`` for what is missing, so that it is reported with all else missing."""
    shape = state[name].shape if name in state else default
    if shape is None or len(shape) != axes:
        found = "missing" if shape is None else f"of shape {list(shape)}"
        raise CheckpointError(f"{name} is {found}; expected an array of {axes} axes")
    return shape


def grid_of(patches: int) -> int:
    """The side of the square that so many patches form."""
    side = math.isqrt(max(patches, 0))
    if side**2 != patches:
        raise CheckpointError(f"the position embedding has {patches} patches, which is no square")
    return side


def _heads(state: State, width: int) -> int:
    for name, value in state.items():
        if name.endswith(".attn.head_probs"):
            return value.shape[0]
        if name.endswith(".attn.bconv.0.bias"):
            return width // value.shape[0]
    if width % HEAD_DIM:
        raise CheckpointError(
            f"the checkpoint does not say how many heads share its width of {width}; give it:"
            " --heads N in the shell, heads=N in Python"
        )
    return width // HEAD_DIM
