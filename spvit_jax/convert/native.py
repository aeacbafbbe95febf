"""Our own model file: safetensors of our names, and in its header how to build the model.

It holds parameters and running statistics in any form, and needs no code but this package's.
What the model was trained on stands beside them where it is known.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from spvit_jax.checkpoint_options import PIXELS
from spvit_jax.convert import forms
from spvit_jax.convert.checkpoint import read_safetensors
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.files import named, write_whole
from spvit_jax.models import MODELS, Spec, check_model
from spvit_jax.remote import raise_transient
from spvit_jax.single_path.architecture import from_json
from spvit_jax.single_path.prune import form
from spvit_jax.single_path.sharing import SharedConv
from spvit_jax.single_path.supernet import SinglePathAttention

HEADER = "spvit_jax"  # the metadata key
VERSION = 2
POSITIVE = (  # fields of specs
    *("width", "widths", "depth", "depths", "heads", "hidden", "patch_size", "image_size"),
    *("window", "group", "channels"),
)
FLOAT32 = np.finfo(np.float32)
SPECS = {spec.__name__: spec for spec in MODELS}


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


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
            if len(values) not in (0, 1, 3) or not all(map(_is_number, values)):
                raise ValueError(
                    f"mean and std are three numbers each, or one of grey, or none; got {values!r}"
                )
        if len(self.mean) != len(self.std) or min(self.std, default=1) <= 0:
            raise ValueError(f"mean and std go together, std above 0; got {self.mean}, {self.std}")
        if any(not 0 <= value <= 1 for value in self.mean) or max(self.std, default=1) > 1:
            raise ValueError(
                f"mean must be in 0 to 1 and std up to 1; got {self.mean}, {self.std}; {PIXELS}"
            )
        ratio = self.crop_ratio
        if ratio is not None and not (_is_number(ratio) and 0 < ratio <= 1):
            raise ValueError(f"crop_ratio must be in (0, 1], got {ratio!r}")

    @property
    def unsaid(self) -> tuple[str, ...]:
        """Which of mean, std and crop_ratio are not known."""
        return tuple(name for name in ("mean", "std", "crop_ratio") if not getattr(self, name))

    def or_usual(self, notes: list[str]) -> "About":
        """What is known, and ImageNet's usual values for the rest; ``notes`` gets which."""
        usual = {name: getattr(USUAL, name) for name in self.unsaid}
        if usual:
            defaults = ", ".join(f"{name} {value}" for name, value in usual.items())
            notes.append(
                f"the model's file does not say its {defaults}: ImageNet's usual, taken here"
            )
        return dataclasses.replace(self, **usual)


USUAL = About(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_ratio=0.875)  # ImageNet's


def save(model: Any, path: str | os.PathLike, *, about: About | None = None) -> None:
    """Writes a model file, whole or not at all.

    Args:
      model: of any form; a pruned one's architecture goes along.
      path: ``….safetensors``; a pipe or a device may have any name.
      about: what it was trained on, which ``read_about`` gives back; None: ``model.about``.

    Raises:
      ValueError: the model has fewer logits than ``about`` has names, or other channels, or
        ``path`` is an object store's.
      CheckpointError: its weights hold numbers that are not finite, or ``path`` another ending.
      OSError: the file cannot be written; what was there is untouched.
    """
    check_model(model)
    path = named(path)
    arrays = {name: np.ascontiguousarray(value) for name, value in forms.variables(model).items()}
    forms.check_numbers(arrays)
    architecture = model.architecture
    header = {
        "version": VERSION,
        "spec": {"type": type(model.spec).__name__, **dataclasses.asdict(model.spec)},
        "form": form(model),
        "architecture": architecture and json.loads(architecture.to_json()),
        **_mixture(model),
    }
    about = model.about if about is None else about
    if about is not None:
        _check_fits(about, model.spec)
        header["about"] = dataclasses.asdict(about)
    write_whole(path, safetensors.numpy.save(arrays, {HEADER: json.dumps(header)}))


def _mixture(model: Any) -> dict[str, Any]:
    """What a head mixture needs beside its logits, and a supernet beside its arrays."""
    mixers = [block.mixer for block in getattr(model, "blocks", ())]
    shared = [m for m in mixers if isinstance(m, SharedConv | SinglePathAttention)]
    searched = [m for m in mixers if isinstance(m, SinglePathAttention)]
    mixture: dict[str, Any] = {"temperature": shared[0].temperature} if shared else {}
    return mixture | ({"ops": searched[0].ops} if searched else {})


def load_model(path: str | os.PathLike, **options: Any) -> Any:
    """Reads the model in a file that ``save`` wrote.

    Args:
      path: the file.
      options: of the dense model: dropout, drop_path, dtype, remat.

    Raises:
      CheckpointError: not such a file, or a damaged one.
    """
    with _readable(path):
        arguments = _described(path)
        model = forms.build(arguments.pop("spec"), arguments.pop("form"), **arguments, **options)
        arrays = read_safetensors(Path(path))
        return forms.fill(model, {_renamed(name): value for name, value in arrays.items()})


def _renamed(name: str) -> str:
    """An array's name today: supernets of version 1 had two norms and no other parts."""
    return re.sub(r"\.mixer\.norm(1x1|3x3)\.", r".mixer.parts.conv\1.", name)


def load_spec(path: str | os.PathLike) -> Spec:
    """The spec of the dense model in a file that ``save`` wrote, weights left unread.

    Raises:
      CheckpointError: not such a file, or a damaged one.
    """
    with _readable(path):
        return _described(path)["spec"]


def load_form(path: str | os.PathLike) -> str:
    """Reads the form of the model in such a file.

    Raises:
      CheckpointError: not such a file, or a damaged one.
    """
    with _readable(path):
        return str(_described(path)["form"])


def read_about(path: str | os.PathLike) -> About:
    """What a file that ``save`` wrote says its model was trained on.

    Raises:
      CheckpointError: not such a file, or a damaged one.
    """
    with _readable(path):
        about = About(**_with_tuples(_values(path).get("about", {})))
        _check_fits(about, _described(path)["spec"])
        return about


def _check_fits(about: About, spec: Spec) -> None:
    if len(about.class_names) > spec.classes:
        raise ValueError(
            f"class_names has {len(about.class_names)} names, the model {spec.classes} classes"
        )
    channels = getattr(spec, "channels", 3)
    if len(about.mean) not in (0, channels):
        raise ValueError(
            f"mean and std are of {len(about.mean)} channels, the model sees images of {channels};"
            " give a number for each, or none"
        )


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
            " again with spvit_jax.save or python -m spvit_jax.convert"
        ) from error


def _described(path: str | os.PathLike) -> dict[str, Any]:
    """How to build the model, as the header says: arguments of ``forms.build``."""
    values = _values(path)
    fields = _with_tuples(values["spec"])
    _check_sizes(fields, os.path.getsize(path))
    arguments: dict[str, Any] = {"form": values["form"]}
    for name in ("temperature", "ops"):
        if name in values:
            arguments |= _with_tuples({name: values[name]})
    if "temperature" in fields:  # version 1 had it in the spec
        arguments["temperature"] = fields.pop("temperature")
    temperature = arguments.get("temperature", 1.0)
    if not (_is_number(temperature) and FLOAT32.tiny <= temperature <= FLOAT32.max):
        raise ValueError(f"temperature {temperature!r}")
    arguments["spec"] = SPECS[str(fields.pop("type"))](**fields)
    # Of a dense model it was a remark, once.
    architecture = values["architecture"] if arguments["form"] != "dense" else None
    arguments["architecture"] = architecture and from_json(json.dumps(architecture))
    return arguments


def _check_sizes(fields: dict[str, Any], size: int) -> None:
    """Raises ``ValueError`` where sizes are those of no model in a file of so many bytes."""
    for name, value in fields.items():
        for number in value if isinstance(value, tuple) else (value,):
            if type(number) is int and not int(name in POSITIVE) <= number <= size:
                raise ValueError(f"{name} {number}")


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
    if values["version"] not in (1, VERSION):
        raise CheckpointError(
            f"{path} has format version {values['version']}, this package reads 1 and {VERSION};"
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
        with open(path, "rb"), safetensors.safe_open(path, "np") as file:
            return (file.metadata() or {}).get(HEADER)
    except (OSError, safetensors.SafetensorError) as error:
        raise_transient(error)
        raise CheckpointError(
            f"{path} cannot be read as a model file: {error}; it is missing, damaged or of another"
            " kind; write it again, or convert it: python -m spvit_jax.convert"
        ) from error
