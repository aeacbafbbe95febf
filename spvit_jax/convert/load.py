"""``load``: the model at an address, whatever it is; the one place that resizes a dense one."""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from spvit_jax.convert import blocks, forms, native
from spvit_jax.convert.agreement import (
    PREPARED,
    check,
    check_beside,
    check_spec,
    check_user,
    known_about,
)
from spvit_jax.convert.checkpoint import State, read_state
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import UNKNOWN, Facts, facts_beside
from spvit_jax.convert.families import FAMILIES, Family, ignored, recognise, revert_model
from spvit_jax.convert.fetch import fetch
from spvit_jax.convert.native import About
from spvit_jax.convert.spellings import heads_of
from spvit_jax.convert.tables import apply
from spvit_jax.models import Spec, check_options
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.gates import Gates, decide
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.space import Space
from spvit_jax.sizes import Size, shown, wanted_size


def load(
    address: str | os.PathLike[str],
    spec: Spec | None = None,
    *,
    image_size: Size = 0,
    facts: Facts = UNKNOWN,
    notes: list[str] | None = None,
    **options: Any,
) -> Any:
    """Loads the model at ``address``: dense, a supernet, or pruned, with its architecture.

    A dense model is made to fit: position embeddings of another image size and relative position
    biases of another window are interpolated, another number of classes gets a fresh head. What is
    known of its training is its ``about``.

    Args:
      address: of a checkpoint of any family, of SPViT in any of its forms, or of our own file; see
        ``fetch``.
      spec: the dense model that is wanted, and no other; None: the one that is found.
      image_size: pixels: a side of a square, or height and width; 0: as found.
      facts: what the checkpoint does not say of itself.
      notes: gets a sentence for each change, for the user to see. None: where the file says what
        no model was trained on, there is a warning.
      options: of the model: dropout, drop_path, dtype, remat; a RegNet has dtype alone.

    Raises:
      CheckpointError: not such a checkpoint, or it does not fit, or contradicts the facts; names
        all that does not.
      ValueError: options that no model has.
    """
    check_options(**options)
    _check_types(facts, spec)
    path, listed = fetch(address), [] if notes is None else notes
    with _naming(path):
        model = _loaded(path, spec, _size(image_size), facts, listed, options)
        try:
            about = about_of(path)
        except CheckpointError as error:  # the model does not need it
            listed.append(str(error))
            if notes is None:
                warnings.warn(str(error), stacklevel=2)
            return model
        about = known_about(facts, about, facts.classes or len(facts.class_names or ()))
    if len(about.class_names) > model.spec.classes:  # another head
        about = dataclasses.replace(about, class_names=())
    model.about = about
    return model


def _loaded(
    path: Path,
    spec: Spec | None,
    size: Size,
    facts: Facts,
    notes: list[str],
    options: dict[str, Any],
) -> Any:
    """The model in a file."""
    if native.is_native(path):
        return _load_native(path, spec, size, notes, facts, options)
    asked = Facts(asked=size or (spec and spec.image_size) or None)
    family, state, facts = _recognised(path, facts.over(asked), notes)
    if family.form_of(state) == "dense":
        wanted = spec or family.spec_from_state(state, facts)
        return _dense(family, state, resized(wanted, size), notes, facts, options)
    if spec is not None:
        raise _not_dense(family.form_of(state))
    model, _ = _released(family, state, facts, options)
    _check_size(model, size)
    return model


def _recognised(path: Path, facts: Facts, notes: list[str]) -> tuple[Family, State, Facts]:
    """A checkpoint's family and its arrays in timm's names, and all that is known besides."""
    arrays, beside, user = read_state(str(path), notes), facts_beside(path), facts
    facts = facts.over(beside).over(Facts(heads=heads_of(arrays)))
    family, state = recognise(arrays, notes, facts)
    check(beside, state)
    check_user(user, state)
    check_beside(user, beside)
    notes += _prepared_otherwise(beside)
    return family, state, facts


def _prepared_otherwise(facts: Facts) -> list[str]:
    """A sentence on each way in which images are not prepared as the files beside weights say."""
    return [
        f"the files beside the weights say {name}={way}, images are prepared with"
        f" {name}={ours[0]} here: the model sees them somewhat otherwise than in its training"
        for name, ours in PREPARED.items()
        if (way := getattr(facts, name)) and way not in ours
    ]


def _load_native(
    path: Any,
    spec: Spec | None,
    size: Size,
    notes: list[str],
    facts: Facts,
    options: dict[str, Any],
) -> Any:
    has, form = native.load_spec(path), native.load_form(path)
    _check_own(path, has, facts)
    if form != "dense" and spec is not None:
        raise _not_dense(form)
    wanted = resized(spec or has, size if form == "dense" else 0)
    if wanted == has:
        model = native.load_model(path, **options)
        _check_size(model, size)
        return model
    state = revert_model(native.load_model(path))
    facts = Facts(image_size=has.image_size).over(facts)
    return dense_from_state(state, wanted, notes, facts, **options)


def _check_own(path: Any, spec: Spec, facts: Facts) -> None:
    """Raises ``CheckpointError`` where what a user says of a file of ours contradicts it."""
    check_spec(facts, spec)
    try:
        about = native.read_about(path)
    except CheckpointError:  # which is said by whoever needs it
        return
    known_about(facts, about, spec.classes)


def _check_types(facts: Any, spec: Any) -> None:
    if not isinstance(facts, Facts):
        raise CheckpointError(f"facts must be a Facts, such as Facts.of(heads=6); got {facts!r}")
    if spec is not None and not isinstance(spec, Spec):
        raise CheckpointError(
            f"spec must be a ViTSpec, SwinSpec or RegNetSpec, such as those of VARIANTS; got"
            f" {spec!r}"
        )


def resized(spec: Spec, image_size: Size) -> Spec:
    """The spec for images of another size, the option ``image_size``; 0: as it is.

    Raises:
      CheckpointError: its patches or windows do not divide them.
    """
    try:
        return dataclasses.replace(spec, image_size=image_size or spec.image_size)
    except ValueError as error:
        raise CheckpointError(f"image_size={shown(image_size)}: {error}") from error


def _size(image_size: Any) -> Size:
    try:
        return wanted_size(image_size)
    except ValueError as error:
        raise CheckpointError(f"image_size: {error}") from error


def _check_size(model: Any, image_size: Size) -> None:
    if image_size not in (0, model.spec.image_size):
        has = shown(model.spec.image_size)
        raise CheckpointError(
            f"a pruned model or supernet for images of {has} pixels stays so; expected"
            f" {shown(image_size)}: set the image size to {has}, or prune a dense model of the size"
            " that is wanted"
        )


def _not_dense(form: str) -> CheckpointError:
    return CheckpointError(
        f"expected a dense model, this one is of {form} form; give its dense weights, or take this"
        " one as it is: stage=evaluate, spvit_jax.predict, spvit_jax.load(address)"
    )


def read_spec(address: str, facts: Facts = UNKNOWN) -> Spec:
    """The spec of the dense model that a checkpoint of any form comes from.

    Args:
      address: of a checkpoint of any family, or of our own file; see ``fetch``.
      facts: what the checkpoint does not say of itself.

    Raises:
      CheckpointError: not such a checkpoint.
    """
    _check_types(facts, None)
    path = fetch(address)
    with _naming(path):
        if native.is_native(path):
            spec = native.load_spec(path)
            _check_own(path, spec, facts)
            return spec
        family, state, facts = _recognised(path, facts, [])
        return family.spec_from_state(state, facts)


def about_of(address: str | os.PathLike[str]) -> About:
    """What the checkpoint at ``address``, or a config.json beside it, says of its training."""
    path = fetch(address)
    if native.is_native(path):
        return native.read_about(path)
    with _naming(path):
        facts = facts_beside(path)
        names, mean, std = facts.class_names or (), facts.mean or (), facts.std or ()
        try:
            return About(names, mean, std, facts.crop_ratio)
        except ValueError as error:
            raise CheckpointError(
                f"the files beside {path}: {error}; correct them, or move them away"
            ) from error


def dense_from_state(
    state: State, spec: Spec, notes: list[str], facts: Facts = UNKNOWN, **options: Any
) -> Any:
    """The dense model of ``spec`` with a checkpoint's arrays; see ``load``."""
    facts = facts.over(Facts(asked=spec.image_size))
    family, state = recognise(state, notes, facts)
    return _dense(family, state, spec, notes, facts, options)


def _dense(
    family: Family,
    state: State,
    spec: Spec,
    notes: list[str],
    facts: Facts,
    options: dict[str, Any],
) -> Any:
    form = family.form_of(state)
    if form != "dense":
        raise _not_dense(form)
    if family is not FAMILIES[type(spec)]:
        raise CheckpointError(
            f"the model wanted is a {type(spec).__name__.removesuffix('Spec')}, the checkpoint one"
            f" of {family.KIND}; choose a variant of its family, or another checkpoint"
        )
    family.fit(state, spec, notes, facts)
    model = forms.build(spec, "dense", **options)
    arrays = apply(family.table("dense", spec, (), state), state, forms.shapes(model), ignored)
    return forms.fill(model, arrays)


def released_from_state(
    state: State, facts: Facts = UNKNOWN, **options: Any
) -> tuple[Any, Gates | None]:
    """The model of a checkpoint's arrays, in the form they are in, and a supernet's gate logits.

    A supernet's architecture is what its gates decide; a pruned model's has widths only.
    """
    return _released(*recognise(state, facts=facts), facts, options)


def _released(
    family: Family, state: State, facts: Facts, options: dict[str, Any]
) -> tuple[Any, Gates | None]:
    spec, form = family.spec_from_state(state, facts), family.form_of(state)
    ops, architecture = _architecture(family, state, spec, form)
    model = forms.build(spec, form, architecture, **options)
    shapes = dict(forms.shapes(model))
    if form == "supernet":
        for i, block in enumerate(spec.blocks):
            shapes |= {f"gates.{i}.op": (len(PAPER) - 1,), f"gates.{i}.ffn": (block.hidden,)}
    dead = blocks.dead_norms(
        name for name, op in zip(family.block_names(spec), ops, strict=False) if op == "skip"
    )
    state = {name: value for name, value in state.items() if name not in dead}
    arrays = apply(family.table(form, spec, ops, state), state, shapes, ignored)
    if form != "supernet":
        return forms.fill(model, arrays), None
    forms.check_numbers({n: v for n, v in arrays.items() if n.startswith("gates.")})
    space = Space(spec.blocks)
    logits = tuple(
        {axis: jnp.asarray(arrays.pop(f"gates.{i}.{axis}"), float) for axis in space.axes}
        for i in range(len(spec.blocks))
    )
    model = forms.fill(model, arrays)
    model.architecture = from_gates(decide(space, logits), space.ops)
    return model, logits


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


@contextlib.contextmanager
def _naming(path: Any) -> Iterator[None]:
    """Puts the file's name in front of an error, once."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
