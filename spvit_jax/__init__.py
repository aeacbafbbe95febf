"""SPViT in JAX: pruning self-attention into convolution in a single path.

From the shell, ``python -m spvit_jax.main --help``. In Python:

    import spvit_jax as spvit

    dense = spvit.load("hf-hub:timm/deit_small_patch16_224.fb_in1k")
    space = spvit.Space(dense.spec.blocks, axes=("op", "heads", "ffn"))
    network = spvit.supernet(dense)                              # attention with its convolutions
    gate_logits = spvit.initial_logits(space)
    gates = spvit.sample(space, gate_logits, key)                # outside of the network
    logits = network(images, gates)
    spvit.cost(spvit.macs(dense.spec, space.ops), gates)         # soft, sampled or decided
    budget = spvit.Budget(spvit.macs(dense.spec, space.ops), 2e9)
    found = spvit.project(space, gate_logits, (budget,))         # an Architecture within it
    small = spvit.fold(spvit.prune(network, found))              # fine-tune in between
    spvit.save(small, "small.safetensors")
    spvit.export(small, "small.onnx")                            # or .stablehlo, .int8.onnx, …

``models`` are the dense networks, ``single_path`` the paper, ``data``, ``training`` and ``convert``
what it takes to use them, ``pipeline`` the whole of it, ``config`` its schema.
"""

import importlib
from typing import Any

_HOMES = {
    "models": ("VARIANTS", "RegNet", "RegNetSpec", "Swin", "SwinSpec", "ViT", "ViTSpec"),
    "single_path.architecture": ("Architecture",),
    "single_path.budget": ("Budget", "penalty", "project"),
    "single_path.gates": ("decide", "initial_logits", "sample"),
    "single_path.prices": ("cost", "count_parameters", "macs", "parameters", "published_macs"),
    "single_path.prune": ("fold", "form", "prune"),
    "single_path.space": ("Space",),
    "single_path.supernet": ("supernet",),
    "convert": ("Facts", "load", "read_spec", "save", "save_torch"),
}
__all__ = sorted(["export", *(name for names in _HOMES.values() for name in names)])


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``--help`` does not wait for JAX."""
    if name == "export":  # a package that is a function too
        return importlib.import_module("spvit_jax.export")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"spvit_jax.{home}"), name)
    raise AttributeError(f"module 'spvit_jax' has no attribute {name!r}")
