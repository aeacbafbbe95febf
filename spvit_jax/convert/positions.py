"""Which map learned positions are of."""

import math

import numpy as np

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import Facts
from spvit_jax.sizes import Size, shown, sides


def map_of(
    patches: int, patch: int, facts: Facts, counted: str = "the position embedding has"
) -> tuple[int, int]:
    """Rows and columns of the map that so many patches form.

    Those of the images that a checkpoint is said to be for, if they have so many; else a square's;
    where none has so many, those of the images that are asked for.

    Args:
      patches: their number.
      patch: pixels per side of each.
      facts: what is said of the checkpoint besides.
      counted: what has so many, for the message.

    Raises:
      CheckpointError: none of these has so many patches.
    """
    for size in (facts.image_size, None, facts.asked):
        if size is None and _is_square(patches):
            return (math.isqrt(patches),) * 2
        if size is not None and _count(size, patch) == patches:
            height, width = sides(size)
            return height // patch, width // patch
    known = facts.image_size or facts.asked
    other = f"; images of {shown(known)} pixels have {_count(known, patch)}" if known else ""
    raise CheckpointError(
        f"{counted} {patches} patches, which is no square{other}: say what images"
        " it is for, in a config.json beside it (image_size, or timm's img_size), by --image-size"
        " HEIGHT WIDTH in the shell, model.image_size=HEIGHT,WIDTH in a config, or"
        " facts=Facts.of(image_size=(HEIGHT, WIDTH)) in Python"
    )


def filled(state: State, facts: Facts) -> State:
    """Adds positions of zeros for class tokens and registers, where only patches have one.

    Args:
      state: a checkpoint in timm's names; not changed.
      facts: what is said of it besides.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return state  # reported with everything else that does not fit
    tokens = sum(name in state for name in ("cls_token", "dist_token"))
    registers = _shape(state, "reg_token", 3)[1]
    patch = _shape(state, "patch_embed.proj.weight", 4)[-1]
    missing = _missing(positions.shape[1], tokens, registers, patch, facts)
    if not missing:
        return state
    first, rest = np.split(positions, [tokens if missing == registers else 0], axis=1)
    zeros = np.zeros((1, missing, positions.shape[2]), positions.dtype)
    return state | {"pos_embed": np.concatenate([first, zeros, rest], axis=1)}


def _missing(count: int, tokens: int, registers: int, patch: int, facts: Facts) -> int:
    """How many tokens before the patches have none of ``count`` positions: none, registers, or all.

    Of several that can be, what ``map_of`` prefers.
    """
    ways = {count: tokens + registers, count - tokens: registers, count - tokens - registers: 0}
    total = _count(facts.image_size, patch)
    if total in ways:
        return ways[total]
    if _is_square(count) and not _is_square(count - tokens):
        return tokens + registers
    squares = [missing for patches, missing in ways.items() if _is_square(patches)]
    return min(squares, default=ways.get(_count(facts.asked, patch), 0))


def _count(size: Size | None, patch: int) -> int:
    """How many patches images of a size have; -1 if that is not known."""
    if not size or not patch or any(side % patch for side in sides(size)):
        return -1
    return math.prod(side // patch for side in sides(size))


def _is_square(count: int) -> bool:
    return count > 0 and math.isqrt(count) ** 2 == count


def _shape(state: State, name: str, rank: int) -> tuple[int, ...]:
    """The shape of an array; zeros without one of that rank."""
    value = state.get(name)
    return (0,) * rank if value is None or value.ndim != rank else value.shape
