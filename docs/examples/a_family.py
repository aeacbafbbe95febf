"""A new family: a ViT with fixed sine positions and averaged patches, and the names of its arrays.

The network is a class, its shape a frozen dataclass; the functions below are what ``convert`` asks
of the module of each family. All of scoring, searching, merging, pruning and repairing then works.
"""

import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from spvit_jax.convert import CheckpointError, blocks
from spvit_jax.convert.facts import UNKNOWN
from spvit_jax.convert.fit import fit_heads
from spvit_jax.convert.tables import LINEAR, SAME, layer, norm, patches
from spvit_jax.models import ViT, ViTSpec

KIND = "a sine ViT (patches.weight, encoder.0.attn.qkv.weight, …)"


@dataclasses.dataclass(frozen=True)
class SineSpec(ViTSpec):
    """The shape of a sine ViT: a ViT's, with other defaults."""

    class_token: bool = False
    pool: str = "norm_average"
    positions: bool = False  # no learnt ones


class Sine(ViT):
    """A ViT whose patches are told apart by sines and cosines of their row and column."""

    def embed(self, images):
        """Embeds images ``[batch, height, width, 3]`` as tokens ``[batch, patches, D]``."""
        return super().embed(images) + sines(self.spec.blocks[0].grid, self.spec.width)


def sines(grid, width):
    """Makes the positions of a map: ``[rows * columns, width]``, a quarter for each of four."""
    rows, columns = jnp.meshgrid(*map(jnp.arange, grid), indexing="ij")
    rates = 10_000.0 ** -jnp.linspace(0, 1, width // 4)
    angles = [place.reshape(-1, 1) * rates for place in (rows, columns)]
    return jnp.concatenate([wave(a) for a in angles for wave in (jnp.sin, jnp.cos)], axis=1)


def recognises(state) -> bool:
    """Whether a checkpoint's names are those of a sine ViT."""
    return "patches.weight" in state and "encoder.0.attn.qkv.weight" in state


def form_of(state) -> str:
    """Names the form: nobody has released a pruned sine ViT in these names."""
    return "dense"


def block_names(spec) -> tuple[str, ...]:
    """Names each block, as a checkpoint does."""
    return tuple(f"encoder.{i}" for i in range(spec.depth))


def table(form, spec, ops=(), names=()) -> tuple:
    """The rules between a checkpoint's arrays and ours; each name stands in one of them.

    Raises:
      CheckpointError: of a pruned model, which has no such names.
    """
    if form != "dense":
        raise CheckpointError("a pruned sine ViT is kept as .safetensors of this package")
    return (
        *layer("patches", "patch_embed", patches(spec.channels)),
        *norm("norm", "norm"),
        *layer("head", "head", LINEAR),
        *blocks.dense(blocks.kinds(SAME), block_names(spec), spec),
    )


def buffers(spec, ops) -> dict[str, Any]:
    """Nothing beside the weights."""
    return {}


def spec_from_state(state, facts=UNKNOWN) -> SineSpec:
    """The shape of a checkpoint's model; heads and image size are not in its arrays.

    Raises:
      CheckpointError: an array is missing, or nobody says how many heads there are.
    """
    width, channels, patch, _ = blocks.shape(state, "patches.weight", 4)
    if not facts.heads:
        raise CheckpointError("the checkpoint does not say how many heads it has: give it, --heads")
    return SineSpec(
        width=width,
        depth=len({m[1] for name in state if (m := re.match(r"encoder\.(\d+)\.", name))}),
        heads=facts.heads,
        hidden=blocks.shape(state, "encoder.0.mlp.fc1.weight", 2)[0],
        patch_size=patch,
        image_size=facts.image_size or 224,
        classes=blocks.shape(state, "head.weight", 2)[0],
        channels=channels,
    )


def fit(state, spec, notes, facts=UNKNOWN) -> None:
    """Makes a checkpoint fit another number of classes; any image size will do."""
    fit_heads(state, ("head",), spec.width, spec.classes, notes)
