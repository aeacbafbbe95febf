"""Dense networks. They know nothing of flags, data, losses or files."""

from spvit_jax.models.layers import Geometry
from spvit_jax.models.vit import VARIANTS, ViT, ViTSpec

__all__ = ["VARIANTS", "Geometry", "ViT", "ViTSpec"]
