"""Whether what is said of a model agrees with its arrays, or with what its own file says."""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import CONFIG, Facts
from spvit_jax.convert.native import About
from spvit_jax.models import Spec, SwinSpec, ViTSpec
from spvit_jax.sizes import as_size, shown, sides

POOLS = {  # timm's, of those of a spec
    "token": "token",
    "norm_average": "avg",
    "average_norm": "avg",
    "attention": "map",
}
COMPARED = (  # facts that a spec has as well
    *("width", "depth", "heads", "epsilon", "activation", "patch_size", "rotary", "pool"),
    *("image_size", "classes", "channels", "hidden", "class_token", "registers"),
)
TOKENS = ("cls_token", "dist_token", "reg_token")
USER = "it is said to have"
KINDS = (  # of models, by how the names of their families begin
    ("Swin", r"swin"),
    ("RegNet", r"regnet"),
    ("ViT", r"(vit|deit|deit3|flexivit|eva|eva02|beit|beitv2|dinov2|dinov3)(_|$)"),
)
SAID = (
    *("class_names", "classes", "mean", "std", "crop_ratio", "family", "interpolation"),
    *("crop_mode", "heads", "epsilon", "activation"),
)  # facts that nobody says instead of the files beside weights
ATTENTIVE = ("heads", "epsilon", "activation", "patch_size", "rotary", "positions", "window")
PREPARED = {"interpolation": ("bicubic",), "crop_mode": ("center", "shortest")}  # images, here


def check(facts: Facts, state: State) -> None:
    """Raises ``CheckpointError`` where files beside a checkpoint contradict it; names all of it.

    Args:
      facts: of these files.
      state: its arrays, in timm's names.
    """
    if lines := _differences(facts, state, f"{CONFIG} says"):
        raise CheckpointError(
            "the files beside the weights are of another model:\n  "
            + "\n  ".join(lines)
            + f"\ntake the {CONFIG} that belongs to the weights, or move this one away"
        )


def check_user(facts: Facts, state: State) -> None:
    """Raises ``CheckpointError`` where what a user says of a checkpoint contradicts its arrays."""
    of = dataclasses.replace(facts, built_for=facts.built_for or facts.image_size)
    _refuse(_differences(of, state, USER))


def check_beside(user: Facts, beside: Facts) -> None:
    """Raises ``CheckpointError`` where what a user says is not what the files beside weights say.

    Likewise where images are to be prepared in a way in which they are not, here.
    """
    lines = [
        f"{USER} {name} {said!r:.80}, the files beside it say {has!r:.80}"
        for name in SAID
        if (said := getattr(user, name)) is not None
        and (has := getattr(beside, name)) is not None
        and said != has
    ]
    _refuse(lines or _unprepared(dataclasses.replace(user, **_same(user, beside))))


def _same(user: Facts, beside: Facts) -> dict[str, None]:
    return {name: None for name in PREPARED if getattr(user, name) == getattr(beside, name)}


def _unprepared(facts: Facts) -> list[str]:
    return [
        f"{USER} {name} {said!r}, images are prepared with {ours[0]} here"
        for name, ours in PREPARED.items()
        if (said := getattr(facts, name)) not in (None, *ours)
    ]


def known_about(facts: Facts, about: About, classes: int) -> About:
    """What a model's file says it was trained on, and what a user says of the rest.

    Raises:
      CheckpointError: these differ, or no model was trained on that.
    """
    names = ("class_names", "mean", "std", "crop_ratio")
    said = {name: getattr(facts, name) for name in names if getattr(facts, name) is not None}
    lines = [
        f"{USER} {name} {value!r:.80}, its file says {has!r:.80}"
        for name, value in said.items()
        if (has := getattr(about, name)) and has != value
    ]
    if facts.class_names and not about.class_names and len(facts.class_names) != classes:
        lines.append(f"{USER} class_names of {len(facts.class_names)} classes, it has {classes}")
    _refuse(lines)
    try:
        return dataclasses.replace(about, **said)
    except ValueError as error:
        raise CheckpointError(f"what is said of the model: {error}") from error


def check_spec(facts: Facts, spec: Spec) -> None:
    """Raises ``CheckpointError`` where what a user says of our own file contradicts it."""
    kind, of = type(spec).__name__.removesuffix("Spec"), _kind(facts.family)
    has: dict[str, Any] = vars(spec) | {
        "rotary": getattr(spec, "rotary", "") or "none",
        "pool": POOLS[getattr(spec, "pool", "norm_average")],
    }
    if not isinstance(spec, ViTSpec):
        has["depth"] = sum(spec.depths)
    if isinstance(spec, SwinSpec):
        has |= {"heads": spec.heads[0], "hidden": spec.hidden[0]}
    claims = vars(facts) | {
        "rotary": facts.rotary and facts.rotary.kind,
        "hidden": _units(facts, getattr(spec, "width", 0)),
        "image_size": facts.image_size and as_size(facts.image_size),
    }
    lines = [
        f"{USER} {name} {value}, its file says {has[name]}"
        for name in COMPARED
        if (value := claims[name]) is not None and value != has.get(name, value)
    ]
    if of not in ("", kind):
        lines.append(f"{USER} family {facts.family}, and it is a {kind}")
    _refuse(lines + _unprepared(facts))


def _refuse(lines: list[str]) -> None:
    if lines:
        raise CheckpointError(
            "what is said of the model is of another one:\n  "
            + "\n  ".join(lines)
            + "\nleave out what is not so, or take the model that is meant"
        )


def _pools(state: State) -> tuple[str, ...]:
    """What the head of a checkpoint may see, in timm's words."""
    if "attn_pool.latent" in state:
        return ("map",)
    averages = "fc_norm.weight" in state or "cls_token" not in state
    return ("avg",) if averages else ("token", "avg")


def _differences(facts: Facts, state: State, source: str) -> list[str]:
    """A line for each fact that arrays in timm's names contradict; ``source`` begins it."""
    lines = _of_its_kind(facts, state, source) + _of_its_head(facts, state, source)
    patches = state.get("patch_embed.proj.weight")
    if patches is None or patches.ndim != 4:
        return lines  # reported with everything else that does not fit
    return lines + _of_its_arrays(facts, state, patches, source)


def _kind(family: str | None) -> str:
    """What kind of model a family's name is of; "": of none that is known."""
    return next((kind for kind, start in KINDS if re.match(start, family or "")), "")


def _of_its_kind(facts: Facts, state: State, source: str) -> list[str]:
    beginnings = {"ViT": "blocks.0.", "Swin": "layers.0.blocks.0.", "RegNet": "s1.b1."}
    there = [kind for kind, start in beginnings.items() if any(n.startswith(start) for n in state)]
    if len(there) != 1:
        return []
    lines, pools = [], _pools(state)
    if there == ["RegNet"] and source == USER:
        lines += [
            f"{source} {name} {value}, and a RegNet has none"
            for name in ATTENTIVE
            if (value := getattr(facts, name)) is not None
        ]
    if _kind(facts.family) not in ("", *there):
        lines.append(f"{source} family {facts.family}, the arrays are a {there[0]}'s")
    if facts.pool is not None and facts.pool not in pools:
        lines.append(f"{source} pool {facts.pool!r}, and its arrays are for {' or '.join(pools)}")
    return lines


def _of_its_head(facts: Facts, state: State, source: str) -> list[str]:
    """A line for each fact that its classifier contradicts."""
    head = next((n for n in ("head.weight", "head.fc.weight") if n in state), "")
    if not head:
        return []
    lines, count = [], len(state[head])
    if facts.class_names and count != len(facts.class_names):
        lines.append(
            f"{source} names of {len(facts.class_names)} classes, the arrays have {count} ({head})"
            "; class_names names them all"
        )
    if facts.classes and count != facts.classes:
        lines.append(f"{source} {facts.classes} classes, the arrays have {count} ({head})")
    return lines


def _of_its_arrays(facts: Facts, state: State, patches: np.ndarray, source: str) -> list[str]:
    """A line for each fact that a transformer's arrays contradict."""
    width, patch = patches.shape[0], patches.shape[2]
    projection = f"patch_embed.proj.weight {list(patches.shape)}"
    pattern = re.compile(r"(layers\.\d+\.)?blocks\.\d+\.")
    depth = len({match[0] for name in state if (match := pattern.match(name))})
    lines = [
        f"{source} {name} {fact}, the arrays {there} ({where})"
        for name, fact, there, where in (
            ("width", facts.width, width, projection),
            ("patch size", facts.patch_size, patch, projection),
            ("depth", facts.depth, depth, "blocks"),
            ("channels", facts.channels, patches.shape[1], projection),
            ("class_token", facts.class_token, "cls_token" in state, "cls_token"),
            ("registers", facts.registers, _tokens(state, "reg_token"), "reg_token"),
            ("hidden units", *_hidden(facts, state, width), "mlp.fc1.weight"),
            ("window", *_window(facts, state)),
            ("qkv_bias", facts.qkv_bias, facts.qkv_bias or _biased(state), "attn.qkv.bias"),
        )
        if fact is not None and fact != there
    ]
    if facts.heads and width % facts.heads:
        lines.append(
            f"{source} {facts.heads} heads, which do not divide the arrays' width of {width}"
            " (patch_embed.proj.weight)"
        )
    positions = state.get("pos_embed")
    if facts.built_for and patch and positions is not None and positions.ndim == 3:
        count = positions.shape[1] - sum(_tokens(state, name) for name in TOKENS)
        if count != math.prod(side // patch for side in sides(facts.built_for)):
            lines.append(
                f"{source} images of {shown(facts.built_for)} pixels, the arrays have positions of"
                f" {count} patches of {patch} (pos_embed)"
            )
    return lines


def _tokens(state: State, name: str) -> int:
    return state[name].shape[1] if name in state and state[name].ndim == 3 else 0


def _window(facts: Facts, state: State) -> tuple[int | None, int, str]:
    """Tokens a side of a Swin's first windows, as said and as its arrays have them; and where."""
    table = "attn.relative_position_bias_table"
    places = len(state.get(f"layers.0.blocks.0.{table}", ()))
    return facts.window if places else None, (math.isqrt(places) + 1) // 2, table


def _biased(state: State) -> bool:
    return any(array.any() for name, array in state.items() if name.endswith("attn.qkv.bias"))


def _hidden(facts: Facts, state: State, width: int) -> tuple[int | None, int]:
    """How many units its first FFN is said to have, and has; of pruned and gated ones nothing."""
    start = "layers.0.blocks.0." if "layers.0.blocks.0.norm2.weight" in state else "blocks.0."
    units = state.get(f"{start}mlp.fc1.weight")
    if units is None or f"{start}attn.qkv.weight" not in state:
        return None, 0
    return _units(facts, width), len(units)


def _units(facts: Facts, width: int) -> int | None:
    return facts.hidden or (int(width * facts.mlp_ratio) if facts.mlp_ratio else None)
