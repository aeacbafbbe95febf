"""RegNetY checkpoints: timm's names, those of the teacher DeiT published too."""

import re

from spvit_jax.convert.blocks import classes_of, shape
from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import UNKNOWN, Facts
from spvit_jax.convert.fit import fit_heads
from spvit_jax.convert.tables import CONV_1X1, CONV_HWIO, LINEAR, Rule, batch_norm, layer, rule
from spvit_jax.models import RegNetSpec

KIND = "RegNetY (stem.conv.weight, s1.b1.conv1.conv.weight, …)"


def recognises(state: State) -> bool:
    """Whether a checkpoint looks like a RegNet's."""
    return "stem.conv.weight" in state and any(n.startswith("s1.b1.conv1.") for n in state)


def form_of(state: State) -> str:
    """A RegNet is never searched."""
    return "dense"


def block_names(spec: RegNetSpec) -> tuple[str, ...]:
    """None of its blocks can be searched."""
    return ()


def table(
    form: str, spec: RegNetSpec, ops: tuple[str, ...] = (), names: object = ()
) -> tuple[Rule, ...]:
    """The rules between a checkpoint and our model; see ``families.Family``."""
    rules = [*_convolution("stem", "stem"), *layer("head.fc", "head", LINEAR)]
    for s, depth in enumerate(spec.depths):
        for i in range(depth):
            rules += _block(f"s{s + 1}.b{i + 1}", f"stages.{s}.{i}", first=i == 0)
    return tuple(rules)


def _block(source: str, target: str, first: bool) -> list[Rule]:
    """A block's rules; the first of a stage halves the map, and so projects its shortcut."""
    names = [("conv1", "conv1"), ("conv2", "conv2"), ("conv3", "conv3")]
    if first:
        names.append(("downsample", "shortcut"))
    rules = [r for a, b in names for r in _convolution(f"{source}.{a}", f"{target}.{b}")]
    for name in ("se.fc1", "se.fc2"):
        rules += layer(f"{source}.{name}", f"{target}.{name}", CONV_1X1)
    return rules


def _convolution(source: str, target: str) -> tuple[Rule, ...]:
    kernel = rule(f"{source}.conv.weight", f"{target}.conv.kernel", CONV_HWIO)
    return (kernel, *batch_norm(f"{source}.bn", f"{target}.norm"))


def buffers(spec: RegNetSpec, ops: tuple[str, ...]) -> State:
    """No buffers beside the batch norms'."""
    return {}


def spec_from_state(state: State, facts: Facts = UNKNOWN) -> RegNetSpec:
    """The model a checkpoint is of, by its shapes; without ``facts`` of an image size that is 224.

    Raises:
      CheckpointError: an array is missing, or the shapes are not those of a RegNetY.
    """
    pattern = re.compile(r"s(\d+)\.b(\d+)\.")
    indices = {(int(m[1]), int(m[2])) for name in state if (m := pattern.match(name))}
    stages = range(1, 1 + len({stage for stage, _ in indices}))
    widths = [shape(state, f"s{s}.b1.conv1.conv.weight", 4)[0] for s in stages]
    size = facts.image_size
    try:
        return RegNetSpec(
            widths=tuple(widths),
            depths=tuple(sum(stage == s for stage, _ in indices) for s in stages),
            group=shape(state, "s1.b1.conv2.conv.weight", 4)[1],
            classes=classes_of(state, "head.fc", widths[-1], 1000),
            **({"image_size": size} if size else {}),
        )
    except CheckpointError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"the checkpoint is of no RegNetY that can be built: {error}"
        ) from error


def fit(state: State, spec: RegNetSpec, notes: list[str], facts: Facts = UNKNOWN) -> None:
    """Makes a checkpoint fit another number of classes; any image size will do."""
    fit_heads(state, ("head.fc",), spec.widths[-1], spec.classes, notes)
