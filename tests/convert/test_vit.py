import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from spvit_jax.convert import CheckpointError, forms, vit
from spvit_jax.convert.tables import revert
from spvit_jax.models import VARIANTS, ViTSpec
from spvit_jax.single_path.architecture import Architecture

MANIFESTS = sorted((Path(__file__).parents[1] / "golden" / "manifests").glob("*.json"))
TINY = ViTSpec(width=24, depth=6, heads=3, hidden=96, patch_size=4, image_size=32, classes=7)
OPS = ("msa", "conv3x3", "conv1x1", "norm_skip", "msa", "conv3x3")
WIDTHS = (48, 59, 53, 62, 57, 55)


def blank(spec, form, architecture=None):
    shapes = forms.shapes(forms.build(spec, form, architecture))
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_the_table_names_exactly_what_real_checkpoints_hold(path):
    spec = VARIANTS[path.stem.removeprefix("timm_")]
    table = vit.table("dense", ("msa",) * spec.depth, spec.distilled)
    state = revert(table, blank(spec, "dense"))
    manifest = json.loads(path.read_text())
    assert {name: list(value.shape) for name, value in state.items()} == manifest
    assert vit.form_of(state) == "dense"
    assert vit.spec_from_state(state) == spec


def test_manifests_are_there():
    assert len(MANIFESTS) == 5


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
    assert vit.spec_from_state(state, heads=3 if form == "dense" else None) == expected


@pytest.mark.parametrize("stem", ["deit_a_finetune", "deit_a_folded"])
def test_ops_and_widths_of_pruned_checkpoints(released, stem):
    state = released(stem)
    assert vit.ops_of(state) == OPS
    assert vit.ffn_widths(state, 6, 24) == WIDTHS
    del state["blocks.3.norm1.weight"], state["blocks.3.norm1.bias"]
    assert vit.ops_of(state)[3] == "skip"


def test_every_form_is_covered_by_its_table():
    architecture = Architecture((*OPS[:3], "skip", *OPS[4:]), WIDTHS)
    for form in ("shared", "folded"):
        arrays = blank(TINY, form, architecture)
        state = revert(vit.table(form, architecture.ops), arrays)
        assert vit.form_of(state) == form
        assert vit.ops_of(state) == architecture.ops


def test_heads_must_be_said_where_nothing_tells(released):
    with pytest.raises(CheckpointError, match="--heads N"):
        vit.spec_from_state(released("vit_dense_a"))
    with pytest.raises(CheckpointError, match="heads must divide the width"):
        vit.spec_from_state(released("vit_dense_a"), heads=5)


def test_foreign_checkpoints_are_named():
    with pytest.raises(CheckpointError, match=r"expected a DeiT or ViT.*conv1\.weight"):
        vit.form_of({"conv1.weight": np.zeros(1), "layer1.0.conv1.weight": np.zeros(1)})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("pos_embed", None, "pos_embed is missing"),
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
        vit.spec_from_state(state, heads=3)
