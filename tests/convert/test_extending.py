"""The family that ``docs/extending.md`` adds: read, run, pruned and kept."""

import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from spvit_jax.convert import CheckpointError, Facts, load, native, save
from spvit_jax.convert.families import FAMILIES, revert_model
from spvit_jax.models import MODELS, ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.single_path.sharing import TEMPERATURES

SIZES = {"width": 16, "depth": 2, "heads": 2, "hidden": 32, "patch_size": 4}
SIZES |= {"image_size": (8, 12), "classes": 5}
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype("f4")


@pytest.fixture
def family(monkeypatch, example):
    """The tables with a family more."""
    module = example("a_family")
    monkeypatch.setitem(MODELS, module.SineSpec, module.Sine)
    monkeypatch.setitem(native.SPECS, "SineSpec", module.SineSpec)
    monkeypatch.setitem(FAMILIES, module.SineSpec, module)
    monkeypatch.setitem(TEMPERATURES, module.SineSpec, 0.01)
    return module


def checkpoint(path):
    """A file in the family's names, and the same numbers as a ViT whose positions are learnt."""
    spec = ViTSpec(class_token=False, pool="norm_average", **SIZES)
    model = ViT(spec, rngs=nnx.Rngs(0))
    named = {
        name.replace("patch_embed.proj", "patches").replace("blocks", "encoder"): value
        for name, value in revert_model(model).items()
        if name != "pos_embed"
    }
    save_file({name: np.ascontiguousarray(v) for name, v in named.items()}, path)
    return model


def test_a_family_is_a_network_and_the_names_of_its_arrays(family, tmp_path):
    learnt = checkpoint(tmp_path / "theirs.safetensors")
    facts = Facts(heads=2, image_size=(8, 12))
    with pytest.raises(CheckpointError, match="--heads"):
        load(tmp_path / "theirs.safetensors")
    model = load(tmp_path / "theirs.safetensors", facts=facts)
    assert model.spec == family.SineSpec(**SIZES)
    learnt.pos_embed = nnx.Param(family.sines((2, 3), 16))
    np.testing.assert_allclose(model(IMAGES), learnt(IMAGES), rtol=1e-4, atol=1e-5)
    assert len(np.unique(family.sines((2, 3), 16), axis=0)) == 6  # every place has its own

    small = fold(prune(model, Architecture(("msa", "conv3x3"), (7, 20))), batch_norm=True)
    save(small, tmp_path / "small.safetensors")
    again = load(tmp_path / "small.safetensors")
    assert type(again) is family.Sine and again.architecture == small.architecture
    np.testing.assert_array_equal(again(IMAGES), small(IMAGES))
    with pytest.raises(CheckpointError, match="a pruned sine ViT"):
        revert_model(small)


def test_it_does_not_take_what_belongs_to_others(family):
    assert not family.recognises(revert_model(ViT(ViTSpec(**SIZES), rngs=nnx.Rngs(0))))
