"""The published architectures: exact parameters and MACs of each, shared and folded."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from spvit_jax.models import VARIANTS, ViT
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.cost import class_token_macs
from spvit_jax.single_path.prune import count_parameters, fold, prune

FOLDER = Path(__file__).parents[2] / "configs" / "architectures"
PUBLISHED = {  # model, parameters in shared form, parameters folded, MACs
    "spvit_deit_tiny": ("deit_tiny_patch16_224", 4_873_422, 4_774_808, 1_036_705_536),
    "spvit_deit_small": ("deit_small_patch16_224", 16_116_858, 15_870_724, 3_346_503_936),
    "spvit_deit_base": ("deit_base_patch16_224", 46_207_987, 41_583_639, 8_390_582_784),
    "spvit_deit_base_33": ("deit_base_patch16_224", 62_256_336, 58_320_928, 11_730_751_488),
}


def test_every_file_has_a_row():
    assert {file.stem for file in FOLDER.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name, traced_macs):
    model, shared, folded, macs = PUBLISHED[name]
    found = architectures.load(FOLDER / f"{name}.json")
    spec = VARIANTS[found.model]
    assert found.model == model and found.macs(spec) == macs
    units = tuple(tuple(range(width)) for width in found.widths)  # which ones changes no size
    given = Architecture(found.ops, units)

    def build():
        pruned = prune(ViT(spec, rngs=nnx.Rngs(0)), given)
        return pruned, fold(pruned), fold(pruned, batch_norm=True)

    models = nnx.eval_shape(build)
    assert [count_parameters(m) for m in models[:2]] == [shared, folded]
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    norms = sum(2 * block.width * block.tokens for block in spec.blocks)
    expected = macs - norms + class_token_macs(spec, found.widths)
    assert [traced_macs(m, image) for m in models[1:]] == [expected] * 2
