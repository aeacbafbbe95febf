"""Times as prices: lines through made-up points, and tables that cannot be used."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax import config
from spvit_jax.models import SwinSpec, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.budget import budgets
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.latency import Table, TableError, Times, described, load, prices
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.prices import cost

SPEC = ViTSpec(width=8, depth=2, heads=4, hidden=6, patch_size=4, image_size=8, classes=3)
FIRST = Times(  # a head costs 3, a unit 0.5; a skip 1, and 2 more before the first unit
    {"skip": 1.0, "conv1x1": 2.0, "conv3x3": 6.0},
    {1: 5.0, 2: 8.0, 4: 14.0},
    {0: 1.0, 2: 4.0, 4: 5.0, 6: 6.0},
)
LAST = Times(  # a 3x3 convolution that is faster than a 1x1 one is noise
    {"skip": 1.0, "conv1x1": 1.5, "conv3x3": 1.25}, {1: 2.0, 4: 5.0}, {0: 1.0, 3: 1.5, 6: 1.8}
)
TABLE = Table(described(SPEC), {"device": "made up", "batch": 1}, 50.0, (FIRST, LAST))
HALF = Times(  # with 3 of 5 tokens; a head costs 1, a unit 0.25
    {"skip": 0.5, "conv1x1": 1.0},
    {1: 3.0, 4: 6.0},
    {0: 0.5, 2: 1.5, 6: 2.5},
    {"skip": 0.5, "msa": 0.25},
)
QUARTER = Times(
    {"skip": 0.25, "conv1x1": 0.75},
    {1: 2.0, 4: 3.5},
    {0: 0.25, 2: 1.0, 6: 1.8},
    {"skip": 0.25, "msa": 0.125},
)
LAST_HALF = Times({"skip": 1.0, "conv1x1": 1.5}, {1: 1.5, 4: 3.0}, {0: 1.0, 3: 1.4, 6: 1.7})
MERGING = dataclasses.replace(
    TABLE,
    blocks=(
        dataclasses.replace(FIRST, merge={"skip": 1.0, "msa": 0.5}, shorter={3: HALF, 2: QUARTER}),
        dataclasses.replace(LAST, shorter={3: LAST_HALF, 2: LAST_HALF}),
    ),
)


NARROWER = dataclasses.replace(  # heads have two features
    TABLE,
    blocks=(
        dataclasses.replace(FIRST, keys={1: 10.0, 2: 14.0}, values={1: 15.0, 2: 14.0}),
        dataclasses.replace(LAST, values={2: 5.0}),
    ),
)


def changed(tmp_path, **fields):
    """The path of a table's file with other fields; None takes one out."""
    values = json.loads(TABLE.to_json()) | fields
    path = tmp_path / "table.json"
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


def merging(**fields):
    """The first block of a table that merges, with other fields."""
    return {"blocks": [MERGING.blocks[0].row() | fields]}


def test_gates_are_priced_by_lines_through_the_times():
    found = prices(TABLE, SPEC, PAPER)
    assert found.unit == "ms" and found.dense == pytest.approx(50)
    first, last = found.blocks
    np.testing.assert_allclose(first["op"], [1, 4, 2 - 6])  # attention without a head takes 2
    np.testing.assert_allclose(first["heads"], [3] * 4)
    np.testing.assert_allclose(first["ffn"], [0.5] * 6)
    np.testing.assert_allclose(last["op"], [0.5, 0, 1 - 1.5], atol=1e-12)
    np.testing.assert_allclose(last["heads"], [1] * 4)
    np.testing.assert_allclose(last["ffn"], [0.1] * 6)
    # What is left of 50: attention and FFN of the first block take 13 and 3, of the last 4 and 0.6.
    assert found.base == pytest.approx(50 - 13 - 3 - 4 - 0.6)


def test_an_architecture_costs_fractions_of_a_millisecond():
    found = prices(TABLE, SPEC, PAPER)
    kept = Architecture(("conv3x3", "msa"), (3, (0, 5)), heads=(0, 3))
    gates = kept.gates(SPEC, PAPER)
    expected = found.base + (5 + 3 * 0.5) + (3 + 2 * 0.1)
    assert cost(found, gates).item() == pytest.approx(expected, rel=1e-12)
    soft = tuple({axis: jnp.asarray(x, jnp.float32) for axis, x in b.items()} for b in gates)
    assert float(cost(found, soft)) == pytest.approx(expected, rel=1e-6)


def test_fewer_operations_are_priced_from_the_same_table():
    found = prices(TABLE, SPEC, ("conv1x1", "msa"))
    np.testing.assert_allclose(
        found.blocks[0]["op"], [0], atol=1e-12
    )  # no head takes 2, as the convolution
    assert found.dense == pytest.approx(50)


def test_nothing_merged_costs_what_it_did():
    for table in (TABLE, MERGING):
        for merges in ((), (0, 0)):
            found, expected = prices(table, SPEC, PAPER, merges), prices(TABLE, SPEC, PAPER)
            assert found.base == expected.base
            for block, other in zip(found.blocks, expected.blocks, strict=True):
                for axis, price in other.items():
                    np.testing.assert_array_equal(block[axis], price)


@pytest.mark.parametrize(
    ("away", "unit", "dense_ffn", "head", "attention"),
    [
        (1, (0.5 + 0.25) / 2, (6 + 2.5) / 2, (1 + 0.5) / 2, 3),  # between 5 and 3 tokens
        (2, 0.25, 2.5, 0.5, 2),
    ],
)
def test_with_fewer_tokens_all_costs_less(away, unit, dense_ffn, head, attention):
    """The first block merges ``away`` of its five tokens, so the last one has fewer."""
    found = prices(MERGING, SPEC, PAPER, (away, 0))
    first, last = found.blocks
    np.testing.assert_allclose(first["ffn"], [unit] * 6)
    np.testing.assert_allclose(first["heads"], [3] * 4)  # all five tokens enter attention
    np.testing.assert_allclose(first["op"], [1, 4, 2 - 6 + 0.5 - 1])  # merging by keys is cheaper
    np.testing.assert_allclose(last["ffn"], [0.1] * 6)  # class tokens are as many as ever
    np.testing.assert_allclose(last["heads"], [head] * 4)
    # Merging behind attention takes 0.5, the first FFN is shorter, and so is the last attention.
    dense = 50 + 0.5 - (6 - dense_ffn) - (4 - attention)
    assert found.dense == pytest.approx(dense)


def deeper(*blocks):
    """A table of a block more, and its spec."""
    spec = dataclasses.replace(SPEC, depth=3)
    return dataclasses.replace(MERGING, model=described(spec), blocks=blocks), spec


def test_below_the_shortest_length_the_line_goes_on_to_0():
    last = MERGING.blocks[1]
    for unit, expected in ((0.35, 0.15), (0.6, 0)):  # 0.25 with three tokens
        four = dataclasses.replace(HALF, ffn={0: 0.75, 2: 2.0, 6: 2 + 4 * unit})
        first = dataclasses.replace(MERGING.blocks[0], shorter={4: four, 3: HALF})
        _, second, _ = prices(*deeper(first, first, last), PAPER, (2, 1, 0)).blocks
        np.testing.assert_allclose(second["ffn"], [expected] * 6, atol=1e-12)


def test_an_architecture_that_merges():
    first, last = MERGING.blocks
    table, spec = deeper(first, first, last)
    kept = Architecture(("msa", "skip", "msa"), (6, 2, 0), heads=(4, 0, 1), merges=(2, 1, 0))
    found = prices(table, spec, PAPER, kept.merges)
    dense = 50 + (0.5 + 2.5 - 6) + (0.25 + 5.5 - 13 + 1.8 - 6) + (2 - 4)
    assert found.dense == pytest.approx(dense)
    # The skip has no keys to merge by: 0.5 and not 0.25. Units are 0.2 and 0.1, a head is 0.5.
    expected = dense - (5.5 - 0.25) - 4 * 0.2 - 3 * 0.5 - 6 * 0.1
    assert cost(found, kept.gates(spec, PAPER)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    "blocks",
    [
        TABLE.blocks,
        (FIRST, MERGING.blocks[1]),
        (MERGING.blocks[0], LAST),
        (dataclasses.replace(MERGING.blocks[0], merge={}), MERGING.blocks[1]),
    ],
)
def test_a_table_without_fewer_tokens_cannot_price_them(blocks):
    table = dataclasses.replace(TABLE, blocks=blocks)
    with pytest.raises(TableError, match="none of merged tokens; .*search.axes=.*'tokens'"):
        prices(table, SPEC, PAPER, (1, 0))
    assert prices(table, SPEC, PAPER, (0, 0)).dense == pytest.approx(50)


def test_heads_of_fewer_features_save_what_was_measured():
    found = prices(NARROWER, SPEC, PAPER, (), ((1, 1), (2, 1)))
    plain = prices(TABLE, SPEC, PAPER)
    np.testing.assert_allclose(found.blocks[0]["heads"], [3 - 4 / 4] * 4)  # values: noise
    np.testing.assert_allclose(found.blocks[1]["heads"], plain.blocks[1]["heads"])
    for block, before in zip(found.blocks, plain.blocks, strict=True):
        np.testing.assert_allclose(block["op"], before["op"])
    assert found.base == pytest.approx(plain.base)


@pytest.mark.parametrize(
    ("spec", "dims", "known"),
    [
        (SPEC, ((1, 2), (2, 2)), False),
        (SPEC, ((2, 1), (2, 2)), False),
        (SPEC, ((2, 2), ()), True),
        (dataclasses.replace(SPEC, qk_norm=True), ((1, 2), (2, 2)), True),  # keys have to be whole
    ],
)
def test_a_table_without_narrower_heads_cannot_price_them(spec, dims, known):
    table = dataclasses.replace(TABLE, model=described(spec))
    if known:
        assert prices(table, spec, PAPER, (), dims).dense == pytest.approx(50)
        return
    with pytest.raises(TableError, match="none of heads of fewer features; .*axes=.*'dims'"):
        prices(table, spec, PAPER, (), dims)


@pytest.mark.parametrize(
    ("heads", "no_head", "head"),
    [
        ({1: 2.0, 2: 4.0, 3: 3.0}, 2, 0.5),  # least squares
        ({1: 4.0, 2: 3.0}, 3.5, 0),  # more heads are not faster
        ({1: 4.0}, 4, 0),
    ],
)
def test_lines(heads, no_head, head):
    times = Times({}, heads, {0: 1.0, 1: 3.0})
    assert times.no_head == pytest.approx(no_head) and times.head == pytest.approx(head)
    assert times.unit == pytest.approx(2)  # of the only one that there is


@pytest.mark.parametrize("table", [TABLE, MERGING, NARROWER])
def test_a_table_is_read_as_it_was_written(table, tmp_path):
    table.save(tmp_path / "table.json")
    assert load(tmp_path / "table.json") == table
    unknown = ("merge", "shorter") if table is NARROWER else ("keys", "values")
    assert not any(f'"{key}"' in table.to_json() for key in unknown)
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]
    assert prices(load(tmp_path / "table.json"), SPEC, PAPER).unit == "ms"


def test_a_budget_of_time_is_a_share_of_the_dense_models(tmp_path):
    (tmp_path / "table.json").symlink_to(tmp_path / "real.json")
    TABLE.save(tmp_path / "table.json")
    assert (tmp_path / "table.json").is_symlink()
    given = config.Budget(latency=f"{tmp_path}/table.json:0.8")
    (held,) = budgets(given, SPEC, PAPER)
    assert held.target == pytest.approx(40) and held.field == "budget.latency"
    gating = Gating.of(config.Search(axes=("op", "heads", "ffn")), given, SPEC)
    rng = np.random.default_rng(0)
    for _ in range(5):
        logits = tuple(
            {axis: rng.normal(size=x.shape) for axis, x in block.items()}
            for block in gating.initial()
        )
        found = gating.project(logits)
        assert cost(held.prices, found.gates(SPEC, PAPER)) <= 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "python -m spvit_jax.prices wrote.*JSONDecodeError"),
        ("[1, 2]", "python -m spvit_jax.prices wrote"),
        ("3", "python -m spvit_jax.prices wrote"),
        ('{"unit": "ms"}', "KeyError: 'version'"),
    ],
)
def test_what_is_no_table_is_refused(text, message, tmp_path):
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(TableError, match=f"table.json: .*{message}.*--output="):
        load(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 2}, "version 2, this code reads 1"),
        ({"dense": None}, "KeyError: 'dense'"),
        ({"dense": float("nan")}, "dense must be milliseconds above 0, got nan"),
        ({"dense": "4"}, "dense must be milliseconds above 0, got 4"),
        ({"blocks": []}, "no block"),
        ({"blocks": {"0": 1}}, "python -m spvit_jax.prices wrote"),
        ({"model": "deit"}, "model must be an object"),
        (
            {"blocks": [{"ops": {"skip": 1e999}, "heads": {"1": 1}, "ffn": {"0": 1, "1": 2}}]},
            "block 0: ops skip must be milliseconds above 0, got inf",
        ),
        ({"blocks": [{"ops": {}, "heads": {"1": -1}, "ffn": {"0": 1}}]}, "block 0: heads 1 .*-1"),
        ({"blocks": [{"ops": {}, "heads": {"one": 1}, "ffn": {"0": 1, "2": 2}}]}, "'one'"),
        ({"blocks": [{"ops": {}, "heads": {"1": 1}, "ffn": {"0": 1}}]}, "block 0: needs times"),
        ({"blocks": [{"ops": {}, "heads": {}, "ffn": {"0": 1, "1": 2}}]}, "block 0: needs times"),
        (merging(merge={"skip": 1}), "block 0: needs times of merging behind skip and behind msa"),
        (merging(merge={"skip": 1, "msa": 0}), "block 0: merge msa must be milliseconds above 0"),
        (merging(shorter={"half": HALF.row()}), "'half'"),
        (merging(shorter={"3": HALF.row() | {"ffn": {}}}), "block 0, 3 tokens: needs times of att"),
        (merging(shorter={"3": HALF.row() | {"heads": {"1": "4"}}}), "3 tokens: heads 1 must .*4"),
        (merging(keys={"1": -1}), "block 0: keys 1 must be milliseconds above 0, got -1"),
        (merging(values={"half": 1.0}), "'half'"),
        (merging(shorter=3), "python -m spvit_jax.prices wrote"),
    ],
)
def test_a_damaged_table_is_refused(fields, message, tmp_path):
    with pytest.raises(TableError, match=message):
        load(changed(tmp_path, **fields))


def test_a_table_that_is_not_there_is_missed(tmp_path):
    with pytest.raises(TableError, match="no table of times at .*none.json; measure it: python -m"):
        load(tmp_path / "none.json")
    with pytest.raises(TableError, match=r"directory; measure it"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (dataclasses.replace(SPEC, image_size=12), "image_size=8, the run's has image_size=12"),
        (dataclasses.replace(SPEC, image_size=(8, 12)), r"image_size=8, .* image_size=\[8, 12\]"),
        (dataclasses.replace(SPEC, depth=1, hidden=9), "depth=2 hidden=6, .* depth=1 hidden=9"),
        (SwinSpec(), "type=ViTSpec .*, the run's has .* type=SwinSpec"),
    ],
)
def test_the_table_of_another_model_is_refused(spec, message):
    with pytest.raises(TableError, match=f"of a model with .*{message}.*; measure it: python -m"):
        prices(TABLE, spec, PAPER)


def test_other_classes_are_no_other_model():
    assert prices(TABLE, dataclasses.replace(SPEC, classes=1000), PAPER).dense == pytest.approx(50)


def test_a_table_without_an_operation_is_refused():
    short = tuple(dataclasses.replace(t, ops={"skip": 1.0}) for t in TABLE.blocks)
    table = dataclasses.replace(TABLE, blocks=short)
    with pytest.raises(TableError, match="has skip besides .* asks for skip, conv1x1, conv3x3"):
        prices(table, SPEC, PAPER)


def test_a_table_of_fewer_blocks_than_its_model_is_refused():
    with pytest.raises(TableError, match="1 blocks, its model has 2"):
        prices(dataclasses.replace(TABLE, blocks=TABLE.blocks[:1]), SPEC, PAPER)
