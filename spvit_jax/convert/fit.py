"""What any model may have to change to fit another image size or number of classes."""

import jax
import numpy as np

from spvit_jax.convert.checkpoint import State

RESIZED = ("antialiased", "bicubic")  # how: as timm does (a = -1/2), as transformers (-3/4)


def resize_grid(grid: np.ndarray, wanted: tuple[int, int], how: str = RESIZED[0]) -> np.ndarray:
    """Resizes ``[rows, columns, D]`` to those ``wanted`` by one of ``RESIZED``."""
    if how == "bicubic":
        down, right = map(_bicubic, grid.shape[:2], wanted)
        return np.einsum("ai,bj,ijd->abd", down, right, grid, optimize=True).astype(grid.dtype)
    shape = (*wanted, grid.shape[-1])
    return np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))


def _bicubic(before: int, after: int) -> np.ndarray:
    """What each of ``after`` places takes of each of ``before``: ``[after, before]``.

    Keys' cubic with a = -3/4 between the four nearest, edges repeated, as PyTorch interpolates.
    """
    places = (np.arange(after) + 0.5) * before / after - 0.5
    first, weights = np.floor(places).astype(int) - 1, np.zeros((after, before))
    for tap in range(4):
        d = np.abs(places - (first + tap))
        near = (1.25 * d - 2.25) * d * d + 1
        far = ((-0.75 * d + 3.75) * d - 6) * d + 3
        rows = np.arange(after), np.clip(first + tap, 0, before - 1)
        np.add.at(weights, rows, np.where(d <= 1, near, far))
    return weights


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
