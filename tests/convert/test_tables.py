import numpy as np
import pytest

from spvit_jax.convert import CheckpointError, tables
from spvit_jax.convert.tables import Rule, apply, layer, revert, rule

TABLE = (*layer("fc", "dense", tables.LINEAR), rule("bn.weight", "norm.scale", tables.SAME))
SHAPES = {"dense.kernel": (3, 2), "dense.bias": (2,), "norm.scale": (5,)}


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape)


@pytest.mark.parametrize(
    ("pair", "source"),
    [
        (tables.SAME, [random(4)]),
        (tables.LINEAR, [random(2, 3)]),
        (tables.CONV_1X1, [random(4, 3, 1, 1)]),
        (tables.CONV, [random(4, 2, 3, 3)]),
        (tables.CONV, [random(4, 2, 1, 1)]),
        (tables.patches(3), [random(5, 3, 4, 4)]),
        (tables.QKV, [random(12, 4)]),
        (tables.QKV, [random(12)]),
        (tables.CONV_HWIO, [random(4, 2, 3, 3)]),
        (tables.COLUMN_MAJOR_TAPS, [random(3, 9)]),
        (tables.CENTRE_FIRST_TAPS, [random(3, 9)]),
        (tables.UNBATCHED, [random(1, 6, 4)]),
        (tables.tokens((1,)), [random(1, 1, 4)]),
        (tables.tokens((1, 3)), [random(1, 1, 4), random(1, 3, 4) + 1]),
        (tables.KEYS_VALUES, [random(8, 4)]),
        (tables.KEYS_VALUES, [random(8)]),
        (tables.half_split(2), [random(24, 8)]),
        (tables.half_split(2), [random(24)]),
    ],
    ids=lambda value: value.name if isinstance(value, tables.Pair) else "",
)
def test_every_pair_is_of_inverse_functions(pair, source):
    back = pair.backward(*pair.forward(*source))
    assert len(back) == len(source)
    for found, expected in zip(back, source, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_layouts():
    conv = random(4, 2, 3, 3)
    (kernel,) = tables.CONV.forward(conv)
    assert kernel[1, 3 * 2 + 0, 3] == conv[3, 1, 2, 0]
    (kernel,) = tables.CONV_HWIO.forward(conv)
    assert kernel[2, 0, 1, 3] == conv[3, 1, 2, 0]
    (kernel,) = tables.patches(3).forward(conv[:, [0, 1, 0]])
    assert kernel[(1 * 3 + 2) * 3 + 1, 2] == conv[2, 1, 1, 2]
    qk, v = tables.QKV.forward(np.arange(12))
    assert [*qk, *v] == [*range(12)]
    assert len(v) == 4


def test_released_taps_are_numbered_column_by_column():
    released = np.zeros((1, 9))
    dx, dy = 1, -1  # above and to the right
    released[0, 3 * (dx + 1) + (dy + 1)] = 1
    (ours,) = tables.COLUMN_MAJOR_TAPS.forward(released)
    assert ours[0].argmax() == 3 * (dy + 1) + (dx + 1)


def test_apply_renames_and_ignores():
    state = {
        "fc.weight": random(2, 3),
        "fc.bias": random(2),
        "bn.weight": random(5),
        "n": random(1),
    }
    arrays = apply(TABLE, state, SHAPES, lambda name: name == "n")
    np.testing.assert_array_equal(arrays["dense.kernel"], state["fc.weight"].T)
    assert arrays.keys() == SHAPES.keys()
    state.pop("n")
    assert all((revert(TABLE, arrays)[name] == value).all() for name, value in state.items())


def test_everything_that_does_not_fit_is_reported_at_once():
    state = {"fc.weight": random(2, 4), "bn.weight": random(5), "bn.bias": random(6)}
    with pytest.raises(CheckpointError) as error:
        apply(TABLE, state, SHAPES, lambda name: False)
    for part in (
        "in 3 places",
        "missing fc.bias [2]",
        "unexpected bn.bias [6]",
        "wrong shape fc.weight: the checkpoint has [2, 4], the model needs [2, 3]",
    ):
        assert part in str(error.value)


def test_a_table_that_is_not_one_to_one_is_refused():
    arrays = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match=r"norm\.scale"):
        revert((*TABLE, rule("other", "norm.scale", tables.SAME)), arrays)
    with pytest.raises(ValueError, match="two rules"):
        revert((*TABLE, rule("fc.bias", "x", tables.SAME)), arrays | {"x": np.zeros(2)})
    with pytest.raises(ValueError, match=r"no rule of the table has the target dense\.bias"):
        revert((TABLE[0], TABLE[2]), arrays)


def test_block_numbers_are_filled_in():
    name = Rule(("{block}.a",), ("b.{i}.c", "b.{i}.d"), tables.SAME).at(11, "layers.2.blocks.3")
    assert (name.sources, name.targets) == (("layers.2.blocks.3.a",), ("b.11.c", "b.11.d"))
