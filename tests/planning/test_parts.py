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
    NOTHING,
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

VIT = ViTSpec(width=24, depth=3, heads=3, hidden=48, patch_size=4, image_size=(8, 32), classes=7)
SWIN = SwinSpec(
    width=12,
    depths=(2, 2),
    heads=(3, 4),
    hidden=(50, 48),
    window=2,
    patch_size=2,
    image_size=(8, 32),
)


@pytest.mark.parametrize("axes", [(), ("dims", "tokens")])
@pytest.mark.parametrize("spec", [VIT, SWIN], ids=["vit", "swin"])
def test_a_part_computes_what_its_gates_are_priced_for(spec, axes, traced_macs):
    found = distinct(spec, PAPER, axes)
    for part, block in zip(found, built(spec, found), strict=True):
        keys, values = part.dims or (0, 0)
        fewer = {"merges": part.tokens, "keys": keys, "values": values}
        geometry = dataclasses.replace(part.geometry, **fewer)
        expected = OPS[part.op].macs(geometry) + OPS[part.op].merging(geometry)
        expected += AXES["heads"].macs(geometry, PAPER)[: part.heads].sum()
        expected += AXES["ffn"].macs(geometry, PAPER)[: part.ffn].sum()
        x, sizes = (
            jax.ShapeDtypeStruct((1, geometry.tokens, *features), np.float32)
            for features in ((geometry.width,), ())
        )
        tokens = Tokens(x, sizes if geometry.merged else None)
        assert traced_macs(block, tokens) == expected, part


def test_parts_are_shared_by_what_does_not_differ():
    vit, swin = (distinct(spec, PAPER) for spec in (VIT, SWIN))
    per_block = 3 + 3 + 4  # skip and two convolutions; 1, 2, 3 heads; units besides none
    assert len(vit) == 2 * per_block  # all blocks but the last are alike
    shifted = 3 + 4  # heads of the second block of each stage, which shifts its windows
    assert len(swin) == per_block + (3 + 4 + 4) + shifted
    assert max(part.heads for part in swin) == 4 and max(part.ffn for part in swin) == 50


def test_where_tokens_may_be_merged_fewer_are_measured_too():
    first, last = (parts_of(VIT.blocks[i], PAPER, ("tokens",)) for i in (0, -1))
    for found in (first, last):
        plain = parts_of(found.heads[1].geometry, PAPER)
        assert found._replace(merge={}, shorter={}) == plain and not plain.merge
        assert list(found.shorter) == [9, 5]  # a class token, and a half or a quarter of 16 patches
        for tokens, fewer in found.shorter.items():
            assert {part.geometry.tokens for part in fewer.every()} == {tokens}
            assert list(fewer.ops) == ["skip", "conv1x1"]  # no map for 3x3
            assert list(fewer.heads) == [1, 3] and list(fewer.ffn) == [0, 24, 48]
    counts = [{op: part.tokens for op, part in p.merge.items()} for p in (first, last)]
    assert counts == [{"skip": 2, "msa": 2}, {}]  # only class tokens leave the last block
    assert [f.merge["msa"].tokens for f in first.shorter.values()] == [1, 1]
    assert distinct(SWIN, PAPER, ("tokens",)) == distinct(SWIN, PAPER)
    lone = dataclasses.replace(VIT.blocks[0], grid=(1, 1))
    assert parts_of(lone, PAPER, ("tokens",)) == parts_of(lone, PAPER)


@pytest.mark.parametrize("turning", [True, False])
def test_heads_of_fewer_features_are_measured(turning):
    block = dataclasses.replace(VIT.blocks[0], qk_norm=not turning)
    found, plain = (parts_of(block, PAPER, axes) for axes in (("dims", "tokens"), ("tokens",)))
    for part, fewest in ((found, [2, 4, 6, 8]), *((f, [2, 8]) for f in found.shorter.values())):
        assert list(part.values) == fewest and list(part.keys) == (fewest if turning else [])
        assert [p.dims for p in part.values.values()] == [*((8, n) for n in fewest[:-1]), ()]
        assert [p.dims for p in part.keys.values()][:-1] == [(n, 8) for n in part.keys][:-1]
        assert part.values[8] == part.heads[3]  # which is measured once
    shorter = {n: f._replace(keys={}, values={}) for n, f in found.shorter.items()}
    assert found._replace(keys={}, values={}, shorter=shorter) == plain


def test_a_table_of_narrower_heads():
    """A third of a head's time is by its keys, a third by its values."""
    axes = ("dims", "tokens")
    found = distinct(VIT, PAPER, axes)
    by_part = []
    for p in found:
        keys, values = p.dims or (8, 8)
        head = (1 + keys / 8 + values / 8) / 3
        by_part.append(4 * p.geometry.tokens * (1 + 2 * (p.op == "msa") + p.heads * head))
    timed = table(VIT, PAPER, np.array([[17 * 18.0, 17 * 3, *by_part]]), {"batch": 1}, axes)
    assert timed.about["scale"] == 1 and timed.narrower
    dims = ((8, 8), (4, 8), (5, 2))
    alike, narrower = (prices(timed, VIT, PAPER, (), d) for d in ((), dims))
    assert alike.dense == pytest.approx(17 * 18)
    for block, (keys, values) in zip(narrower.blocks, dims, strict=True):
        head = 17 * (1 + keys / 8 + values / 8) / 3
        np.testing.assert_allclose(block["heads"], [head] * 3, rtol=1e-5)
        np.testing.assert_allclose(block["op"], [0, 0, 17 * 2], rtol=1e-5, atol=1e-5)
    assert narrower.base == pytest.approx(alike.base)
    merging = prices(timed, VIT, PAPER, (4, 2, 0), dims)
    for block, tokens, (keys, values) in zip(merging.blocks, (17, 13, 11), dims, strict=True):
        head = tokens * (1 + keys / 8 + values / 8) / 3
        np.testing.assert_allclose(block["heads"], [head] * 3, rtol=1e-5)


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


def test_a_table_of_fewer_tokens():
    """All is linear in the tokens; merging takes 0.2, or behind attention less than nothing."""
    found = distinct(VIT, PAPER, ("tokens",))
    by_part = [
        4 * p.geometry.tokens * (1 + 2 * (p.op == "msa") + p.heads + p.ffn / 48)
        + 0.8 * (p.tokens > 0) * (1 if p.op == "skip" else -1)
        for p in found
    ]
    timed = table(VIT, PAPER, np.array([[400.0, 94.0, *by_part]]), {"batch": 1}, ("tokens",))
    assert timed.about["scale"] == 1  # 3 blocks of 6 times 17 tokens
    plain = [ms for p, ms in zip(found, by_part, strict=True) if p in distinct(VIT, PAPER)]
    alone = table(VIT, PAPER, np.array([[400.0, 94.0, *plain]]), {"batch": 1})
    without = [dataclasses.replace(t, merge={}, shorter={}) for t in timed.blocks]
    assert list(alone.blocks) == without
    first, _, last = timed.blocks
    assert first.merge["skip"] == pytest.approx(0.2) and first.merge["msa"] == NOTHING
    assert first.shorter[9].merge["skip"] == pytest.approx(0.2) and not last.merge
    for times in (first, last):
        for tokens, fewer in times.shorter.items():
            assert fewer.ffn == {0: tokens, 24: 1.5 * tokens, 48: 2 * tokens}
            assert fewer.heads == {1: 4 * tokens, 3: 6 * tokens}
    fewer = prices(timed, VIT, PAPER, (4, 2, 0))
    # Attention adds 5 a token to each block, the FFN 1 and an empty block 1, of the last to all 17.
    saved = 5 * (4 + 6) + 2 * (4 + 6) - 2 * NOTHING
    assert fewer.dense == pytest.approx(400 - saved, rel=1e-6)


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
