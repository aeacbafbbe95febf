"""DeiT and ViT checkpoints: timm's and DeiT's own names, and the three forms SPViT released.

Released kernels number their taps column by column; ours are row by row.
"""

import math
import re

import numpy as np

from spvit_jax.convert import blocks
from spvit_jax.convert.blocks import form_of, shape
from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.fit import fit_heads, resize_grid
from spvit_jax.convert.tables import (
    COLUMN_MAJOR_TAPS,
    LINEAR,
    PATCHES,
    TOKENS,
    UNBATCHED,
    Rule,
    layer,
    norm,
    rule,
)
from spvit_jax.models import ViTSpec

__all__ = [
    "KIND",
    "block_names",
    "buffers",
    "fit",
    "form_of",
    "grid_of",
    "recognises",
    "spec_from_state",
    "table",
]

KIND = "DeiT or ViT (patch_embed.proj.weight, blocks.0.norm1.weight, …)"
HEAD_DIM = 64  # of every published DeiT and ViT

STEM = (
    *layer("patch_embed.proj", "patch_embed", PATCHES),
    rule("pos_embed", "pos_embed", UNBATCHED),
    *layer("head", "head", LINEAR),
)
PREFIX: tuple[tuple[Rule, ...], ...] = (  # by the number of class tokens
    (),
    (Rule(("cls_token",), ("tokens",), TOKENS),),
    (
        Rule(("cls_token", "dist_token"), ("tokens",), TOKENS),
        *layer("head_dist", "head_dist", LINEAR),
    ),
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
    last = norm("fc_norm" if spec.pool == "average_norm" else "norm", "norm")
    mixing = blocks.rules(*MIXING, form, block_names(spec), ops)
    return (*STEM, *last, *PREFIX[spec.prefix], *mixing)


def buffers(spec: ViTSpec, ops: tuple[str, ...]) -> State:
    """A ViT's released code keeps nothing but weights."""
    return {}


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
    width, _, patch, _ = shape(state, "patch_embed.proj.weight", 4)
    tokens = shape(state, "pos_embed", 3)[1]
    classes = shape(state, "head.weight", 2, (1000, width))[0]
    indices = {m[1] for name in state if (m := re.match(r"blocks\.(\d+)\.", name))}
    names = [f"blocks.{i}" for i in range(len(indices))]
    widths = blocks.ffn_widths(state, names, width)
    pruned = form_of(state) not in ("dense", "supernet")
    try:
        return ViTSpec(
            width=width,
            depth=len(names),
            heads=heads or _heads(state, names, width),
            hidden=max(4 * width, *widths) if pruned else widths[0],
            patch_size=patch,
            image_size=patch * grid_of(tokens - prefix_of(state)),
            classes=classes,
            class_token="cls_token" in state,
            distilled="dist_token" in state,
            pool=_pool(state),
        )
    except CheckpointError:
        raise
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the checkpoint is of no ViT that can be built: {error}") from error


def prefix_of(state: State) -> int:
    """How many class tokens a checkpoint has."""
    return ("cls_token" in state) + ("dist_token" in state)


def _pool(state: State) -> str:
    """timm's ``fc_norm`` stands behind an average; a last ``norm`` before whatever follows."""
    if "fc_norm.weight" in state:
        return "average_norm"
    return "token" if "cls_token" in state else "norm_average"


def _heads(state: State, names: list[str], width: int) -> int:
    told = blocks.heads_of(state, names, width)
    if told is None and width % HEAD_DIM:
        raise CheckpointError(
            f"the checkpoint does not say how many heads share its width of {width}; give it:"
            " --heads N in the shell, heads=N in Python"
        )
    return width // HEAD_DIM if told is None else told


def grid_of(patches: int) -> int:
    """The side of the square that so many patches form."""
    side = math.isqrt(max(patches, 0))
    if side**2 != patches:
        raise CheckpointError(f"the position embedding has {patches} patches, which is no square")
    return side


def fit(state: State, spec: ViTSpec, notes: list[str]) -> None:
    """Makes a dense checkpoint fit another image size or number of classes.

    Position embeddings are interpolated, class tokens left as they are.

    Raises:
      CheckpointError: it has more or fewer class tokens than the model.
    """
    has = prefix_of(state)
    if has != spec.prefix:
        counts = "no", "one", "two"
        raise CheckpointError(
            f"the checkpoint has {counts[has]} class token(s), the model {counts[spec.prefix]};"
            " choose a variant with as many (two: a distilled one), or another checkpoint"
        )
    _fit_position(state, spec, notes)
    names = ("head", "head_dist") if spec.distilled else ("head",)
    fit_heads(state, names, spec.width, spec.classes, notes)


def _fit_position(state: State, spec: ViTSpec, notes: list[str]) -> None:
    embedding = state.get("pos_embed")
    if embedding is None or embedding.ndim != 3:
        return  # reported with everything else that does not fit
    grid = grid_of(embedding.shape[1] - spec.prefix)
    wanted = spec.blocks[0].grid
    if grid == wanted:
        return
    tokens, patches = embedding[0, : spec.prefix], embedding[0, spec.prefix :]
    resized = resize_grid(patches.reshape(grid, grid, -1), wanted)
    patches = resized.reshape(wanted * wanted, -1)
    state["pos_embed"] = np.concatenate([tokens, patches])[None]
    notes.append(
        f"position embedding interpolated from {grid}x{grid} patches to {wanted}x{wanted}, for"
        f" images of {spec.image_size} pixels"
    )
