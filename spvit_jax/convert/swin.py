"""Swin checkpoints: Microsoft's names, timm's, and the three forms SPViT released.

Microsoft, and with it SPViT, has a merging at the end of the stage before and calls the classifier
``head``; timm has it at the start of the next and says ``head.fc``. Released kernels have their
centre tap first and then number the others column by column; ours are row by row.
"""

import math
import re
from collections.abc import Container

import numpy as np

from spvit_jax.convert import blocks
from spvit_jax.convert.blocks import classes_of, form_of, shape
from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import UNKNOWN, Facts
from spvit_jax.convert.fit import drop_heads, fit_heads, resize_grid
from spvit_jax.convert.positions import map_of
from spvit_jax.convert.tables import CENTRE_FIRST_TAPS, LINEAR, Rule, layer, norm, patches, rule
from spvit_jax.models import SwinSpec
from spvit_jax.models.swin import (
    relative_position_index,
    relative_positions,
    shift_mask,
    window_of,
)
from spvit_jax.sizes import Size, shown, sides

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

KIND = "Swin (patch_embed.proj.weight, layers.0.blocks.0.norm1.weight, …)"
HEAD_DIM = 32  # of every published Swin
WINDOW = 7  # of every published pruned one
HEADS = "head", "head.fc"  # what Microsoft and timm call the classifier
TABLE = "attn.relative_position_bias_table"

NORMS = (*norm("patch_embed.norm", "embed_norm"), *norm("norm", "norm"))
MIXING = blocks.kinds(CENTRE_FIRST_TAPS, position_bias=True), "kernel_thresholds_full"


def recognises(state: State) -> bool:
    """Whether a checkpoint looks like a Swin's."""
    start = "layers.0.blocks.0."
    return "patch_embed.proj.weight" in state and any(n.startswith(start) for n in state)


def block_names(spec: SwinSpec) -> tuple[str, ...]:
    """What a checkpoint calls each block."""
    return tuple(name for stage in _stages(spec.depths) for name in stage)


def _stages(depths: tuple[int, ...]) -> list[list[str]]:
    return [[f"layers.{s}.blocks.{i}" for i in range(depth)] for s, depth in enumerate(depths)]


def table(
    form: str, spec: SwinSpec, ops: tuple[str, ...] = (), names: Container[str] = ()
) -> tuple[Rule, ...]:
    """The rules between a checkpoint and our model; see ``families.Family``.

    Dense models are written with timm's names, others with those SPViT released.
    """
    late = form == "dense" and not _microsoft(names)
    stem = layer("patch_embed.proj", "patch_embed", patches(spec.channels))
    head = layer(HEADS[late], "head", LINEAR) if spec.classes else ()
    merges = [
        r for s in range(len(spec.depths) - 1) for r in _merging(f"layers.{s + late}.downsample", s)
    ]
    return (*stem, *NORMS, *head, *merges, *blocks.rules(*MIXING, form, block_names(spec), ops))


def _microsoft(names: Container[str]) -> bool:
    return "head.weight" in names or "layers.0.downsample.reduction.weight" in names


def _merging(source: str, stage: int) -> tuple[Rule, ...]:
    reduction = rule(f"{source}.reduction.weight", f"merges.{stage}.kernel", LINEAR)
    return (*norm(f"{source}.norm", f"merges.{stage}.norm"), reduction)


def buffers(spec: SwinSpec, ops: tuple[str, ...]) -> State:
    """What the released code keeps beside the weights: masks, and indices into bias tables."""
    state: State = {}
    for name, op, geometry in zip(block_names(spec), ops, spec.blocks, strict=True):
        if op == "msa":
            index = relative_position_index(window_of(geometry))
            state[f"{name}.attn.relative_position_index"] = index.astype(np.int64)
        if any(geometry.shift):
            state[f"{name}.attn_mask"] = shift_mask(geometry).astype(np.float32)
    return state


def spec_from_state(state: State, facts: Facts = UNKNOWN) -> SwinSpec:
    """The dense model a checkpoint comes from, by its shapes.

    A pruned checkpoint does not say how many FFN units there were: 4 for each feature, as in
    every published model. Without Microsoft's masks no checkpoint says its image size: the one
    whose last map is a single window, unless it is said to be no square.

    Args:
      state: a checkpoint of any form.
      facts: heads of the first stage, doubling in each, where tables and kernels do not tell; an
        image size that is no square.

    Raises:
      CheckpointError: an array is missing, or the shapes are not those of a Swin.
    """
    width, channels, patch, _ = shape(state, "patch_embed.proj.weight", 4)
    stages = _stages(_depths(state))
    windows = _windows(state, stages, patch, facts)
    window = max(map(max, windows.values()), default=WINDOW)
    head = HEADS[not _microsoft(state)]
    features = width << max(len(stages) - 1, 0)
    pruned = form_of(state) not in ("dense", "supernet")
    try:
        spec = SwinSpec(
            width=width,
            depths=tuple(map(len, stages)),
            heads=_heads(state, stages, width, facts.heads or 0),
            epsilon=facts.epsilon or 1e-5,
            hidden=_hidden(state, stages, width),
            window=window,
            patch_size=patch,
            image_size=_image_size(state, windows, window, len(stages), patch, facts),
            classes=classes_of(state, head, features, 1000 if pruned else 0),
            channels=channels,
        )
        _require_windows(spec, windows)
    except CheckpointError:
        raise
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the checkpoint is of no Swin that can be built: {error}") from error
    return spec


def _depths(state: State) -> tuple[int, ...]:
    pattern = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")
    indices = {(int(m[1]), int(m[2])) for name in state if (m := pattern.match(name))}
    stages = range(len({stage for stage, _ in indices}))
    return tuple(sum(stage == s for stage, _ in indices) for s in stages)


def _hidden(state: State, stages: list[list[str]], width: int) -> tuple[int, ...]:
    pruned = form_of(state) not in ("dense", "supernet")
    widths = [blocks.ffn_widths(state, names, width << s) for s, names in enumerate(stages)]
    return tuple(max(4 * width << s, *w) if pruned else w[0] for s, w in enumerate(widths))


def _heads(state: State, stages: list[list[str]], width: int, heads: int) -> tuple[int, ...]:
    if heads:
        return tuple(heads << s for s in range(len(stages)))
    counts = [blocks.heads_of(state, names, width << s) for s, names in enumerate(stages)]
    sizes = [(width << s) // n for s, n in enumerate(counts) if n]
    size = sizes[0] if sizes else HEAD_DIM  # where only skips are left it is of no consequence
    return tuple(n or (width << s) // size for s, n in enumerate(counts))


def _windows(
    state: State, stages: list[list[str]], patch: int, facts: Facts
) -> dict[int, tuple[int, int]]:
    """Rows and columns of the windows of each stage that tells."""
    windows: dict[int, tuple[int, int]] = {}
    for s, names in enumerate(stages):
        for name in names:
            if f"{name}.{TABLE}" in state:
                windows.setdefault(s, _window(state, f"{name}.{TABLE}", patch << s, facts))
            if f"{name}.attn_mask" in state:
                tokens = shape(state, f"{name}.attn_mask", 3)[1]
                windows.setdefault(s, (math.isqrt(tokens),) * 2)
    return windows


def _window(state: State, name: str, patch: int, facts: Facts) -> tuple[int, int]:
    """Rows and columns of the window that a table of relative positions is for.

    One that is no square is clipped to its map, whose tokens have ``patch`` pixels per side.
    """
    rows = shape(state, name, 2)[0]
    if side := _side(rows):
        return side, side
    tables = (shape(state, other, 2)[0] for other in state if other.endswith(TABLE))
    whole = max(map(_side, tables)) or WINDOW
    for size in (facts.image_size, facts.asked):
        high, wide = (min(whole, pixels // patch) for pixels in sides(size or 0))
        if relative_positions((high, wide)) == rows:
            return high, wide
    raise CheckpointError(
        f"{name} has {rows} rows, expected the square of an odd number: one for each relative"
        " position in a square window; or say what images it is for, where they are no squares and"
        " clip windows: in a config.json beside it, or facts=Facts.of(image_size=(HEIGHT, WIDTH))"
        " in Python"
    )


def _side(rows: int) -> int:
    """Tokens a side of the square window that a table of so many rows is for; 0: of none."""
    side = math.isqrt(rows)
    return (side + 1) // 2 if side**2 == rows and side % 2 else 0


def _image_size(
    state: State,
    windows: dict[int, tuple[int, int]],
    window: int,
    stages: int,
    patch: int,
    facts: Facts,
) -> Size:
    """Pixels of the images that a checkpoint is for, as far as it tells."""
    for name in filter(re.compile(r"layers\.\d+\.blocks\.\d+\.attn_mask").fullmatch, state):
        s, (count, tokens, _) = int(name.split(".")[1]), shape(state, name, 3)
        rows, columns = map_of(
            count * tokens, patch << s, facts, "the masks of its windows are for"
        )
        return (patch << s) * rows, (patch << s) * columns
    if facts.image_size:
        return facts.image_size
    deepest = max(windows, default=stages - 1)
    high, wide = windows.get(deepest, (window, window))
    if high != wide and facts.asked:
        return facts.asked
    clipped = high < window  # to the whole of its map
    return patch * (high << deepest if clipped else window << (stages - 1))


def _require_windows(spec: SwinSpec, windows: dict[int, tuple[int, int]]) -> None:
    """Raises unless all windows are of one size, or of their map's where that is smaller."""
    for stage, window in windows.items():
        expected = spec.windows(stage)
        if window != expected:
            raise CheckpointError(
                f"layers.{stage}.blocks.0.{TABLE} is for windows of {shown(window)} tokens, others"
                f" for {spec.window}x{spec.window}; expected {shown(expected)}: one size,"
                " clipped only where a map is smaller"
            )


def fit(state: State, spec: SwinSpec, notes: list[str], facts: Facts = UNKNOWN) -> None:
    """Makes a dense checkpoint fit another window or number of classes.

    Any image size will do; relative position biases are interpolated.
    """
    changed = set()
    for s, names in enumerate(_stages(spec.depths)):
        for table in (f"{name}.{TABLE}" for name in names):
            if table not in state:
                continue  # reported with everything else that does not fit
            window, wanted = _window(state, table, spec.patch_size << s, facts), spec.windows(s)
            if window != wanted:
                before, (rows, columns) = ([2 * n - 1 for n in w] for w in (window, wanted))
                grid = resize_grid(state[table].reshape(*before, -1), (rows, columns))
                state[table] = grid.reshape(rows * columns, -1)
                changed.add((window, wanted))
    notes.extend(
        f"relative position biases interpolated from windows of {shown(a)} tokens to {shown(b)}"
        for a, b in sorted(changed)
    )
    head = HEADS[not _microsoft(state)]
    if not spec.classes:
        drop_heads(state, (head,), notes)
        return
    fit_heads(state, (head,), spec.blocks[-1].width, spec.classes, notes)
