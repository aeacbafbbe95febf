"""What is measured for a table of times is what a search prices."""

import dataclasses
import time
from functools import partial

import jax
import numpy as np
import pytest

from spvit_jax.models import SwinSpec, Tokens, ViTSpec
from spvit_jax.planning.parts import (
    LEAST,
    MIN_TURNS,
    WARM_UP,
    alternate,
    built,
    distinct,
    parts_of,
    table,
)
from spvit_jax.single_path.axes import AXES
from spvit_jax.single_path.latency import TableError, prices
from spvit_jax.single_path.ops import OPS, PAPER

VIT = ViTSpec(width=24, depth=3, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)
SWIN = SwinSpec(
    width=12, depths=(2, 2), heads=(3, 4), hidden=(50, 48), window=2, patch_size=2, image_size=16
)


@pytest.mark.parametrize("spec", [VIT, SWIN], ids=["vit", "swin"])
def test_a_part_computes_what_its_gates_are_priced_for(spec, traced_macs):
    found = distinct(spec, PAPER)
    for part, block in zip(found, built(spec, found), strict=True):
        geometry = part.geometry
        expected = OPS[part.op].macs(geometry)
        expected += AXES["heads"].macs(geometry, PAPER)[: part.heads].sum()
        expected += AXES["ffn"].macs(geometry, PAPER)[: part.ffn].sum()
        x = jax.ShapeDtypeStruct((1, geometry.tokens, geometry.width), np.float32)
        assert traced_macs(block, Tokens(x)) == expected, part


def test_parts_are_shared_by_what_does_not_differ():
    vit, swin = (distinct(spec, PAPER) for spec in (VIT, SWIN))
    per_block = 3 + 3 + 4  # skip and two convolutions; 1, 2, 3 heads; units besides none
    assert len(vit) == 2 * per_block  # all blocks but the last are alike
    shifted = 3 + 4  # heads of the second block of each stage, which shifts its windows
    assert len(swin) == per_block + (3 + 4 + 4) + shifted
    assert max(part.heads for part in swin) == 4 and max(part.ffn for part in swin) == 50


def test_calls_take_turns():
    order = []

    def call(name):
        time.sleep(LEAST)  # a shorter one is called several times a turn
        order.append(name)
        return np.zeros(1)

    calls = [partial(call, name) for name in "abc"]
    times = alternate(calls, 0.0)
    assert times.shape == (MIN_TURNS, 3) and (times > 0).all()
    turns = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(turns) == WARM_UP + 1 + MIN_TURNS  # one to see how long each lasts
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 1  # none always follows the same one


def test_a_table_explains_the_dense_models_time():
    """The empty model takes 2, the dense one 10; both turns slow all alike, but for a straggler."""
    by_part = [4 * (1 + 2 * (p.op == "msa") + p.heads + p.ffn / 48) for p in distinct(VIT, PAPER)]
    turn = np.array([10.0, 2.0, *by_part])
    times = np.stack([turn, 2 * turn, 3 * turn])
    times[0, 5] = 99
    found = table(VIT, PAPER, times, {"batch": 1})
    assert found.dense == 20 and found.about["batch"] == 1 and found.about["turns"] == 3
    # Attention and FFN of each of the three blocks take 6 more than none, times 2, of those 16.
    assert found.about["scale"] == pytest.approx(16 / (3 * 6 * 2), rel=1e-5)
    priced, head = prices(found, VIT, PAPER), 16 / (3 * 6)
    assert priced.dense == pytest.approx(20) and priced.base == pytest.approx(4, rel=1e-4)
    for block in priced.blocks:
        np.testing.assert_allclose(block["op"], [0, 0, 2 * head], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(block["heads"], [head] * 3, rtol=1e-5)
        np.testing.assert_allclose(block["ffn"], [head / 48] * 48, rtol=1e-5)


def test_a_dense_model_as_fast_as_an_empty_one_is_noise():
    times = np.ones((5, 2 + len(distinct(VIT, PAPER))))
    with pytest.raises(TableError, match="busy with something else.*more --seconds"):
        table(VIT, PAPER, times, {})


def test_a_few_steps_reach_from_the_least_to_all():
    geometry = dataclasses.replace(VIT.blocks[0], heads=12, width=96, hidden=1536)
    found = parts_of(geometry, ("conv1x1", "msa"))
    assert list(found.ops) == ["conv1x1"]
    assert list(found.heads) == [1, 5, 8, 12] and list(found.ffn) == [0, 384, 768, 1152, 1536]
    few = parts_of(dataclasses.replace(geometry, heads=1, hidden=1), PAPER)
    assert list(few.heads) == [1] and list(few.ffn) == [0, 1]
