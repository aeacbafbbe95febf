"""Weights in and out: PyTorch checkpoints as models of ours and back, and our own model file.

``fetch`` finds the file and ``checkpoint`` reads its arrays; ``facts`` are what the files beside it
say. ``spellings`` gives arrays of other code bases timm's names. ``families`` knows which of
``vit``, ``swin`` and ``regnet`` says how they are called here; each is a table of the rules in
``tables``, the first two with the ``blocks`` that search and pruning replace. ``plain`` rewrites
what timm adds to a plain model, ``fit`` what another image size or class count changes. ``forms``
builds the model and fills it; ``load`` does all of it, ``to_torch`` the way back, ``native`` is our
own file. ``python -m spvit_jax.convert SRC DST`` does it from the shell.
"""

from spvit_jax.convert.checkpoint import read_state
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import Facts
from spvit_jax.convert.forms import build, fill
from spvit_jax.convert.load import (
    about_of,
    dense_from_state,
    load,
    read_spec,
    released_from_state,
)
from spvit_jax.convert.native import USUAL, About, save
from spvit_jax.convert.to_torch import save_torch, state_for_torch

__all__ = [
    "USUAL",
    "About",
    "CheckpointError",
    "Facts",
    "about_of",
    "build",
    "dense_from_state",
    "fill",
    "load",
    "read_spec",
    "read_state",
    "released_from_state",
    "save",
    "save_torch",
    "state_for_torch",
]
