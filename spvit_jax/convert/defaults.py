"""What transformers' ``config.json`` files may leave out, by model type."""

from typing import Any

DEFAULTS: dict[str, dict[str, Any]] = {
    "vit": {"layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    "deit": {"layer_norm_eps": 1e-12, "hidden_act": "gelu"},
    "dinov2": {"layer_norm_eps": 1e-6, "hidden_act": "gelu"},
    "dinov2_with_registers": {"layer_norm_eps": 1e-6, "hidden_act": "gelu"},
    "dinov3_vit": {"layer_norm_eps": 1e-5, "hidden_act": "gelu", "rope_theta": 100.0},
    "clip_vision_model": {
        "layer_norm_eps": 1e-5,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
    },
    "siglip_vision_model": {
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
    },
    "swin": {"layer_norm_eps": 1e-5, "hidden_act": "gelu"},
}
