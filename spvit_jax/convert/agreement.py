"""Whether what is said of a model agrees with its arrays, or with what its own file says."""

import math
import re

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import CONFIG, Facts
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
    "image_size",
)
TOKENS = ("cls_token", "dist_token", "reg_token")
USER = "it is said to have"


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
    lines, pools = _differences(facts, state, USER), _pools(state)
    if facts.pool is not None and facts.pool not in pools:
        lines.append(f"{USER} pool {facts.pool!r}, and its arrays are for {' or '.join(pools)}")
    _refuse(lines)


def check_spec(facts: Facts, spec: Spec) -> None:
    """Raises ``CheckpointError`` where what a user says of our own file contradicts it."""
    has = vars(spec) | {
        "rotary": getattr(spec, "rotary", "") or "none",
        "pool": POOLS[getattr(spec, "pool", "norm_average")],
    }
    if not isinstance(spec, ViTSpec):
        has["depth"] = sum(spec.depths)
    if isinstance(spec, SwinSpec):
        has["heads"] = spec.heads[0]
    claims = vars(facts) | {
        "rotary": facts.rotary and facts.rotary.kind,
        "image_size": facts.image_size and as_size(facts.image_size),
    }
    lines = [
        f"{USER} {name} {value}, its file says {has[name]}"
        for name in COMPARED
        if (value := claims[name]) is not None and value != has.get(name, value)
    ]
    _refuse(lines)


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
    patches = state.get("patch_embed.proj.weight")
    if patches is None or patches.ndim != 4:
        return []  # reported with everything else that does not fit
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
        )
        if fact is not None and fact != there
    ]
    if facts.heads and width % facts.heads:
        lines.append(
            f"{source} {facts.heads} heads, which do not divide the arrays' width of {width}"
            " (patch_embed.proj.weight)"
        )
    head = state.get("head.weight", state.get("head.fc.weight"))
    if facts.class_names and head is not None and len(head) != len(facts.class_names):
        lines.append(
            f"{source} names of {len(facts.class_names)} classes, the arrays have {len(head)}"
            " (head.weight)"
        )
    if facts.classes and head is not None and len(head) != facts.classes:
        lines.append(f"{source} {facts.classes} classes, the arrays have {len(head)} (head.weight)")
    positions = state.get("pos_embed")
    if facts.built_for and patch and positions is not None and positions.ndim == 3:
        tokens = (state[name].shape[1] for name in TOKENS if name in state)
        count = positions.shape[1] - sum(tokens)
        if count != math.prod(side // patch for side in sides(facts.built_for)):
            lines.append(
                f"{source} images of {shown(facts.built_for)} pixels, the arrays have positions of"
                f" {count} patches of {patch} (pos_embed)"
            )
    return lines
