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


def changed(tmp_path, **fields):
    """The path of a table's file with other fields; None takes one out."""
    values = json.loads(TABLE.to_json()) | fields
    path = tmp_path / "table.json"
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return path


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


def test_a_table_is_read_as_it_was_written(tmp_path):
    TABLE.save(tmp_path / "table.json")
    assert load(tmp_path / "table.json") == TABLE
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]
    assert prices(load(tmp_path / "table.json"), SPEC, PAPER).unit == "ms"


def test_a_budget_of_time_is_a_share_of_the_dense_models(tmp_path):
    TABLE.save(tmp_path / "table.json")
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
