"""Our own model file: safetensors of our names, and in its header how to build the model.

It holds parameters and running statistics in any form, and needs no code but this package's.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from spvit_jax.convert import forms
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.files import write_whole
from spvit_jax.convert.tables import require
from spvit_jax.models import MODELS, Spec
from spvit_jax.single_path.architecture import Architecture, from_json

HEADER = "spvit_jax"  # the metadata key
VERSION = 1
SPECS = {spec.__name__: spec for spec in MODELS}


class Loaded(NamedTuple):
    """What a model file holds; ``model.spec`` is the dense model's."""

    model: Any
    form: str
    architecture: Architecture | None


def save_model(
    path: str | os.PathLike, model: Any, form: str, architecture: Architecture | None = None
) -> None:
    """Writes a model file, whole or not at all.

    Args:
      path: conventionally ``….safetensors``.
      model: with ``spec``; of any of ``forms.FORMS``.
      form: which one.
      architecture: of a pruned model; of a supernet or dense one it is kept as a remark.

    Raises:
      ValueError: the model is not of that form and architecture.
      OSError: the file cannot be written; what was there is untouched.
    """
    arrays = {name: np.ascontiguousarray(value) for name, value in forms.variables(model).items()}
    try:
        expected = forms.shapes(forms.build(model.spec, form, architecture))
        require({name: value.shape for name, value in arrays.items()}, expected)
    except CheckpointError as error:
        raise ValueError(f"not a model of {form} form with this architecture: {error}") from None
    header = {
        "version": VERSION,
        "spec": {"type": type(model.spec).__name__, **dataclasses.asdict(model.spec)},
        "form": form,
        "architecture": architecture and json.loads(architecture.to_json()),
    }
    write_whole(path, safetensors.numpy.save(arrays, {HEADER: json.dumps(header)}))


def load_model(path: str | os.PathLike, **options: Any) -> Loaded:
    """The model in a file that ``save_model`` wrote.

    Args:
      path: the file.
      options: of the dense model: dropout, drop_path, dtype, remat.

    Raises:
      CheckpointError: not such a file, or a damaged one.
    """
    with _readable(path):
        spec, form, architecture = _described(path)
        model = forms.build(spec, form, architecture, **options)
        return Loaded(forms.fill(model, safetensors.numpy.load_file(path)), form, architecture)


def load_spec(path: str | os.PathLike) -> Spec:
    """The spec of the dense model in a file that ``save_model`` wrote, weights left unread.

    Raises:
      CheckpointError: not such a file, or a damaged one.
    """
    with _readable(path):
        return _described(path)[0]


@contextlib.contextmanager
def _readable(path: str | os.PathLike) -> Iterator[None]:
    """Puts the file's name to what goes wrong when a damaged header is believed."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{path} says of itself what no model is: {type(error).__name__}: {error}; write it"
            " again with save_model or python -m spvit_jax.convert"
        ) from error


def _described(path: str | os.PathLike) -> tuple[Spec, str, Architecture | None]:
    """Spec, form and architecture, as the header says."""
    header = _header(path)
    if header is None:
        raise CheckpointError(
            f"{path} is not a model file of spvit_jax; convert it first: python -m"
            f" spvit_jax.convert {path} OUT.safetensors"
        )
    values = json.loads(header)
    if values["version"] != VERSION:
        raise CheckpointError(
            f"{path} has format version {values['version']}, this package reads {VERSION};"
            " install the spvit_jax it was written with"
        )
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in values["spec"].items()}
    spec = SPECS[str(fields.pop("type"))](**fields)
    architecture = values["architecture"]
    return spec, values["form"], architecture and from_json(json.dumps(architecture))


def is_native(path: str | os.PathLike) -> bool:
    """Whether a file is one of ours, by its header."""
    try:
        return _header(path) is not None
    except CheckpointError:
        return False


def _header(path: str | os.PathLike) -> str | None:
    """The metadata of ours in a safetensors file, if there is any."""
    try:
        with safetensors.safe_open(path, "np") as file:
            return (file.metadata() or {}).get(HEADER)
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a model file: {error}; it is missing, damaged or of another"
            " kind; write it again, or convert it: python -m spvit_jax.convert"
        ) from error
