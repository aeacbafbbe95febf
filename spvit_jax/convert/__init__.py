"""Weights in and out: PyTorch checkpoints as models of ours, and our own model file.

``fetch`` finds the file, ``checkpoint`` reads its arrays, ``tables`` renames them by the rules of
``vit``, ``forms`` builds the model and fills it; ``load`` does all of it, ``native`` is our own
file. ``python -m spvit_jax.convert SRC DST`` does it from the shell.
"""

from spvit_jax.convert.checkpoint import read_state
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.forms import FORMS, build, fill
from spvit_jax.convert.load import (
    Released,
    dense_from_state,
    load_dense,
    load_released,
    released_from_state,
)
from spvit_jax.convert.native import Loaded, load_model, save_model

__all__ = [
    "FORMS",
    "CheckpointError",
    "Loaded",
    "Released",
    "build",
    "dense_from_state",
    "fill",
    "load_dense",
    "load_model",
    "load_released",
    "read_state",
    "released_from_state",
    "save_model",
]
