"""What arrays do not say of a model, read from the JSON files beside them; nothing is executed."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from spvit_jax.checkpoint_options import NAMES
from spvit_jax.convert.architectures import architecture
from spvit_jax.convert.defaults import DEFAULTS
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.typed import Fields
from spvit_jax.models.rotary import KINDS
from spvit_jax.remote import raise_transient
from spvit_jax.sizes import Size, sides, wanted_size

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
OPEN_CLIP = "open_clip_config.json"
ACTIVATIONS = {  # transformers' and timm's names, ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_tanh": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "quickgelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
COUNTS = ("width", "depth", "heads", "patch_size", "hidden", "channels", "window")  # of Facts
NUMBERS = ("epsilon", "crop_ratio", "mlp_ratio")
POOLS = ("token", "avg", "map")  # timm's names
INTERPOLATIONS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


@dataclass(frozen=True)
class Rotary:
    """A rotary position embedding.

    Attributes:
      kind: "dinov3", of patch centres between -1 and 1, halves rotated; "eva", of patch indices,
        neighbours rotated; "none", which a user may say.
      base: of the geometric series of wavelengths.
      grid: patches a side that the indices of "eva" are scaled to; None: none.
    """

    kind: str
    base: float
    grid: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is said of a model beside its arrays; None: nothing.

    Attributes:
      family: timm's name of the architecture, or transformers' of the model type.
      width: features of a token; of Swin in the first stage.
      depth: blocks, of all stages.
      heads: of a block; of Swin in the first stage.
      epsilon: of the layer norms.
      activation: of the FFNs: "gelu", "gelu_tanh", "quick_gelu" or "silu".
      image_size: pixels of the images it is for: a side of a square, or height and width.
      built_for: pixels of those that its learned positions have to be of.
      asked: of those it is wanted for; tells a map of positions that nothing else tells.
      patch_size: pixels per side.
      mean: of each colour, of images between 0 and 1.
      std: of each colour, likewise.
      crop_ratio: of the side that is cropped to that which an image was resized to.
      interpolation: "bicubic", "bilinear", …
      crop_mode: timm's "center", "squash" or "border", open_clip's "shortest" or "longest".
      classes: outputs of its head.
      class_names: of the classifier's outputs, in their order.
      pool: timm's "token", "avg" or "map".
      rotary: the rotary position embedding.
      hidden: units of each FFN.
      mlp_ratio: likewise, for each feature.
      channels: of an image.
      class_token: whether it has one.
      registers: how many tokens it has that nobody reads.
      positions: how learned ones are interpolated for other image sizes, one of ``fit.RESIZED``.
      window: tokens a side of the windows of a Swin's first stage.
      qkv_bias: whether queries, keys and values have biases.
    """

    family: str | None = None
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    epsilon: float | None = None
    activation: str | None = None
    image_size: Size | None = None
    built_for: Size | None = None
    asked: Size | None = None
    patch_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    crop_ratio: float | None = None
    interpolation: str | None = None
    crop_mode: str | None = None
    classes: int | None = None
    class_names: tuple[str, ...] | None = None
    pool: str | None = None
    rotary: Rotary | None = None
    hidden: int | None = None
    mlp_ratio: float | None = None
    channels: int | None = None
    class_token: bool | None = None
    registers: int | None = None
    positions: str | None = None
    window: int | None = None
    qkv_bias: bool | None = None

    def __post_init__(self) -> None:
        if self.rotary is not None and not isinstance(self.rotary, Rotary):
            raise CheckpointError(
                f"rotary must be a Rotary, as Facts.of(rotary=…) makes it; got {self.rotary!r}"
            )
        for name in COUNTS:
            value = getattr(self, name)
            if not (value is None or _is_above(0, value, Integral)):
                raise CheckpointError(f"{name} must be whole and 1 or more; got {value!r}")
        for name in NUMBERS:
            value = getattr(self, name)
            if not (value is None or (_is_above(0, value, Real) and value < math.inf)):
                raise CheckpointError(f"{name} must be a number above 0; got {value!r}")
        for name, known in NAMES.items():
            value = getattr(self, name)
            value = getattr(value, "kind", value)  # of rotary positions
            if value not in (None, *known):
                raise CheckpointError(f"{name} must be one of {', '.join(known)}; got {value!r}")

    @classmethod
    def of(
        cls,
        heads: int = 0,
        activation: str = "",
        epsilon: float = 0.0,
        rotary: str = "",
        positions: str = "",
        image_size: Size = 0,
        asked: Size = 0,
    ) -> "Facts":
        """What a user says; 0 and "" say nothing."""
        base = KINDS[rotary].base if rotary in KINDS else 0.0
        return cls(
            heads=heads or None,
            activation=activation or None,
            epsilon=epsilon or None,
            rotary=Rotary(rotary, base) if rotary else None,
            positions=positions or None,
            image_size=wanted_size(image_size) or None,
            asked=asked or None,
        )

    def over(self, other: "Facts") -> "Facts":
        """These facts, and where they say nothing what the others say."""
        mine = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(other, **mine)


UNKNOWN = Facts()


def facts_beside(path: Path) -> Facts:
    """What ``config.json`` and ``preprocessor_config.json`` say, in timm's or transformers' form.

    Where neither form is there, what ``open_clip_config.json`` says.

    Args:
      path: of a file of weights, or of its folder.

    Raises:
      CheckpointError: one of them is damaged, or a field is of another type than it has to be.
    """
    folder = path if path.is_dir() else path.parent
    config, preprocessor = _read(folder / CONFIG), _read(folder / PREPROCESSOR)
    facts: dict[str, Any] = {}
    if config is not None and "architecture" in config:
        facts = _timm(config)
    elif config is not None and "model_type" in config:
        facts = _transformers(config)
    elif (clip := _read(folder / OPEN_CLIP)) is not None:
        facts = _open_clip(clip)
    if preprocessor is not None:
        said = _preprocessing(preprocessor)
        for name in ("mean", "std"):
            _same_colours(facts.get(name), said.get(name), name, folder)
        facts |= said
    return Facts(**{name: value for name, value in facts.items() if value is not None})


def _same_colours(one: Any, other: Any, name: str, folder: Path) -> None:
    """Raises ``CheckpointError`` where two files differ in the colours they scale images by."""
    if one and other and (len(one) != len(other) or not np.allclose(one, other, atol=1e-3)):
        raise CheckpointError(
            f"in {folder}, {name} is {one} by {CONFIG} and {other} by {PREPROCESSOR}; move away the"
            " one that is not of these weights"
        )


def _is_above(least: int, value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and bool(value > least)


def _read(path: Path) -> Fields | None:
    """A JSON object; None: no such file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise_transient(error)
        raise CheckpointError(
            f"{path} is not whole JSON: {error}; download it again, or move it away"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return Fields(content, str(path))


def _timm(config: Fields) -> dict[str, Any]:
    """Facts of timm's form; what it leaves to the code is known by the architecture's name."""
    family = config.text("architecture") or ""
    own = config.inner("pretrained_cfg").over(config)  # older files have all at the top
    options = config.inner("model_args")
    known = architecture(family)
    rotary = Rotary(*known.rotary) if known.rotary else None
    temperature = options.number("rope_temperature")
    if rotary is not None and temperature:
        rotary = dataclasses.replace(rotary, base=temperature)
    gated = "mlp_layer" in options or options.flag("swiglu_mlp")
    features = None if known.staged else config.count("num_features")
    return {
        "family": family,
        "width": options.count("embed_dim") or features,
        "depth": options.total("depths") or options.count("depth"),
        "heads": options.count("num_heads", first=True) or known.heads,
        "epsilon": known.epsilon,
        "activation": _activation(options, "act_layer") or known.activation,
        "image_size": options.size("img_size") or own.size("input_size"),
        "built_for": options.size("img_size") or own.size("input_size"),
        "mlp_ratio": None if gated else options.number("mlp_ratio"),
        "channels": options.count("in_chans") or own.channels("input_size"),
        "class_token": options.flag("class_token") if "class_token" in options else None,
        "registers": options.count("reg_tokens", least=0),
        "patch_size": options.side("patch_size") or known.patch_size,
        "mean": own.numbers("mean"),
        "std": own.numbers("std"),
        "crop_ratio": own.number("crop_pct"),
        "interpolation": own.text("interpolation"),
        "crop_mode": own.text("crop_mode"),
        "classes": config.count("num_classes", least=0),
        "class_names": own.names("label_names"),
        "pool": _pool(options, "global_pool") or _pool(config, "global_pool"),
        "rotary": rotary,
        "window": options.count("window_size", first=True),
        "qkv_bias": options.flag("qkv_bias") if "qkv_bias" in options else None,
    }


def _transformers(config: Fields) -> dict[str, Any]:
    """Facts of transformers' form; of two towers, the one for images."""
    family = config.text("model_type") or ""
    labels = config.names("id2label")
    if family in TOWERS or "vision_config" in config:
        family = TOWERS.get(family, family)
        config = config.inner("vision_config")
    defaults = DEFAULTS.get(config.text("model_type") or family, DEFAULTS.get(family, {}))
    config = config.over(Fields(defaults, "transformers' defaults"))
    staged = "embed_dim" in config
    theta = config.inner("rope_parameters").number("rope_theta") or config.number("rope_theta")
    gated = config.flag("use_swiglu_ffn")
    placeholder = labels and all(re.fullmatch(r"LABEL_\d+", name) for name in labels)
    return {
        "family": family,
        "width": config.count("embed_dim" if staged else "hidden_size"),
        "depth": config.total("depths") if staged else config.count("num_hidden_layers"),
        "heads": config.count("num_heads" if staged else "num_attention_heads", first=True),
        "epsilon": config.number("layer_norm_eps"),
        "activation": "silu" if gated else _activation(config, "hidden_act"),
        "image_size": config.size("image_size"),
        "built_for": config.size("image_size"),
        "hidden": None if gated else config.count("intermediate_size"),
        "mlp_ratio": None if gated else config.number("mlp_ratio"),
        "channels": config.count("num_channels"),
        "registers": config.count("num_register_tokens", least=0),
        "patch_size": config.side("patch_size"),
        "class_names": None if placeholder else labels,
        "rotary": Rotary("dinov3", theta) if family == "dinov3_vit" and theta else None,
        "positions": "bicubic",
        "window": config.count("window_size", first=True) if staged else None,
        "qkv_bias": config.flag("qkv_bias") if "qkv_bias" in config else None,
    }


def _open_clip(config: Fields) -> dict[str, Any]:
    """Facts of open_clip's form, the vision tower; one of timm's is known by its name."""
    model, images = config.inner("model_cfg"), config.inner("preprocess_cfg")
    tower = model.inner("vision_cfg")
    for name in ("final_ln_after_pool", "act_kwargs", "norm_kwargs", "global_average_pool"):
        if name in tower:
            raise tower.wrong(name, "none: no tower here has that; take the model without it")
    if tower.text("pool_type") not in (None, "tok"):
        raise tower.wrong("pool_type", "tok: towers here look at the class token")
    facts: dict[str, Any] = {
        "image_size": tower.size("image_size"),
        "mean": images.numbers("mean"),
        "std": images.numbers("std"),
        "interpolation": images.text("interpolation"),
        "crop_mode": images.text("resize_mode"),
    }
    family = tower.text("timm_model_name")
    if family is not None:
        known = architecture(family)
        return facts | {
            "family": family,
            "heads": known.heads,
            "epsilon": known.epsilon,
            "activation": known.activation,
            "patch_size": known.patch_size,
            "pool": _pool(tower, "timm_pool"),
            "rotary": Rotary(*known.rotary) if known.rotary else None,
        }
    width = tower.count("width") or 768
    return facts | {
        "family": "open_clip",
        "width": width,
        "depth": tower.count("layers") or 12,
        "heads": width // (tower.count("head_width") or 64),
        "epsilon": 1e-5,
        "activation": "quick_gelu" if model.flag("quick_gelu") else "gelu",
        "patch_size": tower.side("patch_size") or 16,
    }


def _preprocessing(config: Fields) -> dict[str, Any]:
    """Facts of transformers' image processors; what is not said there stays as it was."""
    facts: dict[str, Any] = {"crop_mode": "squash" if config.has_both_sides("size") else None}
    if not config.flag("do_rescale", True):
        raise config.wrong("do_rescale", "true: mean and std are of pixels between 0 and 1 here")
    if not math.isclose(config.number("rescale_factor") or 1 / 255, 1 / 255, rel_tol=1e-3):
        raise config.wrong("rescale_factor", "1/255: mean and std are of pixels between 0 and 1")
    if config.flag("do_normalize", True):
        facts |= {"mean": config.numbers("image_mean"), "std": config.numbers("image_std")}
    else:
        facts |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    resized, cropped = config.size("size"), config.size("crop_size")
    if config.flag("do_center_crop", cropped is not None):
        if resized and cropped:
            ratios = {c / r for c, r in zip(sides(cropped), sides(resized), strict=True)}
            if len(ratios) > 1:
                raise config.wrong("crop_size", f"the same share of size={resized} in both sides")
            facts["crop_ratio"] = ratios.pop()
    elif resized:
        facts["crop_ratio"] = 1.0
    resample = config.count("resample", least=0)
    if resample is not None:
        if resample not in INTERPOLATIONS:
            raise config.wrong("resample", "one of Pillow's filters, 0 to 5")
        facts["interpolation"] = INTERPOLATIONS[resample]
    return {name: value for name, value in facts.items() if value is not None}


def _activation(config: Fields, name: str) -> str | None:
    activation = config.text(name)
    if activation is None:
        return None
    if activation not in ACTIVATIONS:
        raise config.wrong(name, f"one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]


def _pool(config: Fields, name: str) -> str | None:
    pool = config.text(name)
    if pool and pool not in POOLS:
        raise config.wrong(name, f"one of {', '.join(POOLS)}")
    return pool or None
