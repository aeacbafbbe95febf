"""A run that has a bit of everything and takes seconds: ``--config=tests/drills/small.py:MODEL``.

MODEL is a file that ``make`` has written.
"""

import dataclasses
import runpy
from pathlib import Path

import ml_collections

from spvit_jax import config

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def make(file):
    """Writes a small dense model, of random weights."""
    from flax import nnx

    from spvit_jax.convert import save
    from spvit_jax.models import ViT, ViTSpec

    spec = ViTSpec(width=16, depth=2, heads=2, hidden=32, patch_size=7, image_size=28, classes=10)
    save(ViT(spec, rngs=nnx.Rngs(0)), file)


def of(model) -> config.Config:
    """The configuration for the model in a file."""
    values = runpy.run_path(str(QUICKSTART))["get_config"]("tiny")
    changes = {
        "model.variant": "",
        "model.checkpoint": str(model),
        "model.heads": 2,
        "data.train_split": "train[:160]",
        "data.test_split": "test[:64]",
        "search.epochs": 1.0,
        "search.batch_size": 32,
        "search.distillation": "none",
        "search.axes": ("op", "heads", "dims", "tokens", "ffn"),
        "finetune.batch_size": 32,
        "finetune.epochs": 2.0,
        "checkpoint_every": 2,
        "measure_seconds": 0.01,
    }
    values.update_from_flattened_dict(changes)
    return config.from_config_dict(values)


def get_config(model: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(dataclasses.asdict(of(model))).lock()
