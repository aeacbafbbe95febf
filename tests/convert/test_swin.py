import dataclasses

import numpy as np
import pytest

from spvit_jax.convert import CheckpointError, forms, state_for_torch, swin
from spvit_jax.convert.facts import Facts
from spvit_jax.models import SwinSpec
from spvit_jax.single_path.architecture import Architecture

TINY = SwinSpec(width=16, depths=(2, 2), heads=(2, 4), hidden=(64, 128), image_size=56, classes=7)
SEARCHED = dataclasses.replace(TINY, depths=(2, 4))
OPS = ("msa", "conv1x1", "conv3x3", "msa", "norm_skip", "msa")
WIDTHS = (33, 39, 74, 78, 75, 84)
BIAS = "layers.{}.blocks.{}.attn.relative_position_bias_table"


@pytest.mark.parametrize(
    ("stem", "form", "spec"),
    [
        ("swin_dense_a", "dense", TINY),
        ("swin_timm_a", "dense", TINY),
        ("swin_a_search", "supernet", SEARCHED),
        ("swin_a_finetune", "shared", SEARCHED),
    ],
)
def test_forms_and_specs_are_recognised(released, stem, form, spec):
    state = released(stem)
    assert swin.recognises(state)
    assert swin.form_of(state) == form
    assert swin.spec_from_state(state) == spec


def test_each_convention_has_its_table(released):
    merging = "layers.{}.downsample.reduction.weight"
    for stem, stage, head in (("swin_dense_a", 0, "head"), ("swin_timm_a", 1, "head.fc")):
        state = released(stem)
        found = [rule.sources for rule in swin.table("dense", TINY, (), state)]
        assert {name for names in found for name in names} == state.keys()
        assert (merging.format(stage),) in found
        assert (f"{head}.weight",) in found
    written = [rule.sources for rule in swin.table("dense", TINY)]
    assert (merging.format(1),) in written
    released_names = [rule.sources for rule in swin.table("shared", SEARCHED, OPS)]
    assert (merging.format(0),) in released_names
    assert ("head.weight",) in released_names


def state_of(spec, architecture=None, form=None):
    """A checkpoint of zeros, of a model with that spec."""
    form = form or ("shared" if architecture else "dense")
    model = forms.build(spec, form, architecture)
    shapes = forms.shapes(model)
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    state = state_for_torch(forms.fill(model, zeros))
    return {name: value for name, value in state.items() if not name.endswith("attn_mask")}


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 4, "image_size": 32},
        {"window": 14},  # a second stage of one clipped window
        {"width": 8, "heads": (1, 8), "classes": 3, "patch_size": 2, "image_size": 28},
        {"depths": (1, 2, 3), "heads": (2, 2, 4), "hidden": (10, 20, 30), "image_size": 112},
        {"depths": (2,), "heads": (2,), "hidden": (64,), "image_size": 28},
        {  # windows of 8, 8, 4, 2
            "depths": (1, 1, 1, 1),
            "heads": (1, 1, 1, 1),
            "hidden": (1, 2, 3, 4),
            "window": 8,
            "image_size": 64,
        },
    ],
)
def test_any_size_is_read_from_the_shapes(changes):
    spec = dataclasses.replace(TINY, **changes)
    assert swin.spec_from_state(state_of(spec)) == spec


def test_masks_tell_the_image_size(random_model):
    spec = dataclasses.replace(SEARCHED, image_size=112)
    architecture = Architecture(("conv1x1",) * 6, (5,) * 6)
    model = random_model(spec, "folded", architecture)
    state = state_for_torch(model)
    assert swin.spec_from_state(state) == spec
    bare = {name: value for name, value in state.items() if not name.endswith("attn_mask")}
    assert swin.spec_from_state(bare) == SEARCHED  # windows of 7, as in every published one


def test_pruned_stages_without_attention():
    architecture = Architecture(("msa", "conv1x1", *["conv3x3"] * 3, "norm_skip"), (5,) * 6)
    state = state_of(SEARCHED, architecture)
    assert swin.spec_from_state(state) == SEARCHED
    state = state_of(dataclasses.replace(SEARCHED, window=14), architecture)
    assert swin.spec_from_state(state).image_size == 4 * 14 * 2
    for block in range(3):
        del state[f"layers.1.blocks.{block}.attn.head_probs"]
    assert swin.spec_from_state(state).heads == (2, 4)  # heads as wide as in the other stage
    skips = Architecture(("norm_skip",) * 6, (5,) * 6)
    wide = dataclasses.replace(SEARCHED, width=64, heads=(2, 4), hidden=(256, 512))
    assert swin.spec_from_state(state_of(wide, skips)) == wide  # of 32 features, as published
    assert swin.spec_from_state(state_of(wide, skips), Facts(heads=4)).heads == (4, 8)


def test_hidden_units_of_pruned_stages():
    architecture = Architecture(("msa",) * 6, (1, 2, 3, 200, 4, 5))
    spec = dataclasses.replace(SEARCHED, hidden=(64, 200))
    assert swin.spec_from_state(state_of(spec, architecture)) == spec


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (BIAS.format(0, 0), (5 * 5, 2), r"windows of 3x3 tokens, others for 7x7; expected 7x7"),
        (BIAS.format(1, 0), (5 * 5, 4), r"windows of 7x7 tokens cannot|expected"),
        (BIAS.format(1, 0), (11 * 13, 4), r"layers\.1\.blocks\.0.*143 rows.*square of an odd"),
        (BIAS.format(1, 0), (14 * 14, 4), r"196 rows"),
        (BIAS.format(0, 1), (169,), r"shape \[169\]; expected an array of 2 axes"),
        ("patch_embed.proj.weight", (16, 48), "expected an array of 4 axes"),
        ("patch_embed.proj.weight", (16, 3, 0, 0), "no Swin that can be built"),
        ("layers.1.blocks.0.mlp.fc1.weight", (64,), "expected an array of 2 axes"),
    ],
)
def test_shapes_of_no_swin_are_named(released, name, value, said):
    state = released("swin_dense_a")
    if name == BIAS.format(0, 1):
        del state[BIAS.format(0, 0)]
    state[name] = np.zeros(value, np.float32)
    with pytest.raises(CheckpointError, match=said):
        swin.spec_from_state(state)


def test_released_taps_have_their_centre_first():
    (rule,) = (r for r in swin.table("shared", SEARCHED, OPS) if "head_logits" in r.targets[0]
               and "blocks.1." in r.targets[0])  # fmt: skip
    # (dx, dy) as released: centre, then column by column from the left
    offsets = [(0, 0), (-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]
    (ours,) = rule.pair.forward(np.arange(9.0)[None])
    for released, (dx, dy) in enumerate(offsets):
        assert ours[0, 3 * (dy + 1) + (dx + 1)] == released
