"""What any model may have to change to fit another image size or number of classes."""

import jax
import numpy as np

from spvit_jax.convert.checkpoint import State


def resize_grid(grid: np.ndarray, side: int) -> np.ndarray:
    """``[S, S, D]`` to ``[side, side, D]``: bicubic (a = -1/2), antialiased, as timm does."""
    shape = (side, side, grid.shape[-1])
    return np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))


def fit_heads(
    state: State, names: tuple[str, ...], width: int, classes: int, notes: list[str]
) -> None:
    """Replaces classifiers of another number of classes, or none, by fresh ones, always the same.

    Args:
      state: a dense checkpoint; changed.
      names: of its classifiers.
      width: features that they see.
      classes: how many the model tells apart.
      notes: gets a sentence for each change.
    """
    random = np.random.default_rng(0)
    for name in names:
        weight = state.get(f"{name}.weight")
        if weight is None and f"{name}.bias" in state:
            continue  # reported with everything else that does not fit
        if weight is not None and weight.shape[:1] == (classes,):
            continue
        state[f"{name}.weight"] = random.normal(0, 0.02, (classes, width)).astype("f4")
        state[f"{name}.bias"] = np.zeros(classes, np.float32)
        knows = "has no" if weight is None else f"knows {weight.shape[0]} classes with its"
        notes.append(
            f"the checkpoint {knows} {name}, the model {classes} classes: a fresh one, yet to be"
            " trained"
        )


def drop_heads(state: State, names: tuple[str, ...], notes: list[str]) -> None:
    """Takes classifiers out of a dense checkpoint whose features are wanted; says so."""
    gone = [state.pop(f"{name}.{part}", None) for name in names for part in ("weight", "bias")]
    if any(part is not None for part in gone):
        notes.append("its head is left out: the features are wanted")
