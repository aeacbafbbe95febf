"""Makes pretrained vision transformers smaller: SPViT, in JAX, and what goes beyond it.

From the shell, ``spvit --help``. In Python:

    import spvit_jax as spvit

    dense = spvit.load("hf-hub:timm/deit_small_patch16_224.fb_in1k")
    small = spvit.compress(dense, "photos/", macs=0.5)           # minutes, no labels
    spvit.save(small, "small.safetensors")
    spvit.export(small, "small.onnx")                            # or .stablehlo, .int8.onnx, …

``frontier`` does that for several budgets, ``fit`` trains with a loss of your own, ``predict`` says
what a model sees. The paper's search by its pieces:

    space = spvit.Space(dense.spec.blocks, axes=("op", "heads", "ffn"))
    network = spvit.supernet(dense)                              # attention with its convolutions
    gate_logits = spvit.initial_logits(space)
    gates = spvit.sample(space, gate_logits, key)                # outside of the network
    logits = network(images, gates)
    spvit.cost(spvit.macs(dense.spec, space.ops), gates)         # soft, sampled or decided
    budget = spvit.Budget(spvit.macs(dense.spec, space.ops), 2e9)
    architecture = spvit.project(space, gate_logits, (budget,))  # within it
    small = spvit.fold(spvit.prune(network, architecture))       # fine-tune in between

``models`` are the dense networks, ``single_path`` the paper, ``data``, ``training`` and ``convert``
what it takes to use them, ``pipeline`` the whole of it, ``config`` its schema.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spvit_jax.compression import compress, frontier
    from spvit_jax.convert.facts import Facts
    from spvit_jax.convert.load import load, read_spec
    from spvit_jax.convert.native import About, save
    from spvit_jax.convert.to_torch import save_torch
    from spvit_jax.export.export import export
    from spvit_jax.models import VARIANTS, RegNet, RegNetSpec, Swin, SwinSpec, ViT, ViTSpec
    from spvit_jax.predict.classify import predict, preprocess
    from spvit_jax.single_path.architecture import Architecture
    from spvit_jax.single_path.budget import Budget, penalty, project
    from spvit_jax.single_path.gates import decide, initial_logits, sample
    from spvit_jax.single_path.prices import (
        cost,
        count_parameters,
        macs,
        parameters,
        published_macs,
    )
    from spvit_jax.single_path.prune import fold, form, prune
    from spvit_jax.single_path.space import Space
    from spvit_jax.single_path.supernet import supernet
    from spvit_jax.tradeoff import Frontier
    from spvit_jax.training.fitting import fit

__all__ = [
    "VARIANTS",
    "About",
    "Architecture",
    "Budget",
    "Facts",
    "Frontier",
    "RegNet",
    "RegNetSpec",
    "Space",
    "Swin",
    "SwinSpec",
    "ViT",
    "ViTSpec",
    "compress",
    "cost",
    "count_parameters",
    "decide",
    "export",
    "fit",
    "fold",
    "form",
    "frontier",
    "initial_logits",
    "load",
    "macs",
    "parameters",
    "penalty",
    "predict",
    "preprocess",
    "project",
    "prune",
    "published_macs",
    "read_spec",
    "sample",
    "save",
    "save_torch",
    "supernet",
]
__version__ = "0.2.0"

_HOMES = {
    "compression": ("compress", "frontier"),
    "convert": ("About", "Facts", "load", "read_spec", "save", "save_torch"),
    "models": ("VARIANTS", "RegNet", "RegNetSpec", "Swin", "SwinSpec", "ViT", "ViTSpec"),
    "predict.classify": ("preprocess",),
    "single_path.architecture": ("Architecture",),
    "single_path.budget": ("Budget", "penalty", "project"),
    "single_path.gates": ("decide", "initial_logits", "sample"),
    "single_path.prices": ("cost", "count_parameters", "macs", "parameters", "published_macs"),
    "single_path.prune": ("fold", "form", "prune"),
    "single_path.space": ("Space",),
    "single_path.supernet": ("supernet",),
    "tradeoff": ("Frontier",),
    "training.fitting": ("fit",),
}
_PACKAGES = ("export", "predict")  # which are the functions of their names too


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: ``--help`` does not wait for JAX."""
    if name in _PACKAGES:
        return importlib.import_module(f"spvit_jax.{name}")
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"spvit_jax.{home}"), name)
    raise AttributeError(f"module 'spvit_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion."""
    return [*__all__, "__version__"]
