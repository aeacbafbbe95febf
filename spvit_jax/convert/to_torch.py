"""Back to PyTorch: dense models for timm, pruned ones for the code SPViT released.

What is written loads there with ``strict=True``, and here comes back bit for bit.
"""

import io
import os
from typing import Any

import numpy as np
import safetensors.numpy

from spvit_jax.convert import blocks, forms
from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.contents import TORCH
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.families import FAMILIES, revert_model
from spvit_jax.convert.files import local, write_whole
from spvit_jax.models import ViTSpec
from spvit_jax.models.layers import BatchNorm
from spvit_jax.single_path.prune import form


def state_for_torch(model: Any) -> dict[str, np.ndarray]:
    """The names and arrays of a model in PyTorch.

    A dense model's are timm's, a pruned one's those of the released code. A deployed model's batch
    norms come back as the identity, because that code has them; a skip, for which it has
    ``x + norm1(x)``, as a norm1 of zeros.

    Raises:
      CheckpointError: the released code has no such model: a supernet without its gate logits,
        attention with fewer heads, merged tokens, an operation of ours.
    """
    if form(model) == "supernet":
        raise CheckpointError("a supernet is not written for PyTorch: prune it first")
    state = revert_model(model) if form(model) == "dense" else _pruned(model)
    for name in [name for name in state if name.endswith(".running_mean")]:
        state[name.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
    return {name: np.asarray(value, order="C") for name, value in state.items()}


def unsaid(model: Any) -> str:
    """Says what of a model a state dict does not: a sentence, or "" where names and shapes do."""
    plain = ViTSpec()
    if not isinstance(model.spec, ViTSpec):
        return ""
    fields = [
        f"{name} {value}"
        for name in ("pool", "rotary", "activation", "epsilon")
        if (value := getattr(model.spec, name)) != getattr(plain, name)
    ]
    if not fields:
        return ""
    return (
        f"a state dict does not say {', '.join(fields)}: build the model so in PyTorch, or take"
        " python -m spvit_jax.export MODEL OUT.safetensors, which comes with a module that knows"
    )


def _pruned(model: Any) -> State:
    family, architecture = FAMILIES[type(model.spec)], model.architecture
    named = list(
        zip(family.block_names(model.spec), architecture.ops, model.spec.blocks, strict=True)
    )
    counts = architecture.head_counts(model.spec)
    if any(architecture.merges):
        raise CheckpointError(
            "the model merges tokens, which the released PyTorch code does not; keep it as"
            " .safetensors of this package"
        )
    features = architecture.dims or ((),) * len(named)
    for i, (count, dims, (_, op, geometry)) in enumerate(zip(counts, features, named, strict=True)):
        if {*dims} - {geometry.head_dim}:
            raise CheckpointError(
                f"heads of block {i} keep {dims} of {geometry.head_dim} features, and the released"
                " PyTorch code has none with fewer; keep the model as .safetensors of this package"
            )
        if op == "msa" and count < geometry.heads:
            raise CheckpointError(
                f"block {i} keeps {count} of {geometry.heads} heads, and the released PyTorch code"
                " has no attention with fewer; keep the model as .safetensors of this package"
            )
    norms = _identity_norms(model) if form(model) == "deploy" else {}
    state = revert_model(model, **norms)
    for block, op, geometry in named:
        if op == "skip":
            dead = np.zeros(geometry.width, state["norm.weight"].dtype)
            state |= dict.fromkeys(blocks.dead_norms([block]), dead)
    return state | family.buffers(model.spec, architecture.ops)


def _identity_norms(model: Any) -> State:
    """Batch norms that do nothing, for all convolutions, in our names."""
    arrays: State = {}
    for name, bias in forms.variables(model).items():
        if name.endswith(".mixer.bias"):
            norm = name.removesuffix("bias") + "norm"
            zeros = np.zeros(bias.shape, bias.dtype)
            arrays |= {f"{norm}.scale": zeros + 1, f"{norm}.bias": zeros, f"{norm}.mean": zeros}
            arrays[f"{norm}.var"] = zeros + 1 - np.asarray(BatchNorm.EPSILON, bias.dtype)
    return arrays


def save_torch(model: Any, path: str | os.PathLike) -> None:
    """Writes ``state_for_torch`` as a file, whole or not at all.

    Args:
      model: see ``state_for_torch``.
      path: ``….safetensors``, or ``….pth`` and the like for ``{"model": state}`` as torch saves.

    Raises:
      CheckpointError: PyTorch is needed and missing, or no such model or kind of file, or its
        weights hold numbers that are not finite.
      OSError: the file cannot be written; what was there is untouched.
    """
    path = local(path)
    suffix = path.suffix
    if suffix not in (".safetensors", *TORCH):
        raise CheckpointError(
            f"cannot tell from {path} what to write; end its name in .safetensors or"
            f" {', '.join(TORCH)}"
        )
    state = state_for_torch(model)
    forms.check_numbers(forms.variables(model))
    binary = safetensors.numpy.save(state) if suffix == ".safetensors" else _torch_file(state, path)
    write_whole(path, binary)


def _torch_file(state: State, path: str | os.PathLike) -> bytes:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f'{path} needs PyTorch to be written: pip install "torch>=2.6"'
            " (or end its name in .safetensors, which does not)"
        ) from None
    file = io.BytesIO()
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    torch.save({"model": tensors}, file)
    return file.getvalue()
