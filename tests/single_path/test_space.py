"""What a search may choose from: axes, operations in their order, groups of FFN units."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.config import Budget as Budgets
from spvit_jax.config import Search
from spvit_jax.models import Geometry, ViT, ViTSpec
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.space import Space, SpaceError, group_units

BLOCK = Geometry(width=24, heads=3, hidden=48, grid=(4, 4), prefix=1)
SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)
IN_ORDER = r"skip, conv1x1, conv3x3, msa, in this order and with msa"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ops": ("msa", "skip")}, rf"{IN_ORDER}.*got \('msa', 'skip'\)"),
        ({"ops": ("skip", "conv3x3", "conv1x1", "msa")}, IN_ORDER),
        ({"ops": ("skip", "conv5x5", "msa")}, rf"{IN_ORDER}.*conv5x5"),
        ({"ops": ("skip", "skip", "msa")}, IN_ORDER),
        ({"ops": ("skip", "norm_skip", "msa")}, IN_ORDER),  # which no search offers
        ({"ops": ("skip", "conv3x3")}, IN_ORDER),
        ({"ops": ("msa",)}, r"two or more"),
        ({"ops": ()}, r"two or more"),
        ({"axes": ()}, r"axes must be different ones of op, heads, dims, tokens, ffn; got \(\)"),
        ({"axes": ("op", "layers")}, r"got \('op', 'layers'\)"),
        ({"axes": ("tokens",)}, r"got \('tokens',\)"),  # which are merged: nothing is gated
        ({"axes": ("op", "op")}, r"axes must be different ones"),
    ],
)
def test_a_space_that_cannot_be_is_refused(fields, message):
    with pytest.raises(SpaceError, match=message):
        Space((BLOCK,), **fields)
    (field,) = fields
    with pytest.raises(SpaceError, match=rf"search\.{field} must be"):
        Gating.of(Search(**fields), Budgets(macs=0.5), SPEC)


@pytest.mark.parametrize(
    "ops", [("skip", "msa"), ("conv1x1", "msa"), ("conv1x1", "conv3x3", "msa")]
)
def test_any_operations_with_attention_are_a_space(ops):
    space = Space((BLOCK,), ops)
    (block,) = initial_logits(space)
    assert block["op"].shape == (len(ops) - 1,)
    (gates,) = decide(space, ({"op": block["op"].at[-1].set(-1), "ffn": block["ffn"]},))
    assert not gates["heads"].any()


def test_neighbours_share_a_gate_where_there_are_no_weights():
    members = group_units(SPEC, 16)
    assert [block.tolist() for block in members] == [[0] * 16 + [1] * 16 + [2] * 16] * 2
    assert group_units(SPEC, 1) == ()


def test_units_of_like_magnitude_share_a_gate():
    model = ViT(SPEC, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for block in model.blocks:
        block.ffn.fc1.kernel[...] *= jnp.asarray(rng.uniform(0.1, 9, 48), jnp.float32)
    members = group_units(SPEC, 8, model)
    for block, found in zip(model.blocks, members, strict=True):
        into = np.linalg.norm(block.ffn.fc1.kernel[...], axis=0)
        strength = into * np.linalg.norm(block.ffn.fc2.kernel[...], axis=1)
        assert np.bincount(found).tolist() == [8] * 6
        for group in range(5):  # each is stronger than all of the next
            assert strength[found == group].min() > strength[found == group + 1].max()
    assert (members[0] != members[1]).any()


def test_a_group_opens_and_shuts_its_units():
    members = (np.array([2, 0, 1, 0, 2, 1]),)
    space = Space((dataclasses.replace(BLOCK, hidden=6),), axes=("ffn",), members=members)
    (logits,) = initial_logits(space)
    assert {axis: x.shape for axis, x in logits.items()} == {"ffn": (3,)}
    (gates,) = decide(space, ({"ffn": jnp.array([1.0, -1.0, 1.0])},))
    assert gates["ffn"].tolist() == [1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("size", [1, 8, 16])
def test_a_search_with_groups_keeps_whole_groups(size):
    search = Search(unit_group=size, axes=("op", "heads", "ffn"))
    gating = Gating.of(search, Budgets(macs=0.6), SPEC, ViT(SPEC, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    logits = tuple(
        {axis: jnp.asarray(rng.normal(0.3, 1, x.shape), x.dtype) for axis, x in block.items()}
        for block in gating.initial()
    )
    assert [block["ffn"].size for block in logits] == [48 // size] * 2
    for found in (gating.threshold(logits), gating.project(logits)):
        assert sum(found.widths) > 0
        for i, kept in enumerate(found.ffn):
            whole = np.isin(np.arange(48), kept)
            groups = gating.space.members[i] if size > 1 else np.arange(48)
            assert len(kept) % size == 0
            assert all(len(set(whole[groups == group])) == 1 for group in set(groups.tolist()))


def test_a_group_that_does_not_divide_names_its_block():
    with pytest.raises(SpaceError, match=r"search\.unit_group=7 does not divide the 48 .* block 0"):
        group_units(SPEC, 7)
    other = dataclasses.replace(BLOCK, hidden=40)
    spec = type("Spec", (), {"blocks": (BLOCK, other)})
    with pytest.raises(
        SpaceError, match=r"unit_group=16 does not divide the 40 .* block 1; choose"
    ):
        group_units(spec, 16)
    with pytest.raises(SpaceError, match=r"search\.unit_group=9"):
        Gating.of(Search(unit_group=9), Budgets(macs=0.5), SPEC)
