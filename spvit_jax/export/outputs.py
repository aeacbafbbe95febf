"""What exported files give: the outputs of a model, by name."""

from typing import Any

import jax

from spvit_jax.models import RegNet
from spvit_jax.models.transformer import mean_logits, wide


def named_outputs(model: Any, images: jax.Array) -> dict[str, jax.Array]:
    """Computes the outputs that files have, of normalised NHWC images."""
    if isinstance(model, RegNet):
        return {"logits": model(images)}
    tokens = model.stream(images)[-1]
    name = "logits" if model.spec.classes else "features"
    values = {name: mean_logits(model.classify(tokens))}
    if patches_read(model):
        values["patches"] = wide(model.patch_features(tokens))
    return values


def patches_read(model: Any) -> bool:
    """Whether the patches that leave the last block are an output too."""
    if isinstance(model, RegNet):
        return False
    spec = model.spec
    asked = getattr(spec, "patches", False)
    return asked or not (spec.classes or spec.blocks[-1].class_only)
