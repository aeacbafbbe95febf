"""SPViT in JAX: pruning self-attention into convolution in a single path.

From the shell, ``python -m spvit_jax.main --help``. In Python:

    import spvit_jax as spvit

    dense, notes = spvit.load_dense("deit_base_patch16_224-b5f2ef4d.pth", spvit.VARIANTS[...])
    network = spvit.supernet(dense)                            # attention with its convolutions
    logits = network(images, spvit.sample(gate_logits, key))   # gates are sampled outside
    spvit.cost(dense.spec, spvit.decide(gate_logits))          # multiply-accumulates
    found = spvit.project(gate_logits, dense.spec, budget)     # an Architecture within the budget
    small = spvit.fold(spvit.prune(network, found))            # fine-tune in between

``models`` are the dense networks, ``single_path`` the paper, ``data``, ``training`` and ``convert``
what it takes to use them, ``pipeline`` the whole of it, ``config`` its schema.
"""

import importlib
from typing import Any

_HOMES = {
    "models": ("VARIANTS", "RegNet", "RegNetSpec", "Swin", "SwinSpec", "ViT", "ViTSpec"),
    "single_path.architecture": ("Architecture",),
    "single_path.budget": ("budget_loss", "project"),
    "single_path.cost": ("cost", "dense_macs"),
    "single_path.gates": ("BlockGates", "decide", "initial_logits", "sample"),
    "single_path.prune": ("count_parameters", "fold", "prune"),
    "single_path.supernet": ("supernet",),
    "convert": (
        "load_dense",
        "load_folded",
        "load_model",
        "load_released",
        "read_spec",
        "save_model",
        "save_torch",
    ),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``--help`` does not wait for JAX."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"spvit_jax.{home}"), name)
    raise AttributeError(f"module 'spvit_jax' has no attribute {name!r}")
