"""A dense model of ours as a file in timm's names, as pretrained models are passed around."""

import os
from pathlib import Path

import numpy as np
import safetensors.numpy

from spvit_jax.convert import forms, vit
from spvit_jax.convert.tables import revert
from spvit_jax.models import ViT


def save_timm(path: str | os.PathLike, model: ViT) -> None:
    """Writes the weights of a dense model as safetensors, whole or not at all.

    ``load_dense`` and timm read the file.

    Raises:
      ValueError: the model is not a dense one.
      OSError: the file cannot be written; what was there is untouched.
    """
    table = vit.table("dense", ("msa",) * model.spec.depth, model.spec.distilled)
    ours = {name: np.asarray(value) for name, value in forms.variables(model).items()}
    arrays = {name: np.ascontiguousarray(value) for name, value in revert(table, ours).items()}
    temporary = Path(f"{path}.tmp")
    temporary.write_bytes(safetensors.numpy.save(arrays))
    temporary.replace(path)
