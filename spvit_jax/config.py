"""The schema of a run, once: every field typed, documented with its unit, and validated.

A file in ``configs/`` returns ``to_config_dict(Config(...))``; ``--config.search.epochs=5`` on the
command line changes one field. ``from_config_dict`` turns the result back into these dataclasses
and refuses what cannot work, naming the field.
"""

import dataclasses
import difflib
import math
import typing
from typing import Any

if typing.TYPE_CHECKING:  # imported when used: a training step needs the schema alone
    import ml_collections

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
    "unit_group",
}
AUGMENTATIONS = (  # all but the first three crop at a random place, size and aspect, and flip
    "none",
    "flip",  # left to right
    "shift",  # that, and shifts by up to 2 pixels
    "plain",
    "three",  # DeiT III's 3-Augment
    "recipe",  # RandAugment rand-m9-mstd0.5-inc1, as released
)
STAGES: dict[str, tuple[str, ...]] = {  # what a run may do: the groups below that it trains by
    "all": ("search", "finetune"),
    "pretrain": ("pretrain",),
    "search": ("search",),
    "finetune": ("finetune",),
    "frontier": (),
    "evaluate": (),
}


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the field and what to write instead."""


@dataclasses.dataclass
class Model:
    """The dense network everything starts from."""

    variant: str = "deit_base_patch16_224"  # a row of spvit_jax.models.VARIANTS; "": the shapes
    # in the checkpoint say what it is
    heads: int = 0  # with variant "": heads of a ViT checkpoint, which does not say; 0: width / 64
    image_size: int = 0  # pixels a side; 0: the variant's own
    classes: int = 0  # 0: as many as the data has
    dropout: float = 0.0  # after position embedding, projections and FFN units
    drop_path: float = 0.0  # stochastic depth of the last block; earlier blocks rise linearly to it
    dtype: str = "float32"  # of the computation, "float32" or "bfloat16"; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    checkpoint: str = ""  # pretrained weights: path, https://, hf-hub: or gs:// address; "": none


@dataclasses.dataclass
class Data:
    """Where images come from and how they become arrays."""

    source: str = "packaged:fashion_mnist"  # packaged:NAME, folder:PATH, tfds:NAME, inat:PATH or
    # idx:PATH
    directory: str = ""  # tfds only: its data_dir
    train_split: str = "train"
    test_split: str = "test"
    val_share: float = 0.0  # folder:PATH of CLASS folders: share of each class that is split "val"
    val_seed: int = 0  # which images these are
    augment: str = "none"  # one of AUGMENTATIONS
    repeats: int = (
        1  # views of an image in a row (repeated augmentation); an epoch keeps its length
    )
    mixup: float = 0.0  # alpha of the share of the image's own, in batches; 0: off
    cutmix: float = 0.0  # likewise; where both are on, each batch takes one or the other
    erasing: float = 0.0  # probability that a box of an image is filled with noise
    on_error: str = "raise"  # an image that cannot be decoded ends the run; "skip": is left out
    crop_ratio: float = 0.875  # evaluation: the centre crop's share of the resized image
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # RGB, of pixels in 0..1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    workers: int = 0  # decoding processes; 0: threads of this one
    eval_batch_size: int = 500


@dataclasses.dataclass
class Teacher:
    """The network that ``distillation`` learns from. It sees the images the student sees."""

    checkpoint: str = ""  # RegNetY, ViT, Swin or a pruned model, as model.checkpoint; "": the run's
    # own dense model
    heads: int = 0  # of a ViT checkpoint, which does not say; 0: width / 64
    dtype: str = "bfloat16"  # of its computation
    mean: tuple[float, ...] = ()  # RGB, of pixels in 0..1; (): data.mean
    std: tuple[float, ...] = ()


@dataclasses.dataclass
class Training:
    """One optimisation: pretraining, search or fine-tuning."""

    epochs: float = 1.0  # passes over the training split
    batch_size: int = 128  # images a step, over all devices
    learning_rate: float = 1e-4  # peak, of the weights
    schedule: str = "constant"  # "constant" or "cosine", both after the warm-up
    warmup_epochs: float = 0.0  # linear from 0
    final_learning_rate: float = 0.0  # where the cosine ends
    weight_decay: float = 0.05  # decoupled; none on norms, biases, position embedding, tokens
    clip_norm: float = 0.0  # global norm of the weights' gradient; 0: no clipping
    accumulation: int = 1  # micro-batches a step
    ema_decay: float = 0.0  # of the weights that are evaluated and handed on; 0: no averaging
    label_smoothing: float = 0.0
    distillation: str = "none"  # "none", "hard" (the teacher's decision), "soft" (its logits) or
    # "features" (the output of each of its blocks)
    distillation_weight: float = 0.5  # of its loss; the labels' has the rest
    distillation_temperature: float = 1.0  # of "soft"


@dataclasses.dataclass
class Search(Training):
    """Gates and weights trained together under a compute budget (paper, section 3.3)."""

    gate_learning_rate: float = 1e-3  # constant, its own Adam, no decay
    axes: tuple[str, ...] = ("op", "ffn")  # under gates: op, heads (of attention), ffn (units)
    ops: tuple[str, ...] = ("skip", "conv1x1", "conv3x3", "msa")  # a block may choose from
    unit_group: int = 1  # FFN units per gate: widths are multiples of it; 8, 64, 128 suit hardware
    budget_lambda: float = 4.0  # weight of (cost / budget - 1)^2, for each budget
    decision: str = "project"  # "project": within the budgets; "threshold": the paper's 0.5;
    # "score": the least error within the budgets, on score.images, without any search


@dataclasses.dataclass
class Budget:
    """What a pruned model may cost; all that are set are held, and at least one is."""

    macs: float = 0.0  # up to 1: a share of the dense model's as published; above: per image
    count: str = (
        "run"  # the pruned model's MACs: as it runs, or by the paper's formula, "published"
    )
    params: float = (
        0.0  # of the folded model; up to 1: a share of the dense model's; above: so many
    )
    latency: str = (
        ""  # TABLE.json:SHARE of the dense model's time; python -m spvit_jax.prices makes
    )
    # the table, on the device that counts


@dataclasses.dataclass
class Score:
    """The images of the training split, without labels, that choices are scored and repaired on."""

    images: int = 512  # spread evenly over the split
    batch_size: int = 32  # images a step, over all devices; one step in four is held out


@dataclasses.dataclass
class Frontier:
    """The trade-off curve of stage=frontier."""

    budgets: tuple[float, ...] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)  # shares of the MACs,
    # as budget.macs, which does not count here; nor do other budgets


@dataclasses.dataclass
class Finetune(Training):
    """Training of the pruned model."""

    start: str = "pretrained"  # weights it starts from: "pretrained" (as released), "searched", or
    # "repaired": the pretrained ones, fitted by least squares to what was chosen
    architecture: str = ""  # stage=finetune without a search: an architecture's JSON


@dataclasses.dataclass
class Sharding:
    """How a run is spread over devices; no choice changes its results."""

    fsdp: int = 1  # devices that share one copy of weights, optimiser and average; 0: all of them.
    # All devices divided by it is the number of copies


@dataclasses.dataclass
class Config:
    """A whole run: dense model, search, decision, pruning, fine-tuning, folding, measurement."""

    stage: str = "all"  # one of STAGES; "all" is search, finetune and the report
    seed: int = 0
    model: Model = dataclasses.field(default_factory=Model)
    data: Data = dataclasses.field(default_factory=Data)
    teacher: Teacher = dataclasses.field(default_factory=Teacher)
    pretrain: Training = dataclasses.field(default_factory=Training)
    budget: Budget = dataclasses.field(default_factory=Budget)
    search: Search = dataclasses.field(default_factory=Search)
    finetune: Finetune = dataclasses.field(default_factory=Finetune)
    score: Score = dataclasses.field(default_factory=Score)
    frontier: Frontier = dataclasses.field(default_factory=Frontier)
    sharding: Sharding = dataclasses.field(default_factory=Sharding)
    checkpoint_every: int = 1000  # steps between checkpoints
    eval_every: float = 1.0  # epochs between evaluations on the test split; 0: at the end only
    log_every: int = 50  # steps between TensorBoard points
    measure_batch: int = 64  # images a call when throughput is measured
    measure_seconds: float = 10.0  # time given to each of latency and throughput


def to_config_dict(config: Config) -> "ml_collections.ConfigDict":
    """``config`` as the locked ConfigDict that ``--config=FILE.py`` expects."""
    import ml_collections

    typed = _build(Config, dataclasses.asdict(config), "")  # 3 becomes 3.0: a flag may say 0.5
    return ml_collections.ConfigDict(dataclasses.asdict(typed)).lock()


def from_config_dict(values: "ml_collections.ConfigDict | dict[str, Any]") -> Config:
    """The validated ``Config`` of a ConfigDict or of its JSON form.

    Raises:
      ConfigError: an unknown field, a wrong type, or values that contradict each other.
    """
    plain = values if isinstance(values, dict) else values.to_dict()
    config = _build(Config, plain, "")
    _check_numbers(config, "")
    _validate(config)
    return config


def _build(cls: Any, values: dict[str, Any], path: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(cls)}
    arguments = {}
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {path}{near[0]}?" if near else f"; it has {sorted(fields)}"
            raise ConfigError(f"config has no field {path}{name}{hint}")
        kind = fields[name].type
        if dataclasses.is_dataclass(kind):
            if not isinstance(value, dict):
                raise ConfigError(f"{path}{name} is a group of fields, got {value!r}")
            arguments[name] = _build(kind, value, f"{path}{name}.")
        else:
            arguments[name] = _typed(kind, value, path + name)
    return cls(**arguments)


def _typed(kind: Any, value: Any, name: str) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(typing.get_args(kind)[0], v, name) for v in value)
    if type(value) is not kind:
        wanted = getattr(kind, "__name__", kind)
        raise ConfigError(f"{name} must be a {wanted}, got {value!r} ({type(value).__name__})")
    return value


def _check_numbers(part: Any, path: str) -> None:
    """No number may be negative, infinite or NaN, and those of ``POSITIVE`` not 0."""
    for field in dataclasses.fields(part):
        value, name = getattr(part, field.name), path + field.name
        if dataclasses.is_dataclass(value):
            _check_numbers(value, f"{name}.")
        elif isinstance(value, int | float):
            positive = field.name in POSITIVE
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                wanted = "above 0" if positive else "0 or more"
                raise ConfigError(f"{name} must be {wanted}, got {value}")


def check(good: bool, message: str) -> None:
    """Raises ``ConfigError`` with the message unless it is good."""
    if not good:
        raise ConfigError(message)


def _validate(config: Config) -> None:
    def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
        check(value in allowed, f"{name} must be one of {', '.join(allowed)}; got {value!r}")

    one_of("stage", config.stage, tuple(STAGES))
    one_of("model.dtype", config.model.dtype, ("float32", "bfloat16"))
    one_of("teacher.dtype", config.teacher.dtype, ("float32", "bfloat16"))
    one_of("data.augment", config.data.augment, AUGMENTATIONS)
    one_of("data.on_error", config.data.on_error, ("raise", "skip"))
    check(config.data.val_share < 1, "data.val_share must be in [0, 1)")
    check(config.data.erasing <= 1, "data.erasing is a probability, in [0, 1]")
    one_of("budget.count", config.budget.count, ("run", "published"))
    one_of("search.decision", config.search.decision, ("project", "threshold", "score"))
    one_of("finetune.start", config.finetune.start, ("pretrained", "searched", "repaired"))
    kind = config.data.source.partition(":")[0]
    one_of("data.source (before the colon)", kind, ("packaged", "folder", "tfds", "inat", "idx"))
    check(
        len(config.data.mean) == len(config.data.std) == 3 and min(config.data.std) > 0,
        "data.mean and data.std need three numbers each, std above 0",
    )
    check(0 < config.data.crop_ratio <= 1, "data.crop_ratio must be in (0, 1]")
    mean, std = config.teacher.mean, config.teacher.std
    check(
        len(mean) == len(std) and len(mean) in (0, 3) and min(std, default=1) > 0,
        "teacher.mean and teacher.std need three numbers each, std above 0, or none",
    )
    for name in ("pretrain", "search", "finetune"):
        part: Training = getattr(config, name)
        one_of(f"{name}.schedule", part.schedule, ("constant", "cosine"))
        check(
            part.batch_size % part.accumulation == 0,
            f"{name}.accumulation must divide {name}.batch_size={part.batch_size},"
            f" got {part.accumulation}",
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
    for name in ("dropout", "drop_path"):
        check(getattr(config.model, name) < 1, f"model.{name} must be in [0, 1)")
    _validate_stage(config)
    check(config.seed < 2**32, f"seed must be below 2**32, got {config.seed}")


def _validate_stage(config: Config) -> None:
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
            config.finetune.start != "searched" or config.search.decision != "score",
            "finetune.start=searched needs a search, and search.decision=score makes none; set it"
            " to repaired or pretrained",
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
