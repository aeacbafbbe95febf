"""Models from checkpoints of any origin: a dense one to start from, or a released pruned one."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from spvit_jax.convert import blocks, forms
from spvit_jax.convert.checkpoint import State, read_state
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.families import FAMILIES, Family, ignored, recognise, revert_model
from spvit_jax.convert.fetch import fetch
from spvit_jax.convert.native import About, is_native, load_model, load_spec, read_about
from spvit_jax.convert.tables import apply
from spvit_jax.models import Spec
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.gates import BlockGates, Gates, decide
from spvit_jax.single_path.prune import fold

GATES = BlockGates._fields


class Released(NamedTuple):
    """A model as a checkpoint has it."""

    model: Any
    form: str  # one of forms.FORMS
    architecture: Architecture | None  # a pruned model's: widths only; a supernet's: its decision
    gate_logits: Gates | None  # a supernet's


def load_dense(address: str, spec: Spec, **options: Any) -> tuple[Any, list[str]]:
    """The dense model of ``spec`` with the weights at ``address``, and what had to be changed.

    Position embeddings of another image size and relative position biases of another window are
    interpolated; another number of classes gets a fresh head.

    Args:
      address: of a checkpoint of any family, or of our own dense model file; see ``fetch``.
      spec: the model that is wanted.
      options: of the model: dropout, drop_path, dtype, remat; a RegNet has dtype alone.

    Returns:
      The model, and a sentence for each change, for the user to see.

    Raises:
      CheckpointError: not such a checkpoint, or it does not fit; names all that does not.
    """
    path = fetch(address)
    try:
        return dense_from_state(_dense_state(str(path)), spec, **options)
    except CheckpointError as error:
        raise _named(error, path) from error


def load_released(address: str, *, heads: int | None = None, **options: Any) -> Released:
    """The model at ``address``, in the form it is found in.

    Args:
      address: of a checkpoint of SPViT in any of its forms, of a dense one, or of our own file.
      heads: for checkpoints that do not say; of Swin's first stage.
      options: of the model; see ``load_dense``.

    Raises:
      CheckpointError: not such a checkpoint, or it does not fit; names all that does not.
    """
    path = fetch(address)
    try:
        if is_native(path):
            return Released(*load_model(path, **options), gate_logits=None)
        return released_from_state(read_state(str(path)), heads, **options)
    except CheckpointError as error:
        raise _named(error, path) from error


def load_folded(address: str, *, heads: int | None = None, batch_norm: bool = False) -> Released:
    """The pruned model at ``address``, its convolutions folded into plain layers.

    Args:
      address: of a released SPViT checkpoint, DeiT or Swin, or of our own file.
      heads: for checkpoints that do not say; of Swin's first stage.
      batch_norm: fold the batch norms too, for deployment.

    Raises:
      CheckpointError: not such a checkpoint, or not of a pruned model.
    """
    try:
        return folded(load_released(address, heads=heads), batch_norm=batch_norm)
    except CheckpointError as error:
        raise _named(error, address) from error


def folded(source: Released, *, batch_norm: bool = False) -> Released:
    """A pruned model with its convolutions folded; see ``load_folded``."""
    if source.form in ("dense", "supernet"):
        raise CheckpointError(
            f"only a pruned model folds; this one is of {source.form} form: search or prune it"
            " first, or load it with load_released"
        )
    form = "deploy" if batch_norm or source.form == "deploy" else "folded"
    return source._replace(model=fold(source.model, batch_norm=batch_norm), form=form)


def read_spec(address: str, heads: int | None = None) -> Spec:
    """The spec of the dense model that a checkpoint of any form comes from.

    Args:
      address: of a checkpoint of any family, or of our own file; see ``fetch``.
      heads: for checkpoints that do not say; of Swin's first stage.

    Raises:
      CheckpointError: not such a checkpoint.
    """
    path = fetch(address)
    try:
        if is_native(path):
            return load_spec(path)
        family, state = recognise(read_state(str(path)))
        return family.spec_from_state(state, heads)
    except CheckpointError as error:
        raise _named(error, path) from error


def about_of(address: str) -> About:
    """What the checkpoint at ``address`` says its model was trained on; only files of ours do."""
    path = fetch(address)
    return read_about(path) if is_native(path) else About()


def dense_from_state(state: State, spec: Spec, **options: Any) -> tuple[Any, list[str]]:
    """``load_dense`` of arrays in a checkpoint's names."""
    family, state = recognise(state)
    form = family.form_of(state)
    if form != "dense":
        raise CheckpointError(
            f"expected a dense model with attn.qkv in its blocks, got a single-path one ({form}"
            " form); read it with load_released or python -m spvit_jax.convert"
        )
    if family is not FAMILIES[type(spec)]:
        raise CheckpointError(
            f"the model wanted is a {type(spec).__name__.removesuffix('Spec')}, the checkpoint one"
            f" of {family.KIND}; choose a variant of its family, or another checkpoint"
        )
    notes: list[str] = []
    family.fit(state, spec, notes)
    model = forms.build(spec, "dense", **options)
    arrays = apply(family.table("dense", spec, (), state), state, forms.shapes(model), ignored)
    return forms.fill(model, arrays), notes


def released_from_state(state: State, heads: int | None = None, **options: Any) -> Released:
    """``load_released`` of arrays in a checkpoint's names."""
    family, state = recognise(state)
    spec, form = family.spec_from_state(state, heads), family.form_of(state)
    ops, architecture = _architecture(family, state, spec, form)
    model = forms.build(spec, form, architecture, **options)
    shapes = dict(forms.shapes(model))
    if form == "supernet":
        for i, block in enumerate(spec.blocks):
            shapes |= {f"gates.{i}.kernel": (3,), f"gates.{i}.ffn": (block.hidden,)}
    dead = blocks.dead_norms(
        name for name, op in zip(family.block_names(spec), ops, strict=False) if op == "skip"
    )
    state = {name: value for name, value in state.items() if name not in dead}
    arrays = apply(family.table(form, spec, ops, state), state, shapes, ignored)
    logits = None
    if form == "supernet":
        logits = tuple(
            BlockGates(*(jnp.asarray(arrays.pop(f"gates.{i}.{part}"), float) for part in GATES))
            for i in range(len(spec.blocks))
        )
        architecture = from_gates(decide(logits))
    return Released(forms.fill(model, arrays), form, architecture, logits)


def _architecture(
    family: Family, state: State, spec: Any, form: str
) -> tuple[tuple[str, ...], Architecture | None]:
    """The ops of a pruned checkpoint's blocks, and its architecture."""
    if form not in ("shared", "folded"):
        return (), None
    names = family.block_names(spec)
    ops = blocks.ops_of(state, names)
    widths = (
        blocks.ffn_widths(state, [name], block.width)
        for name, block in zip(names, spec.blocks, strict=True)
    )
    return ops, Architecture(ops, tuple(width for (width,) in widths))


def _dense_state(path: str) -> State:
    if not is_native(path):
        return read_state(path)
    model, form, _ = load_model(path)
    if form != "dense":
        raise CheckpointError(f"expected a dense model, this one is of {form} form")
    return revert_model(model, form)


def _named(error: CheckpointError, path: Any) -> CheckpointError:
    """The error with the file's name in front, once."""
    return error if str(path) in str(error) else CheckpointError(f"{path}: {error}")
