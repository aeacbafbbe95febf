"""Our own model file: safetensors of our names, and in its header how to build the model.

It holds parameters and running statistics in any form, and needs no code but this package's.
What the model was trained on stands beside them where it is known.
"""

import contextlib
import dataclasses
import json
import math
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


@dataclasses.dataclass(frozen=True)
class About:
    """What a model was trained on, as far as it is known; empty where it is not."""

    class_names: tuple[str, ...] = ()  # of the first logits, in their order
    mean: tuple[float, ...] = ()  # RGB, of pixels in 0..1
    std: tuple[float, ...] = ()
    crop_ratio: float | None = None  # the centre crop's share of the resized image

    def __post_init__(self) -> None:
        names = self.class_names
        if type(names) is not tuple or not all(type(name) is str for name in names):
            raise ValueError(f"class_names must be a tuple of strings, got {names!r}")
        for values in (self.mean, self.std):
            if len(values) not in (0, 3) or not all(map(_is_number, values)):
                raise ValueError(f"mean and std are three numbers each, or none; got {values!r}")
        if len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
            raise ValueError(f"mean and std go together, std above 0; got {self.mean}, {self.std}")
        ratio = self.crop_ratio
        if ratio is not None and not (_is_number(ratio) and 0 < ratio <= 1):
            raise ValueError(f"crop_ratio must be in (0, 1], got {ratio!r}")


def save_model(
    path: str | os.PathLike,
    model: Any,
    form: str,
    architecture: Architecture | None = None,
    *,
    about: About | None = None,
) -> None:
    """Writes a model file, whole or not at all.

    Args:
      path: conventionally ``….safetensors``.
      model: with ``spec``; of any of ``forms.FORMS``.
      form: which one.
      architecture: of a pruned model; of a supernet or dense one it is kept as a remark.
      about: what it was trained on; ``read_about`` gives it back.

    Raises:
      ValueError: the model is not of that form and architecture, or has fewer logits than
        ``about`` has names.
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
    if about is not None:
        _check_names(about, model.spec)
        header["about"] = dataclasses.asdict(about)
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


def read_about(path: str | os.PathLike) -> About:
    """What a file that ``save_model`` wrote says its model was trained on.

    Raises:
      CheckpointError: not such a file, or a damaged one.
    """
    with _readable(path):
        about = About(**_with_tuples(_values(path).get("about", {})))
        _check_names(about, _described(path)[0])
        return about


def _check_names(about: About, spec: Spec) -> None:
    if len(about.class_names) > spec.classes:
        raise ValueError(
            f"class_names has {len(about.class_names)} names, the model {spec.classes} classes"
        )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
    values = _values(path)
    fields = _with_tuples(values["spec"])
    spec = SPECS[str(fields.pop("type"))](**fields)
    architecture = values["architecture"]
    return spec, values["form"], architecture and from_json(json.dumps(architecture))


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Fields as they were before they became JSON."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def _values(path: str | os.PathLike) -> dict[str, Any]:
    """The header of a file of ours."""
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
    return values


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
