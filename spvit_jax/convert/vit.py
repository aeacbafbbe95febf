"""ViT checkpoints: timm's names, and the three forms SPViT released of DeiT.

Released kernels number their taps column by column; ours are row by row.
"""

import re
from typing import Any

import numpy as np

from spvit_jax.convert import blocks
from spvit_jax.convert.blocks import classes_of, form_of, shape
from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import UNKNOWN, Facts
from spvit_jax.convert.fit import RESIZED, drop_heads, fit_heads, resize_grid
from spvit_jax.convert.positions import map_of
from spvit_jax.convert.tables import (
    COLUMN_MAJOR_TAPS,
    KEYS_VALUES,
    LINEAR,
    UNBATCHED,
    Rule,
    layer,
    norm,
    patches,
    rule,
    tokens,
)
from spvit_jax.models import ViTSpec
from spvit_jax.sizes import Size, shown

__all__ = [
    "KIND",
    "block_names",
    "buffers",
    "fit",
    "form_of",
    "recognises",
    "spec_from_state",
    "table",
]

KIND = "ViT (patch_embed.proj.weight, blocks.0.norm1.weight, …)"
HEADS = {  # of the published models, by their width
    192: 3, 320: 5, 384: 6, 432: 6, 448: 7, 512: 8, 640: 10, 768: 12, 1024: 16, 1152: 16, 1280: 16,
    1408: 16, 1536: 24, 1664: 16, 4096: 32,
}  # fmt: skip
POOL = (
    rule("attn_pool.latent", "pool.latent", UNBATCHED),
    *layer("attn_pool.q", "pool.q", LINEAR),
    Rule(("attn_pool.kv.weight",), ("pool.k.kernel", "pool.v.kernel"), KEYS_VALUES),
    Rule(("attn_pool.kv.bias",), ("pool.k.bias", "pool.v.bias"), KEYS_VALUES),
    *layer("attn_pool.proj", "pool.out", LINEAR),
    *norm("attn_pool.norm", "pool.norm"),
    *layer("attn_pool.mlp.fc1", "pool.ffn.fc1", LINEAR),
    *layer("attn_pool.mlp.fc2", "pool.ffn.fc2", LINEAR),
)
MIXING = blocks.kinds(COLUMN_MAJOR_TAPS), "kernel_thresholds"


def recognises(state: State) -> bool:
    """Whether a checkpoint looks like a ViT's."""
    return "patch_embed.proj.weight" in state and any(n.startswith("blocks.0.") for n in state)


def block_names(spec: ViTSpec) -> tuple[str, ...]:
    """What a checkpoint calls each block."""
    return tuple(f"blocks.{i}" for i in range(spec.depth))


def table(
    form: str, spec: ViTSpec, ops: tuple[str, ...] = (), names: object = ()
) -> tuple[Rule, ...]:
    """The rules between a checkpoint and our model; see ``families.Family``."""
    rules = [*layer("patch_embed.proj", "patch_embed", patches(spec.channels))]
    rules += [*norm("fc_norm" if spec.pool == "average_norm" else "norm", "norm")]
    if spec.positions:
        rules.append(rule("pos_embed", "pos_embed", UNBATCHED))
    if spec.prefix:
        names = ("cls_token", "dist_token", "reg_token")
        counts = zip(names, (spec.class_token, spec.distilled, spec.registers), strict=True)
        has = {name: int(count) for name, count in counts if count}
        rules.append(Rule(tuple(has), ("tokens",), tokens(tuple(has.values()))))
    if spec.norm_pre:
        rules += norm("norm_pre", "norm_pre")
    if spec.pool == "attention":
        rules += POOL
    if spec.classes:
        rules += layer("head", "head", LINEAR)
    if spec.classes and spec.distilled:
        rules += layer("head_dist", "head_dist", LINEAR)
    if spec.rotary == "eva" and spec.qk_norm:
        raise CheckpointError("no model here has EVA's rotary positions and normalised queries")
    if form == "dense":
        return (*rules, *blocks.dense(MIXING[0], block_names(spec), spec))
    if spec.gated or spec.qk_norm or spec.rotary:
        raise CheckpointError(
            "the released PyTorch code prunes plain ViTs, without gated FFNs, normalised queries"
            " and keys or rotary positions; keep the model as .safetensors of this package"
        )
    return (*rules, *blocks.rules(*MIXING, form, block_names(spec), ops))


def buffers(spec: ViTSpec, ops: tuple[str, ...]) -> State:
    """A ViT's released code keeps nothing but weights."""
    return {}


def spec_from_state(state: State, facts: Facts = UNKNOWN) -> ViTSpec:
    """The dense model a checkpoint comes from, by its shapes.

    A pruned checkpoint does not say how many FFN units there were: 4 for each feature, as in
    every published model.

    Args:
      state: a checkpoint of any form.
      facts: what the arrays do not say.

    Raises:
      CheckpointError: an array is missing, the shapes are not those of a ViT, or neither they nor
        the facts say what has to be known.
    """
    width, channels, patch, _ = shape(state, "patch_embed.proj.weight", 4)
    indices = {m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}
    names = [f"blocks.{i}" for i in range(len(indices))]
    widths = blocks.ffn_widths(state, names, width)
    pruned = form_of(state) not in ("dense", "supernet")
    try:
        return ViTSpec(
            width=width,
            depth=len(names),
            heads=facts.heads or _heads(state, names, width),
            hidden=max(4 * width, *widths) if pruned else widths[0],
            patch_size=patch,
            image_size=_image_size(state, patch, facts),
            classes=classes_of(state, "head", width, 1000 if pruned else 0),
            class_token="cls_token" in state,
            distilled="dist_token" in state,
            registers=_registers(state),
            pool=_pool(state, facts),
            positions="pos_embed" in state,
            norm_pre="norm_pre.weight" in state,
            qk_norm="blocks.0.attn.q_norm.weight" in state,
            gated="blocks.0.mlp.fc1_g.weight" in state,
            channels=channels,
            **_unseen(state, facts),
        )
    except CheckpointError:
        raise
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the checkpoint is of no ViT that can be built: {error}") from error


def _image_size(state: State, patch: int, facts: Facts) -> Size:
    if "pos_embed" in state:
        rows, columns = map_of(shape(state, "pos_embed", 3)[1] - prefix_of(state), patch, facts)
        return patch * rows, patch * columns
    return facts.image_size or 224 // patch * patch


def _unseen(state: State, facts: Facts) -> dict[str, Any]:
    """What arrays cannot show: the activation, the norms' epsilon, how positions turn.

    Raises:
      CheckpointError: models with these arrays differ in it, and no fact tells.
    """
    activation, clip = facts.activation, "norm_pre.weight" in state
    if not activation and (clip or "attn_pool.latent" in state):
        raise _ask("activation", "which activation its FFNs have", "quick_gelu, gelu or gelu_tanh")
    gated = "blocks.0.mlp.fc1_g.weight" in state
    fields: dict[str, Any] = {"activation": activation or ("silu" if gated else "gelu")}
    fields["epsilon"] = facts.epsilon or (1e-5 if clip else 1e-6)
    if facts.rotary and facts.rotary.kind != "none":
        fields["epsilon"] = facts.epsilon or (1e-5 if facts.rotary.kind == "dinov3" else 1e-6)
        kind, base, grid = facts.rotary.kind, facts.rotary.base, facts.rotary.grid
        return fields | {"rotary": kind, "rotary_base": base, "rotary_grid": grid or 16}
    if "pos_embed" not in state:
        raise _ask("rotary", "how its rotary positions turn", "dinov3 or eva")
    if gated and not facts.rotary and not facts.family:  # EVA-02 is, beside learned positions
        raise _ask("rotary", "whether positions turn its queries too", "none, eva or dinov3")
    return fields


def _ask(option: str, what: str, values: str) -> CheckpointError:
    return CheckpointError(
        f"neither the arrays nor a config.json beside them say {what}: give it, --{option} in the"
        f" shell, model.{option} in a config, facts=Facts.of({option}=…) in Python; one of"
        f" {values}"
    )


def prefix_of(state: State) -> int:
    """How many class tokens and registers a checkpoint has."""
    return ("cls_token" in state) + ("dist_token" in state) + _registers(state)


def _registers(state: State) -> int:
    return shape(state, "reg_token", 3, (1, 0, 0))[1]


def _pool(state: State, facts: Facts) -> str:
    """timm's ``fc_norm`` stands behind an average; a last ``norm`` before whatever follows."""
    if "attn_pool.latent" in state:
        return "attention"
    if "fc_norm.weight" in state:
        return "average_norm"
    averages = facts.pool == "avg" and "head.weight" in state  # of features, the token's are meant
    return "norm_average" if averages or "cls_token" not in state else "token"


def _heads(state: State, names: list[str], width: int) -> int:
    heads = blocks.heads_of(state, names, width)
    if heads is None and "blocks.0.attn.q_norm.weight" in state:
        heads = width // shape(state, "blocks.0.attn.q_norm.weight", 1)[0]
    if heads is None and width not in HEADS:
        raise CheckpointError(
            f"the checkpoint does not say how many heads share its width of {width}; give it:"
            " --heads N in the shell, model.heads in a config, facts=Facts.of(heads=N) in Python"
        )
    return HEADS[width] if heads is None else heads


def fit(state: State, spec: ViTSpec, notes: list[str], facts: Facts = UNKNOWN) -> None:
    """Makes a dense checkpoint fit another image size or number of classes.

    Position embeddings are interpolated, class tokens left as they are.

    Raises:
      CheckpointError: it has more or fewer class tokens than the model.
    """
    registers = _registers(state)
    has, wanted = prefix_of(state) - registers, spec.prefix - spec.registers
    if has != wanted or registers != spec.registers:
        counts = "no", "one", "two"
        raise CheckpointError(
            f"the checkpoint has {counts[has]} class token(s) and {registers} registers, the model"
            f" {counts[wanted]} and {spec.registers};"
            " choose a variant with as many (two: a distilled one), or another checkpoint"
        )
    _fit_position(state, spec, notes, facts)
    names = ("head", "head_dist") if spec.distilled else ("head",)
    if not spec.classes:
        drop_heads(state, ("head", "head_dist"), notes)
        return
    if "head.weight" in state and state["head.weight"].shape[1:] == (2 * spec.width,):
        raise CheckpointError(
            "its classifier sees the class token and the mean of the patches side by side, as none"
            " here does; take the model without it: model.output=features in a config"
        )
    fit_heads(state, names, spec.width, spec.classes, notes)


def _fit_position(state: State, spec: ViTSpec, notes: list[str], facts: Facts) -> None:
    embedding = state.get("pos_embed")
    if embedding is None or embedding.ndim != 3:
        return  # reported with everything else that does not fit
    grid = map_of(embedding.shape[1] - spec.prefix, spec.patch_size, facts)
    wanted, how = spec.blocks[0].grid, facts.positions or RESIZED[0]
    if grid == wanted:
        return
    tokens, patches = embedding[0, : spec.prefix], embedding[0, spec.prefix :]
    resized = resize_grid(patches.reshape(*grid, -1), wanted, how)
    state["pos_embed"] = np.concatenate([tokens, resized.reshape(-1, resized.shape[-1])])[None]
    notes.append(
        f"position embedding interpolated ({how}) from {shown(grid)} patches to {shown(wanted)},"
        f" for images of {shown(spec.image_size)} pixels"
    )
