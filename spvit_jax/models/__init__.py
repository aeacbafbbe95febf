"""Dense networks. They know nothing of flags, data, losses or files."""

from spvit_jax.models import regnet, swin, vit
from spvit_jax.models.geometry import Geometry
from spvit_jax.models.regnet import RegNet, RegNetSpec
from spvit_jax.models.swin import Swin, SwinSpec
from spvit_jax.models.tokens import Tokens, token_weights, tokens_read
from spvit_jax.models.transformer import Classifier, check_model, check_options, mean_logits
from spvit_jax.models.vit import ViT, ViTSpec

Spec = ViTSpec | SwinSpec | RegNetSpec
VARIANTS: dict[str, Spec] = {**vit.VARIANTS, **swin.VARIANTS, **regnet.VARIANTS}
MODELS = {ViTSpec: ViT, SwinSpec: Swin, RegNetSpec: RegNet}  # the network of each kind of spec

__all__ = [
    "MODELS",
    "VARIANTS",
    "Classifier",
    "Geometry",
    "RegNet",
    "RegNetSpec",
    "Spec",
    "Swin",
    "SwinSpec",
    "Tokens",
    "ViT",
    "ViTSpec",
    "check_model",
    "check_options",
    "mean_logits",
    "token_weights",
    "tokens_read",
]
