"""The schema of a run, once: every field typed, documented with its unit, and validated.

A file in ``configs/`` returns ``to_config_dict(Config(...))``; ``--config.search.epochs=5`` on the
command line changes one field. ``from_config_dict`` turns the result back into these dataclasses
and refuses what cannot work, naming the field.
"""

import dataclasses
import difflib
import typing
from typing import Any

from spvit_jax.sizes import Size, wanted_size
from spvit_jax.validate import AUGMENTATIONS as AUGMENTATIONS
from spvit_jax.validate import FORMATS as FORMATS
from spvit_jax.validate import LIBRARIES as LIBRARIES
from spvit_jax.validate import STAGES as STAGES
from spvit_jax.validate import ConfigError as ConfigError
from spvit_jax.validate import check as check
from spvit_jax.validate import check_numbers, validate

if typing.TYPE_CHECKING:  # imported when used: a training step needs the schema alone
    import ml_collections


@dataclasses.dataclass
class Model:
    """The dense network everything starts from."""

    variant: str = "deit_base_patch16_224"  # a row of spvit_jax.models.VARIANTS; "": the shapes
    # in the checkpoint say what it is
    heads: int = 0  # with variant "": what a checkpoint, and a config.json beside it, may not say:
    # the heads of a ViT; 0: as said there, or those of a published model as wide
    activation: str = ""  # likewise, of its FFN units: gelu, gelu_tanh, quick_gelu or silu
    epsilon: float = 0.0  # likewise, of its norms
    rotary: str = ""  # likewise, how rotary positions turn: dinov3, eva or none
    positions: str = ""  # likewise, how learned ones are interpolated for another image size:
    # antialiased, as timm does, or bicubic, as transformers and DINOv2's own code do
    output: str = ""  # "logits", or "features": without a head; "": as in the checkpoint
    patches: bool = False  # whether the patches' features are wanted too, beside the class token's
    image_size: tuple[int, ...] = (0,)  # pixels, one number for a square or two, height and width;
    # 0: the variant's own
    classes: int = 0  # 0: as many as the data has, or, of data without labels, the checkpoint
    dropout: float = 0.0  # after position embedding, projections and FFN units
    drop_path: float = 0.0  # stochastic depth of the last block; earlier blocks rise linearly to it
    dtype: str = "float32"  # of the computation, "float32" or "bfloat16"; parameters stay float32
    remat: bool = False  # recompute each block in the backward pass: less memory, more time
    checkpoint: str = ""  # pretrained weights: path, https://, hf-hub: or gs:// address; "": none

    @property
    def size(self) -> Size:
        """The image size that is asked for; 0: none."""
        return wanted_size(self.image_size)


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
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # RGB, of pixels in 0..1; of a model that
    # sees grey, one number
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    workers: int = 0  # decoding processes; 0: threads of this one
    eval_batch_size: int = 500


@dataclasses.dataclass
class Teacher:
    """The network that ``distillation`` learns from. It sees the images the student sees."""

    checkpoint: str = ""  # RegNetY, ViT, Swin or a pruned model, as model.checkpoint; "": the run's
    # own dense model
    heads: int = 0  # of a ViT checkpoint, which does not say; 0: of a published one as wide
    dtype: str = "bfloat16"  # of its computation
    mean: tuple[float, ...] = ()  # RGB, of pixels in 0..1; (): what the checkpoint
    # says; where it says nothing, data.mean
    std: tuple[float, ...] = ()


@dataclasses.dataclass
class Training:
    """One optimisation: pretraining, search or fine-tuning."""

    epochs: float = 1.0  # passes over the training split
    batch_size: int = 128  # images per step, over all devices
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
    """Gates and weights trained together under a compute budget (paper, section 3.3).

    With ``epochs=0`` there is none: scores of every choice, on ``score.images``, decide.
    """

    gate_learning_rate: float = 1e-3  # constant, its own Adam, no decay
    axes: tuple[str, ...] = ("op", "ffn")  # that may be touched: op, heads (of attention), dims
    # (features of heads) and tokens (merged), by scores alone: no search gates them, ffn (units)
    ops: tuple[str, ...] = ("skip", "conv1x1", "conv3x3", "msa")  # a block may choose from
    unit_group: int = 1  # FFN units per gate: widths are multiples of it; 8, 64, 128 suit hardware
    budget_lambda: float = 4.0  # weight of (cost / budget - 1)^2, for each budget
    decision: str = "project"  # "project": within the budgets; "threshold": the paper's 0.5
    start: str = "released"  # gate logits: "released", all alike, or "scores", of score.images


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

    images: int = 512  # spread evenly over the split; where it has fewer, crops of them as well
    batch_size: int = 32  # images per step, over all devices; one step in four is held out
    patch_weight: float = 0.0  # of the patches' features in the error that candidates are judged
    # by, unmerged; what the heads see has the rest. 0: half where model.patches asks for them


@dataclasses.dataclass
class Shortlist:
    """Architectures that are repaired and trained for a short while, as fine-tuning would."""

    candidates: int = 0  # to train: of what was decided and simpler ones, those that repair brings
    # nearest to the dense model, within 1.5 times the least error; 0: what was decided stands
    steps: int = 100  # of each
    images: int = 500  # of the training split, held out to judge; schedules of merges too


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
class Export:
    """Files of the pruned model beside ``pruned.safetensors``, see python -m spvit_jax.export."""

    formats: tuple[str, ...] = ()  # some of FORMATS, such as ("onnx", "int8.onnx"); int8 is
    # calibrated, and judged, on 256 images of the training split
    opset: int = 17  # of ONNX
    pixels: str = "float32"  # what goes in: "float32", normalised, or "uint8", as decoded
    layout: str = ""  # "NCHW" or "NHWC"; "": as usual there


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
    shortlist: Shortlist = dataclasses.field(default_factory=Shortlist)
    frontier: Frontier = dataclasses.field(default_factory=Frontier)
    export: Export = dataclasses.field(default_factory=Export)
    sharding: Sharding = dataclasses.field(default_factory=Sharding)
    checkpoint_every: int = 1000  # steps between checkpoints
    eval_every: float = 1.0  # epochs between evaluations on the test split; 0: at the end only
    log_every: int = 50  # steps between TensorBoard points
    measure_batch: int = 64  # images per call when throughput is measured
    measure_seconds: float = 10.0  # time given to each of latency and throughput

    @property
    def scores(self) -> bool:
        """Whether choices are scored on unlabelled images."""
        return (
            self.search.epochs == 0
            or self.search.start == "scores"
            or self.shortlist.candidates > 0
        )

    @property
    def merges(self) -> bool:
        """Whether schedules of merges are tried."""
        stages = {"all": self.scores, "search": self.scores, "frontier": True}
        return "tokens" in self.search.axes and stages.get(self.stage, False)

    @property
    def tries(self) -> bool:
        """Whether candidates are trained for a short while."""
        return self.stage in ("all", "search") and self.shortlist.candidates > 0

    @property
    def judges(self) -> bool:
        """Whether held-out images judge candidates."""
        return self.tries or self.merges

    @property
    def patch_weight(self) -> float:
        """The share of the patches' features in the error that candidates are judged by."""
        return self.score.patch_weight or (0.5 if self.model.patches else 0.0)

    @property
    def trainings(self) -> tuple[str, ...]:
        """The groups of fields that ``stage`` trains by, in their order."""
        return tuple(name for name in STAGES[self.stage] if getattr(self, name).epochs)


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
    check_numbers(config, "")
    validate(config)
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
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple | int | float):
        each = value if isinstance(value, list | tuple) else (value,)  # as on a command line
        return tuple(_typed(typing.get_args(kind)[0], v, name) for v in each)
    if type(value) is not kind:
        wanted = getattr(kind, "__name__", kind)
        raise ConfigError(f"{name} must be a {wanted}, got {value!r} ({type(value).__name__})")
    return value
