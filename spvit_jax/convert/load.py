"""Models from checkpoints of any origin: a dense one to start from, or a released pruned one."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spvit_jax.convert import forms, vit
from spvit_jax.convert.checkpoint import State, read_state
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.fetch import fetch
from spvit_jax.convert.native import is_native, load_model
from spvit_jax.convert.tables import apply, revert
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.gates import BlockGates, Gates, decide

GATES = BlockGates._fields


class Released(NamedTuple):
    """A model as a checkpoint has it."""

    model: Any
    form: str  # one of forms.FORMS
    architecture: Architecture | None  # a pruned model's: widths only; a supernet's: its decision
    gate_logits: Gates | None  # a supernet's


def load_dense(address: str, spec: ViTSpec, **options: Any) -> tuple[ViT, list[str]]:
    """The dense model of ``spec`` with the weights at ``address``, and what had to be changed.

    Position embeddings of another image size are interpolated; another number of classes gets a
    fresh head.

    Args:
      address: of a timm or DeiT checkpoint, or of our own dense model file; see ``fetch``.
      spec: the model that is wanted.
      options: of the model: dropout, drop_path, dtype, remat.

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


def load_released(address: str, *, heads: int | None = None) -> Released:
    """The model at ``address``, in the form it is found in.

    Args:
      address: of a checkpoint of SPViT in any of its forms, of a dense one, or of our own file.
      heads: for checkpoints that do not say; see ``vit.spec_from_state``.

    Raises:
      CheckpointError: not such a checkpoint, or it does not fit; names all that does not.
    """
    path = fetch(address)
    try:
        if is_native(path):
            return Released(*load_model(path), gate_logits=None)
        return released_from_state(read_state(str(path)), heads)
    except CheckpointError as error:
        raise _named(error, path) from error


def dense_from_state(state: State, spec: ViTSpec, **options: Any) -> tuple[ViT, list[str]]:
    """``load_dense`` of arrays in timm's names."""
    form = vit.form_of(state)
    if form != "dense":
        raise CheckpointError(
            f"expected a dense model with blocks.0.attn.qkv.weight, got a single-path one ({form}"
            " form); read it with load_released or python -m spvit_jax.convert"
        )
    if ("dist_token" in state) != spec.distilled:
        has, wants = ("two", "one") if "dist_token" in state else ("one", "two")
        raise CheckpointError(
            f"the checkpoint has {has} class token(s), the model {wants}; choose the"
            f" {'plain' if spec.distilled else 'distilled'} variant, or another checkpoint"
        )
    state = dict(state)
    notes: list[str] = []
    _fit_position(state, spec, notes)
    _fit_heads(state, spec, notes)
    model = forms.build(spec, "dense", **options)
    arrays = apply(
        vit.table("dense", ("msa",) * spec.depth, spec.distilled),
        state,
        forms.shapes(model),
        vit.ignored,
    )
    return forms.fill(model, arrays), notes


def released_from_state(state: State, heads: int | None = None) -> Released:
    """``load_released`` of arrays in SPViT's or timm's names."""
    spec = vit.spec_from_state(state, heads)
    form, ops = vit.form_of(state), vit.ops_of(state)
    architecture = None
    if form in ("shared", "folded"):
        architecture = Architecture(ops, vit.ffn_widths(state, spec.depth, spec.width))
    model = forms.build(spec, form, architecture)
    shapes = dict(forms.shapes(model))
    if form == "supernet":
        for i, block in enumerate(spec.blocks):
            shapes |= {f"gates.{i}.kernel": (3,), f"gates.{i}.ffn": (block.hidden,)}
    arrays = apply(vit.table(form, ops, spec.distilled), state, shapes, vit.ignored)
    logits = None
    if form == "supernet":
        logits = tuple(
            BlockGates(*(jnp.asarray(arrays.pop(f"gates.{i}.{part}"), float) for part in GATES))
            for i in range(spec.depth)
        )
        architecture = from_gates(decide(logits))
    return Released(forms.fill(model, arrays), form, architecture, logits)


def _dense_state(path: str) -> State:
    if not is_native(path):
        return read_state(path)
    model, form, _ = load_model(path)
    if form != "dense":
        raise CheckpointError(f"expected a dense model, this one is of {form} form")
    table = vit.table("dense", ("msa",) * model.spec.depth, model.spec.distilled)
    return revert(table, {k: np.asarray(v) for k, v in forms.variables(model).items()})


def _named(error: CheckpointError, path: Any) -> CheckpointError:
    """The error with the file's name in front, once."""
    return error if str(path) in str(error) else CheckpointError(f"{path}: {error}")


def _fit_position(state: State, spec: ViTSpec, notes: list[str]) -> None:
    """Interpolates the position embedding to the model's grid, class tokens left as they are."""
    embedding = state.get("pos_embed")
    if embedding is None or embedding.ndim != 3:
        return  # reported with everything else that does not fit
    grid = vit.grid_of(embedding.shape[1] - spec.prefix)
    wanted = spec.blocks[0].grid
    if grid == wanted:
        return
    tokens, patches = embedding[0, : spec.prefix], embedding[0, spec.prefix :]
    resized = resize_grid(patches.reshape(grid, grid, -1), wanted)
    patches = resized.reshape(wanted * wanted, -1)
    state["pos_embed"] = np.concatenate([tokens, patches])[None]
    notes.append(
        f"position embedding interpolated from {grid}x{grid} patches to {wanted}x{wanted}, for"
        f" images of {spec.image_size} pixels"
    )


def resize_grid(grid: np.ndarray, side: int) -> np.ndarray:
    """``[S, S, D]`` to ``[side, side, D]``: bicubic (a = -1/2), antialiased, as timm does."""
    shape = (side, side, grid.shape[-1])
    return np.asarray(jax.image.resize(grid, shape, "cubic", antialias=True))


def _fit_heads(state: State, spec: ViTSpec, notes: list[str]) -> None:
    """Replaces classifiers of another number of classes by fresh ones, always the same."""
    random = np.random.default_rng(0)
    for name in ("head", "head_dist"):
        weight = state.get(f"{name}.weight")
        if weight is None or weight.shape[:1] == (spec.classes,):
            continue
        state[f"{name}.weight"] = random.normal(0, 0.02, (spec.classes, spec.width)).astype("f4")
        state[f"{name}.bias"] = np.zeros(spec.classes, np.float32)
        notes.append(
            f"the checkpoint's {name} knows {weight.shape[0]} classes, the model {spec.classes}:"
            f" a fresh {name}, yet to be trained"
        )
