import dataclasses

import numpy as np
import pytest

from spvit_jax.convert import CheckpointError, blocks, forms, released_from_state, vit
from spvit_jax.convert.facts import Facts
from spvit_jax.convert.tables import revert
from spvit_jax.models import ViTSpec
from spvit_jax.single_path.architecture import Architecture

TINY = ViTSpec(width=24, depth=6, heads=3, hidden=96, patch_size=4, image_size=32, classes=7)
NAMES = vit.block_names(TINY)
OPS = ("msa", "conv3x3", "conv1x1", "norm_skip", "msa", "conv3x3")
WIDTHS = (48, 59, 53, 62, 57, 55)


def blank(spec, form, architecture=None):
    shapes = forms.shapes(forms.build(spec, form, architecture))
    return {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("stem", "form"),
    [
        ("vit_dense_a", "dense"),
        ("vit_distilled_a", "dense"),
        ("deit_a_search", "supernet"),
        ("deit_a_finetune", "shared"),
        ("deit_a_folded", "folded"),
    ],
)
def test_forms_and_specs_are_recognised(released, stem, form):
    state = released(stem)
    assert vit.form_of(state) == form
    depth = 3 if form == "dense" else 6
    expected = dataclasses.replace(TINY, depth=depth, distilled="distilled" in stem)
    assert vit.spec_from_state(state, Facts.of(3 if form == "dense" else 0)) == expected


@pytest.mark.parametrize("stem", ["deit_a_finetune", "deit_a_folded"])
def test_ops_and_widths_of_pruned_checkpoints(released, stem):
    state = released(stem)
    assert blocks.ops_of(state, NAMES) == OPS
    assert blocks.ffn_widths(state, NAMES, 24) == WIDTHS


@pytest.mark.parametrize("zeroed", [("weight", "bias"), ("weight",), ("bias",)])
def test_a_norm_of_zeros_without_attention_is_a_skip(released, zeroed):
    state = released("deit_a_finetune")
    for name in zeroed:
        state[f"blocks.3.norm1.{name}"] *= 0
    found, _ = released_from_state(state)
    skipped = len(zeroed) == 2  # x + bias, or a scaled norm, is none
    assert found.architecture.ops[3] == ("skip" if skipped else "norm_skip")
    assert (found.blocks[3].norm1 is None) == skipped
    if skipped:
        del state["blocks.3.norm1.weight"], state["blocks.3.norm1.bias"]
        assert released_from_state(state)[0].architecture.ops[3] == "skip"


def test_every_form_is_covered_by_its_table():
    architecture = Architecture((*OPS[:3], "skip", *OPS[4:]), WIDTHS)
    for form in ("shared", "folded"):
        arrays = blank(TINY, form, architecture)
        state = revert(vit.table(form, TINY, architecture.ops), arrays)
        assert vit.form_of(state) == form
        assert blocks.ops_of(state, NAMES) == architecture.ops


@pytest.mark.parametrize(
    ("removed", "renamed", "pool", "class_token"),
    [
        ([], {}, "token", True),
        (["cls_token"], {}, "norm_average", False),
        (["cls_token"], {"norm": "fc_norm"}, "average_norm", False),
        ([], {"norm": "fc_norm"}, "average_norm", True),
    ],
)
def test_tokens_and_pooling_are_told_by_names(released, removed, renamed, pool, class_token):
    state = released("vit_dense_a")
    for name in removed:
        del state[name]
    for old, new in renamed.items():
        for part in ("weight", "bias"):
            state[f"{new}.{part}"] = state.pop(f"{old}.{part}")
    if not class_token:
        state["pos_embed"] = state["pos_embed"][:, 1:]
    spec = vit.spec_from_state(state, Facts(heads=3))
    assert (spec.pool, spec.class_token, spec.distilled) == (pool, class_token, False)
    assert spec.image_size == 32
    sources = {name for rule in vit.table("dense", spec) for name in rule.sources}
    assert sources == state.keys()


def test_heads_must_be_said_where_nothing_tells(released):
    with pytest.raises(CheckpointError, match="--heads N"):
        vit.spec_from_state(released("vit_dense_a"))
    with pytest.raises(CheckpointError, match="heads must divide the width"):
        vit.spec_from_state(released("vit_dense_a"), Facts(heads=5))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pos_embed", None, "how its rotary positions turn: give it, --rotary"),
        ("pos_embed", np.zeros((1, 64, 24)), "63 patches, which is no square"),
        ("pos_embed", np.zeros((65, 24)), r"pos_embed is of shape \[65, 24\]"),
        ("patch_embed.proj.weight", np.zeros((24, 48)), "expected an array of 4 axes"),
        ("patch_embed.proj.weight", np.zeros((24, 3, 0, 0)), "no ViT that can be built"),
    ],
)
def test_shapes_of_no_vit_are_named(released, name, value, said):
    state = released("vit_dense_a")
    if value is None:
        del state[name]
    else:
        state[name] = value
    with pytest.raises(CheckpointError, match=said):
        vit.spec_from_state(state, Facts(heads=3))
