"""Pruning and folding: surgery on a model's blocks, returning a new model.

dense or supernet -> ``prune`` -> shared form -> ``fold`` -> folded, with or without batch norm.
A pruned model carries its architecture; ``form`` says how far it has come.
"""

from typing import Any, TypeVar

from flax import nnx

from spvit_jax.single_path.architecture import Architecture, ArchitectureError
from spvit_jax.single_path.axes import AXES
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.sharing import FoldedConv, SharedConv
from spvit_jax.single_path.supernet import SinglePathBlock, supernet

Model = TypeVar("Model", bound=Any)  # a network with ``spec`` and ``blocks``
FORMS = ("dense", "supernet", "shared", "folded", "deploy")  # deploy: batch norms folded too


def form(model: Any) -> str:
    """Says which of ``FORMS`` a model is in; a pruned one without convolutions is in the last."""
    blocks = getattr(model, "blocks", ())
    mixers = [block.mixer for block in blocks]
    if any(isinstance(block, SinglePathBlock) for block in blocks):
        return "supernet"
    if model.architecture is None:
        return "dense"
    if any(isinstance(mixer, SharedConv) for mixer in mixers):
        return "shared"
    norms = [mixer.norm for mixer in mixers if isinstance(mixer, FoldedConv)]
    return "folded" if any(norm is not None for norm in norms) else "deploy"


def prune(model: Model, architecture: Architecture, temperature: float | None = None) -> Model:
    """Builds the network of ``architecture``, its weights slices of ``model``'s; shared form.

    From a dense model convolutions start with equal head shares and a fresh batch norm, as the
    released code does; from a supernet they keep what search has learnt.

    Args:
      model: dense or a supernet; stays as it is.
      architecture: for it; numbers become the indices of the largest magnitudes.
      temperature: of the head mixture of a dense model; None: as released for the family.

    Raises:
      ArchitectureError: the architecture does not fit the model, or that is pruned already.
    """
    architecture.check(model.spec)
    has = form(model)
    if has not in ("dense", "supernet"):
        raise ArchitectureError(f"prune a dense model or a supernet, not one of {has} form")
    model = nnx.clone(model) if has == "supernet" else supernet(model, tuple(OPS), temperature)
    kept: dict[str, list[Any]] = {axis.key: [] for axis in AXES.values()}
    for i, gated in enumerate(model.blocks):
        model.blocks[i] = block = gated.plain()
        for name, entry in architecture.of_block(i, model.spec).items():
            kept[AXES[name].key].append(AXES[name].prune(block, entry))
    entries = {key: tuple(values) for key, values in kept.items()}
    for key in ("heads", "dims", "merges"):
        if not getattr(architecture, key):
            entries[key] = ()
    model.architecture = Architecture(model=architecture.model, **entries)
    return model


def fold(model: Model, *, batch_norm: bool = False) -> Model:
    """Builds the same function with every convolution as plain layers.

    Args:
      model: a pruned model, shared or folded; stays as it is.
      batch_norm: fold the batch norms too, with their running statistics: for deployment.

    Raises:
      ArchitectureError: the model is not pruned.
    """
    if model.architecture is None or form(model) == "supernet":
        raise ArchitectureError(f"only a pruned model folds; this one is of {form(model)} form")
    model = nnx.clone(model)
    for block, op in zip(model.blocks, model.architecture.ops, strict=True):
        block.mixer = OPS[op].folded(block.mixer, batch_norm)
    return model
