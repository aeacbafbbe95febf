from pathlib import Path

import numpy as np
import pytest

from spvit_jax.convert import (
    CheckpointError,
    dense_from_state,
    families,
    forms,
    released_from_state,
    vit,
)
from spvit_jax.convert.facts import Facts
from spvit_jax.convert.tables import apply, revert
from spvit_jax.models import MODELS, VARIANTS
from spvit_jax.single_path.prices import count_parameters

MANIFESTS = sorted((Path(__file__).parents[1] / "golden" / "manifests").glob("*.json"))


def test_manifests_are_there():
    assert len(MANIFESTS) == 10


@pytest.mark.parametrize("stem", [path.stem for path in MANIFESTS])
def test_real_checkpoints_convert_name_for_name(manifest, stem):
    state = manifest(stem)
    spec = VARIANTS[stem.removeprefix("timm_").removeprefix("microsoft_")]
    family, same = families.recognise(state)
    assert same.keys() == state.keys()
    assert family is families.FAMILIES[type(spec)]
    assert family.form_of(state) == "dense"
    assert family.spec_from_state(state) == spec
    model = forms.build(spec, "dense")
    table = family.table("dense", spec, (), state)
    arrays = apply(table, state, forms.shapes(model), families.ignored)
    back = {name: value.shape for name, value in revert(table, arrays).items()}
    weights = {n: v.shape for n, v in state.items() if not n.endswith(families.BUFFERS)}
    assert back == weights
    assert len(state) - len(weights) == BUFFERS.get(stem, 0)
    statistics = sum(v.size for n, v in state.items() if "running_" in n)
    assert count_parameters(model) == sum(map(np.prod, weights.values())) - statistics
    assert count_parameters(model) == PARAMETERS[stem.partition("_")[2]]


BUFFERS = {"microsoft_swin_tiny_patch4_window7_224": 12 + 5, "timm_regnety_160": 59}
PARAMETERS = {
    "deit_tiny_patch16_224": 5_717_416,
    "deit_small_patch16_224": 22_050_664,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_patch16_224": 86_567_656,
    "vit_base_patch16_224": 86_567_656,
    "swin_tiny_patch4_window7_224": 28_288_354,
    "swin_small_patch4_window7_224": 49_606_258,
    "swin_base_patch4_window7_224": 87_768_224,
    "regnety_160": 83_590_140,
}


def test_every_kind_of_model_has_a_family():
    assert families.FAMILIES.keys() == MODELS.keys()


@pytest.mark.parametrize(
    "names",
    [
        ("conv1.weight", "layer1.0.conv1.weight"),  # a ResNet
        ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),  # a ConvNeXt
        ("patch_embed.proj.weight", "network.0.weight"),
        (),
    ],
)
def test_foreign_checkpoints_are_told_what_is_known(names):
    state = dict.fromkeys(names, np.zeros(1))
    said = r"(?s)ViT .*Swin.*RegNetY.*{} names: {}".format(len(names), ", ".join(names))
    with pytest.raises(CheckpointError, match=said):
        dense_from_state(state, VARIANTS["deit_tiny_patch16_224"], [])
    with pytest.raises(CheckpointError, match=said):
        released_from_state(state)


def test_swin_v2_is_refused_by_what_it_has(manifest):
    state = manifest("timm_swin_tiny_patch4_window7_224")
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        block = name.removesuffix("relative_position_bias_table")
        del state[name]
        state[f"{block}logit_scale"] = np.zeros((3, 1, 1), np.float32)
        state[f"{block}cpb_mlp.0.weight"] = np.zeros((512, 2), np.float32)
    with pytest.raises(CheckpointError, match=r"(?s)Swin V2.*layers\.0\.blocks\.0\.attn"):
        released_from_state(state)


def test_the_family_has_to_be_the_models(released):
    for stem, variant, said in (
        ("vit_dense_a", "swin_tiny_patch4_window7_224", "wanted is a Swin.* of ViT "),
        ("swin_dense_a", "deit_tiny_patch16_224", "wanted is a ViT.* of Swin"),
        ("regnety_a", "deit_tiny_patch16_224", "wanted is a ViT.* of RegNetY"),
    ):
        with pytest.raises(CheckpointError, match=said):
            dense_from_state(released(stem), VARIANTS[variant], [])


def test_only_buffers_are_ignored():
    for name in ("a.num_batches_tracked", "layers.0.blocks.1.attn_mask", "attn_mask"):
        assert families.ignored(name)
    for name in ("a.running_mean", "attn_mask.weight", "my_attn_mask", "a.index"):
        assert not families.ignored(name)


def test_a_model_reverts_to_what_it_was_made_of(released):
    state = released("vit_dense_a")
    model, _ = released_from_state(state, Facts(heads=3))
    assert families.revert_model(model).keys() == state.keys()
    assert vit.recognises(state)
