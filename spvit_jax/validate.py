"""What a configuration must be, so that nothing fails later: each mistake by its field's name."""

import dataclasses
import importlib.util
import math
from typing import Any

from spvit_jax.checkpoint_options import NAMES, PIXELS
from spvit_jax.remote import public
from spvit_jax.sizes import wanted_size

POSITIVE = {  # numbers that may not be 0; none may be negative
    "accumulation",
    "batch_size",
    "checkpoint_every",
    "distillation_temperature",
    "epochs",
    "eval_batch_size",
    "images",
    "learning_rate",
    "log_every",
    "measure_batch",
    "measure_seconds",
    "repeats",
    "steps",
    "unit_group",
}
ZERO = ("search.epochs",)  # and this may be 0
AUGMENTATIONS = (  # all but the first three crop at a random place, size and aspect, and flip
    "none",
    "flip",  # left to right
    "shift",  # that, and shifts by up to 2 pixels
    "plain",
    "three",  # DeiT III's 3-Augment
    "recipe",  # RandAugment rand-m9-mstd0.5-inc1, as released
)
STAGES: dict[str, tuple[str, ...]] = {  # what a run may do: groups of fields that it trains by
    "all": ("search", "finetune"),
    "pretrain": ("pretrain",),
    "search": ("search",),
    "finetune": ("finetune",),
    "frontier": (),
    "evaluate": (),
}
FORMATS = {  # what a pruned model may be written as: suffixes of spvit_jax.export.SUFFIXES
    "onnx": ".onnx",
    "fp16.onnx": ".fp16.onnx",
    "int8.onnx": ".int8.onnx",
    "dynamic.onnx": ".dynamic.onnx",
    "stablehlo": ".stablehlo",
    "tflite": ".tflite",
    "int8.tflite": ".int8.tflite",
    "torch": ".safetensors",  # the weights, which are there, and a module beside them
}
LIBRARIES = {  # the extra that brings them, and what is imported, by the last part of a suffix
    "onnx": ("export", ("onnx", "onnxruntime")),
    "tflite": ("litert", ("litert_converter", "ai_edge_litert", "ai_edge_quantizer")),
}


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the field and what to write instead."""


def check_numbers(part: Any, path: str) -> None:
    """No number may be negative, infinite or NaN, and those of ``POSITIVE`` not 0."""
    for field in dataclasses.fields(part):
        value, name = getattr(part, field.name), path + field.name
        if dataclasses.is_dataclass(value):
            check_numbers(value, f"{name}.")
        elif isinstance(value, int | float):
            positive = field.name in POSITIVE and name not in ZERO
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                wanted = "above 0" if positive else "0 or more"
                raise ConfigError(f"{name} must be {wanted}, got {value}")


def check(good: bool, message: str) -> None:
    """Raises ``ConfigError`` with the message unless it is good."""
    if not good:
        raise ConfigError(message)


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ``ConfigError`` where a field has none of the allowed values."""
    check(value in allowed, f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def validate(config: Any) -> None:
    """Raises ``ConfigError`` where fields of a ``Config`` cannot be, or contradict each other."""
    one_of("stage", config.stage, tuple(STAGES))
    _validate_models(config)
    _validate_data(config.data)
    _validate_pixels("teacher", config.teacher)
    one_of("budget.count", config.budget.count, ("run", "published"))
    one_of("search.decision", config.search.decision, ("project", "threshold"))
    one_of("search.start", config.search.start, ("released", "scores"))
    one_of("finetune.start", config.finetune.start, ("pretrained", "searched", "repaired"))
    for name in ("pretrain", "search", "finetune"):
        _validate_training(name, getattr(config, name))
    weight = config.score.patch_weight
    check(weight <= 1, f"score.patch_weight is a share, in [0, 1]; got {weight}")
    _validate_export(config.export)
    _validate_stage(config)
    check(config.seed < 2**32, f"seed must be below 2**32, got {config.seed}")


def _validate_models(config: Any) -> None:
    one_of("model.dtype", config.model.dtype, ("float32", "bfloat16"))
    for name in NAMES:
        one_of(f"model.{name}", getattr(config.model, name), ("", *NAMES[name]))
    try:
        wanted_size(config.model.image_size)
    except ValueError as error:
        raise ConfigError(f"model.image_size: {error}") from error
    for name in ("model", "teacher"):
        address = getattr(config, name).checkpoint
        check(
            "…@" not in public(address),
            f"{name}.checkpoint={public(address)} has a user's name or password in it, and is"
            " written down; fetch the file yourself and give its path instead",
        )
    one_of("model.output", config.model.output, ("", "logits", "features"))
    one_of("teacher.dtype", config.teacher.dtype, ("float32", "bfloat16"))
    for name in ("dropout", "drop_path"):
        check(getattr(config.model, name) < 1, f"model.{name} must be in [0, 1)")


def _validate_data(data: Any) -> None:
    one_of("data.augment", data.augment, AUGMENTATIONS)
    one_of("data.on_error", data.on_error, ("raise", "skip"))
    check(data.val_share < 1, "data.val_share must be in [0, 1)")
    check(data.erasing <= 1, "data.erasing is a probability, in [0, 1]")
    kind = data.source.partition(":")[0]
    one_of("data.source (before the colon)", kind, ("packaged", "folder", "tfds", "inat", "idx"))
    check(bool(data.mean), "data.mean and data.std need three numbers each, or one of grey")
    _validate_pixels("data", data)
    check(0 < data.crop_ratio <= 1, "data.crop_ratio must be in (0, 1]")


def _validate_training(name: str, part: Any) -> None:
    one_of(f"{name}.schedule", part.schedule, ("constant", "cosine"))
    check(
        part.batch_size % part.accumulation == 0,
        f"{name}.accumulation must divide {name}.batch_size={part.batch_size},"
        f" got {part.accumulation}",
    )
    check(
        part.epochs == 0 or part.warmup_epochs < part.epochs,
        f"{name}.warmup_epochs={part.warmup_epochs:g} never ends in {name}.epochs="
        f"{part.epochs:g}; make it shorter",
    )
    check(part.ema_decay < 1, f"{name}.ema_decay must be in [0, 1)")
    check(part.label_smoothing < 1, f"{name}.label_smoothing must be in [0, 1)")
    one_of(f"{name}.distillation", part.distillation, ("none", "hard", "soft", "features"))
    check(part.distillation_weight <= 1, f"{name}.distillation_weight must be in [0, 1]")
    check(
        part.distillation != "features" or part.batch_size > part.accumulation,
        f"{name}.distillation=features compares images: {name}.batch_size must be above"
        f" {name}.accumulation, which leaves one image at a time",
    )


def _validate_pixels(name: str, part: Any) -> None:
    mean, std = part.mean, part.std
    check(
        len(mean) == len(std) and len(mean) in (0, 1, 3) and min(std, default=1) > 0,
        f"{name}.mean and {name}.std need three numbers each, std above 0, or one of grey",
    )
    check(
        all(0 <= x <= 1 for x in mean) and all(x <= 1 for x in std),
        f"{name}.mean must be in 0 to 1 and {name}.std above 0 and up to 1; got {mean} and {std};"
        f" {PIXELS}",
    )


def _validate_export(export: Any) -> None:
    for name in export.formats:
        check(
            name in FORMATS,
            f"export.formats may have {', '.join(FORMATS)}; got {name!r}",
        )
    check(export.opset in (17, 20, 23), f"export.opset must be 17, 20 or 23; got {export.opset}")
    check(
        export.pixels in ("float32", "uint8"),
        f"export.pixels must be float32 or uint8; got {export.pixels!r}",
    )
    check(
        export.layout in ("", "NCHW", "NHWC"),
        f"export.layout must be NCHW or NHWC; got {export.layout!r}",
    )
    for name in export.formats:
        extra, libraries = LIBRARIES.get(name.rpartition(".")[2], ("", ()))
        missing = [library for library in libraries if importlib.util.find_spec(library) is None]
        check(
            not missing,
            f"export.formats: {name} needs {', '.join(missing)}: pip install 'spvit_jax[{extra}]'",
        )


def _validate_stage(config: Any) -> None:
    """What the stage needs besides."""
    if config.stage in ("all", "search"):
        budget = config.budget
        check(
            bool(budget.macs or budget.params or budget.latency),
            "set a budget: budget.macs or budget.params, a share of the dense model's or a number,"
            " or budget.latency, TABLE.json:SHARE",
        )
        _check_share("budget.latency", budget.latency)
    if config.stage == "all":
        check(
            config.finetune.start != "searched" or config.search.epochs > 0,
            "finetune.start=searched needs a search, and search.epochs=0 makes none; set it to"
            " repaired or pretrained",
        )
        check(
            config.search.decision == "project" or config.shortlist.candidates == 0,
            "search.decision=threshold may be above the budget, and a shortlist compares models"
            " within it; set search.decision=project, or shortlist.candidates=0",
        )
        check(
            config.finetune.start == "repaired" or config.shortlist.candidates == 0,
            "shortlist.candidates tries repaired models: it needs finetune.start=repaired, got"
            f" {config.finetune.start}; set it so, or shortlist.candidates=0",
        )
    if config.stage == "frontier":
        shares = config.frontier.budgets
        check(
            len(shares) > 0 and all(0 < share <= 1 for share in shares),
            f"frontier.budgets must be one or more shares, above 0 and up to 1; got {shares}",
        )
    if config.stage == "pretrain":
        check(
            config.pretrain.distillation == "none" or bool(config.teacher.checkpoint),
            "pretrain.distillation needs teacher.checkpoint: a run that trains from scratch has no"
            " dense model to learn from",
        )
        check(bool(config.model.variant), 'model.variant="" needs a checkpoint; pretrain has none')
    if config.stage == "finetune":
        check(
            config.finetune.start != "searched",
            "finetune.start=searched needs the search of the same run (stage=all);"
            " with stage=finetune set it to pretrained or repaired",
        )
        check(
            bool(config.finetune.architecture),
            "stage=finetune needs finetune.architecture: the architecture.json of a search, or one"
            " of configs/architectures/",
        )


def _check_share(name: str, value: str) -> None:
    """Raises ``ConfigError`` unless ``value`` is empty or ends in a share after a colon."""
    path, _, share = value.rpartition(":")
    try:
        good = not value or (bool(path) and 0 < float(share) <= 1)
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{name} is TABLE.json:SHARE, a file and a number in (0, 1], such as cpu.json:0.6; got"
            f" {value!r}"
        )
