"""Tiny models of every kind that files are written from."""

import dataclasses

import jax
import pytest
from flax import nnx

from spvit_jax.models import RegNet, RegNetSpec, Swin, SwinSpec, ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.narrow import turnable
from spvit_jax.single_path.prune import prune

VIT = ViTSpec(width=24, depth=3, heads=3, hidden=40, patch_size=4, image_size=16, classes=7)
SPECS = {
    "vit": VIT,
    "distilled": dataclasses.replace(VIT, distilled=True),
    "dinov3": dataclasses.replace(
        VIT, registers=2, gated=True, activation="silu", rotary="dinov3", positions=False,
        image_size=(8, 32),
    ),
    "clip": dataclasses.replace(VIT, norm_pre=True, activation="quick_gelu", qk_norm=True),
    "siglip": dataclasses.replace(
        VIT, class_token=False, pool="attention", activation="gelu_tanh", classes=0
    ),
    "patches": dataclasses.replace(VIT, registers=3, patches=True, classes=0, rotary="eva"),
    "grey": dataclasses.replace(VIT, pool="average_norm", channels=1, patches=True),
    "average": dataclasses.replace(
        VIT, pool="norm_average", qk_norm=True, rotary="eva", image_size=(32, 8)
    ),
    "swin": SwinSpec(
        width=16, depths=(2, 2), heads=(2, 4), hidden=(24, 40), window=4, patch_size=2,
        image_size=16, classes=7,
    ),
    "oblong_swin": SwinSpec(  # windows of 4x4 and 2x4, which shift to the right alone
        width=16, depths=(2, 2), heads=(2, 4), hidden=(24, 40), window=4, patch_size=2,
        image_size=(8, 32), classes=7,
    ),
    "regnet": RegNetSpec((16, 32), (1, 2), 8, image_size=16, classes=7),
}  # fmt: skip
KINDS = {ViTSpec: ViT, SwinSpec: Swin, RegNetSpec: RegNet}
UNITS = (0, 3, 5, 8, 39)
PRUNED = Architecture(
    ("msa", "conv3x3", "msa"), (UNITS, (1, 2), tuple(range(40))), heads=((0, 2), (), (1,))
)
MERGED = Architecture(
    ("msa", "skip", "msa"), (UNITS, (1, 2), tuple(range(40))), heads=((0, 2), (), (1,)),
    merges=(5, 3, 0),
)  # fmt: skip
SMALL_SWIN = Architecture(
    ("msa", "conv3x3", "conv1x1", "msa"), ((1, 2), (5,), UNITS, UNITS), heads=((0,), (), (), (1, 3))
)


def narrowed(architecture, spec):
    """With heads of fewer features, keys and values of different numbers of them."""
    dims = tuple(
        (block.head_dim - 2 * turnable(block), block.head_dim - 3) if op == "msa" else ()
        for op, block in zip(architecture.ops, spec.blocks, strict=True)
    )
    return dataclasses.replace(architecture, dims=dims)


@pytest.fixture(scope="session")
def made():
    """Models by the name of a spec, "NAME, pruned", "…, narrow" and "…, merged", each made once.

    Heads of narrow and merged ones have fewer features.
    """
    found = {}

    def make(name):
        if name not in found:
            kind, _, cut = name.partition(", ")
            spec = SPECS[kind]
            model = KINDS[type(spec)](spec, rngs=nnx.Rngs(0))
            if cut:
                small = MERGED if cut == "merged" else SMALL_SWIN if "swin" in kind else PRUNED
                model = prune(model, small if cut == "pruned" else narrowed(small, spec))
            nnx.update(model, jax.tree.map(lambda a: a + 0.01, nnx.state(model, nnx.Param)))
            found[name] = model
        return found[name]

    return make
