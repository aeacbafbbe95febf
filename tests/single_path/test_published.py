"""The published architectures: exact parameters and MACs of each, shared and folded."""

import dataclasses
from pathlib import Path

import pytest
from flax import nnx

from spvit_jax.models import MODELS, VARIANTS
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path import prices
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, prune

FOLDER = Path(__file__).parents[2] / "configs" / "architectures"
PUBLISHED = {  # model, parameters in shared form, folded, MACs as published
    "spvit_deit_tiny": ("deit_tiny_patch16_224", 4_873_422, 4_774_808, 1_036_705_536),
    "spvit_deit_small": ("deit_small_patch16_224", 16_116_858, 15_870_724, 3_346_503_936),
    "spvit_deit_base": ("deit_base_patch16_224", 46_207_987, 41_583_639, 8_390_582_784),
    "spvit_deit_base_33": ("deit_base_patch16_224", 62_256_336, 58_320_928, 11_730_751_488),
    "spvit_swin_tiny": ("swin_tiny_patch4_window7_224", 26_306_263, 26_232_230, 3_334_210_560),
    "spvit_swin_small": ("swin_small_patch4_window7_224", 39_205_671, 38_922_496, 6_143_213_568),
    "spvit_swin_base": ("swin_base_patch4_window7_224", 68_034_286, 67_542_142, 11_392_180_224),
}
MILLIONS = (4.775, 15.871, 41.584, 58.321, 26.232, 38.922, 67.542)  # folded, as published
NORMS_OF_SKIPS = {"spvit_swin_tiny": 576, "spvit_swin_small": 2_496, "spvit_swin_base": 3_328}


def test_every_file_has_a_row():
    assert {file.stem for file in FOLDER.glob("*.json")} == set(PUBLISHED)


def pruned_models(*found):
    """Each architecture of one model, abstract: shared form, folded, without batch norm."""
    spec = VARIANTS[found[0].model]

    def build():
        dense = MODELS[type(spec)](spec, rngs=nnx.Rngs(0))
        for one in found:
            units = tuple(tuple(range(width)) for width in one.widths)  # which changes no size
            pruned = prune(dense, dataclasses.replace(one, ffn=units))
            yield pruned, fold(pruned), fold(pruned, batch_norm=True)

    return nnx.eval_shape(lambda: tuple(build()))


def test_parameters_are_those_of_the_paper():
    assert tuple(round(row[2] / 1e6, 3) for row in PUBLISHED.values()) == MILLIONS


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name, macs_per_image):
    """Released Swin blocks that skip keep a norm: they are ``norm_skip``, ours the true skip."""
    model, shared, folded, macs = PUBLISHED[name]
    found = architectures.load(FOLDER / f"{name}.json")
    spec = VARIANTS[found.model]
    assert found.model == model and "norm_skip" not in found.ops
    ops = tuple(op.replace("skip", "norm_skip") for op in found.ops)
    released = dataclasses.replace(found, ops=ops)
    assert found.published_macs(spec) == released.published_macs(spec) == macs

    theirs, ours = pruned_models(released, found)
    assert [count_parameters(m) for m in theirs[:2]] == [shared, folded]
    norms = sum(2 * b.width for b, op in zip(spec.blocks, found.ops, strict=True) if op == "skip")
    assert norms == NORMS_OF_SKIPS.get(name, 0)
    assert [count_parameters(m) for m in ours[:2]] == [shared - norms, folded - norms]
    for one, (*_, deployed) in ((released, theirs), (found, ours)):
        assert one.price(prices.parameters, spec) == count_parameters(deployed)

    assert released.macs(spec) == found.macs(spec)
    assert [macs_per_image(m) for m in ours] == [found.macs(spec)] * 3
