"""The networks a run starts from: its dense model, and the teacher it distils from."""

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from spvit_jax.config import Config, ConfigError
from spvit_jax.convert import load_dense, load_released, read_spec
from spvit_jax.models import VARIANTS, Classifier, RegNetSpec, Spec
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.teacher import Teacher, freeze

PACKAGED = Path(__file__).parent / "models" / "packaged"
TRAINED_ONLY = ("pretrain", "evaluate")  # the stages that a network without attention can take


def dense_spec(config: Config, found: int) -> Spec:
    """The dense model's spec, for data of ``found`` classes.

    Raises:
      ConfigError: no such variant, or one that does not fit the data, the image size or the stage.
      convert.CheckpointError: the variant is "" and the checkpoint does not say what it is.
    """
    model = config.model
    if model.variant not in ("", *VARIANTS):
        raise ConfigError(
            f"model.variant must be one of {', '.join(VARIANTS)}, or empty to read the shapes in"
            f" model.checkpoint; got {model.variant!r}"
        )
    if model.variant:
        spec = VARIANTS[model.variant]
    else:
        spec = read_spec(address(model.checkpoint), model.heads or None)
    if isinstance(spec, RegNetSpec) and config.stage not in TRAINED_ONLY:
        raise ConfigError(
            f"model.variant={model.variant}: a RegNetY has no attention to prune; choose a ViT or"
            " Swin, and give the RegNetY as teacher.checkpoint"
        )
    classes = model.classes or found
    if classes < found:
        raise ConfigError(f"model.classes={classes}, but the data has {found}; set it to 0")
    return resized(dataclasses.replace(spec, classes=classes), model.image_size, "model.image_size")


def resized(spec: Spec, size: int, name: str) -> Spec:
    """``spec`` for images of ``size`` pixels; 0: as it is. ``name`` is the setting to blame."""
    try:
        return dataclasses.replace(spec, image_size=size or spec.image_size)
    except ValueError as error:
        raise ConfigError(f"{name}={size}: {error}") from error


def address(checkpoint: str) -> str:
    """Where a checkpoint of the config is: ``packaged:NAME`` ships with this package."""
    if not checkpoint:
        raise ConfigError(
            "model.checkpoint is empty: all stages but pretrain start from pretrained weights;"
            " give a .pth or .safetensors file, or an https:// or hf-hub: address"
        )
    if checkpoint.startswith("packaged:"):
        return str(PACKAGED / f"{checkpoint.removeprefix('packaged:')}.safetensors")
    return checkpoint


def options(config: Config, spec: Spec) -> dict[str, Any]:
    """How the dense model computes and is regularised."""
    model = config.model
    if isinstance(spec, RegNetSpec):
        return {"dtype": _dtype(model.dtype)}
    return {
        "dropout": model.dropout,
        "drop_path": model.drop_path,
        "dtype": _dtype(model.dtype),
        "remat": model.remat,
    }


def load(config: Config, spec: Spec) -> tuple[Classifier, list[str]]:
    """The dense model with its pretrained weights, and what had to be changed in them."""
    return load_dense(address(config.model.checkpoint), spec, **options(config, spec))


def load_teacher(config: Config, student: Spec) -> Teacher:
    """The teacher of ``config``, for the images and classes of ``student``.

    Raises:
      ConfigError: it knows other classes, or cannot see images of the student's size.
      convert.CheckpointError: the file is not one that converts.
    """
    teacher, data = config.teacher, config.data
    normalise = Normalise(teacher.mean or data.mean, teacher.std or data.std)
    dtype = _dtype(teacher.dtype)
    if not teacher.checkpoint:
        model, _ = load_dense(address(config.model.checkpoint), student, dtype=dtype)
        return freeze(model, normalise)
    where = address(teacher.checkpoint)
    model, form, *_ = load_released(where, heads=teacher.heads or None, dtype=dtype)
    spec, size = model.spec, student.image_size
    if spec.classes != student.classes:
        raise ConfigError(
            f"teacher.checkpoint={teacher.checkpoint} knows {spec.classes} classes, the student"
            f" {student.classes}; a teacher must know the same ones, in the same order"
        )
    if form == "supernet":
        raise ConfigError(
            f"teacher.checkpoint={teacher.checkpoint} is a supernet; give a dense, fine-tuned or"
            " folded model"
        )
    if spec.image_size != size and not isinstance(spec, RegNetSpec):
        if form != "dense":
            raise ConfigError(
                f"teacher.checkpoint={teacher.checkpoint} is a pruned model for images of"
                f" {spec.image_size} pixels, the student sees {size}; set model.image_size to that"
            )
        model, _ = load_dense(where, resized(spec, size, "the teacher at image size"), dtype=dtype)
    return freeze(model, normalise)


def _dtype(name: str) -> jnp.dtype | None:
    """None computes in the dtype of the parameters."""
    return None if name == "float32" else jnp.dtype(name)
