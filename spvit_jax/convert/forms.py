"""Models of shapes only in any form, each built from the dense one by the same surgery."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.tables import Shapes, require
from spvit_jax.models import MODELS
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.prune import FORMS, fold, prune
from spvit_jax.single_path.supernet import supernet


def build(
    spec: Any,
    form: str,
    architecture: Architecture | None = None,
    *,
    ops: tuple[str, ...] = PAPER,
    temperature: float | None = None,
    **options: Any,
) -> Any:
    """Builds a model of shapes only, for ``fill``.

    Args:
      spec: the dense model's.
      form: one of ``FORMS``.
      architecture: of a pruned form.
      ops: of a supernet.
      temperature: of the head mixture; None: as released for the family.
      options: of the dense model: dropout, drop_path, dtype, remat.

    Raises:
      ValueError: no such form, or the architecture is missing or does not fit.
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")
    if form not in ("dense", "supernet") and architecture is None:
        raise ValueError(f"a model of {form} form needs its architecture")

    def make() -> nnx.Module:
        model: Any = MODELS[type(spec)](spec, rngs=nnx.Rngs(0), **options)
        if form == "supernet":
            return supernet(model, ops, temperature)
        if form == "dense" or architecture is None:
            return model
        model = prune(model, _counted(architecture, spec), temperature)
        return model if form == "shared" else fold(model, batch_norm=form == "deploy")

    model: Any = nnx.eval_shape(make)
    model.architecture = architecture  # with the indices that weights of shapes cannot give
    return model


def _counted(architecture: Architecture, spec: Any) -> Architecture:
    """As many heads and units of each block, whichever: magnitudes need weights."""
    architecture.check(spec)
    return dataclasses.replace(
        architecture,
        ffn=tuple(tuple(range(width)) for width in architecture.widths),
        heads=architecture.heads
        and tuple(tuple(range(count)) for count in architecture.head_counts(spec)),
    )


def variables(model: nnx.Module) -> dict[str, Any]:
    """Parameters and running statistics, or their shapes, by dotted path."""
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): leaf[...] for path, leaf in leaves}


def shapes(model: nnx.Module) -> Shapes:
    """The shape of each of ``variables``."""
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {".".join(map(str, path)): leaf.get_value().shape for path, leaf in leaves}


def fill(model: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """A model of shapes with ``arrays`` in it, in the model's dtypes.

    Raises:
      CheckpointError: the arrays are not those of the model, or are no weights; names all.
    """
    require({name: value.shape for name, value in arrays.items()}, shapes(model))
    check_numbers(arrays)
    graph, state = nnx.split(model)
    leaves = [
        (path, leaf.replace(jnp.asarray(arrays[".".join(map(str, path))], leaf.dtype)))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def check_numbers(arrays: Mapping[str, np.ndarray]) -> None:
    """Raises ``CheckpointError`` where arrays hold whole numbers, or some that are not finite here.

    Here: as float32, unless JAX has float64.
    """
    floats = {n: v for n, v in arrays.items() if jnp.issubdtype(v.dtype, jnp.floating)}
    whole = [f"{n} ({v.dtype})" for n, v in arrays.items() if n not in floats]
    if whole:
        raise CheckpointError(
            f"weights are floating-point numbers; {', '.join(whole[:5])}"
            f"{' …' if len(whole) > 5 else ''} are not: quantised files do not convert, take the"
            " ones they were made from"
        )
    kind = jnp.result_type(float)
    with np.errstate(over="ignore"):  # what becomes infinite is refused
        bad = [n for n, v in floats.items() if not np.isfinite(v.astype(kind, copy=False)).all()]
    if bad:
        raise CheckpointError(
            f"{len(bad)} arrays hold numbers that are NaN, infinite or too large for {kind}:"
            f" {', '.join(bad[:5])}{' …' if len(bad) > 5 else ''}; the training that made them"
            " diverged, or the file is damaged"
        )
