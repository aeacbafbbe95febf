"""Sub-split syntax."""

import itertools

import pytest
import tensorflow_datasets as tfds

from spvit_jax.data import splits
from spvit_jax.data.errors import DataError


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train", (0, 1003)),
        ("train[500:]", (500, 1003)),
        ("train[:-3]", (0, 1000)),
        ("train[10:20]", (10, 20)),
        ("train[:90%]", (0, 903)),
        ("train[-10%:]", (903, 1003)),
    ],
)
def test_bounds(spec, expected):
    assert splits.bounds(spec, 1003) == expected
    assert splits.parse(spec).split_name == "train"


@pytest.mark.parametrize("length", [1, 7, 99, 1003])
@pytest.mark.parametrize("at", ["1%", "33%", "50%", "90%", "99%"])
def test_two_sides_of_a_cut_are_disjoint_and_complete(length, at):
    sides = []
    for spec in (f"train[:{at}]", f"train[{at}:]"):
        try:
            sides += range(*splits.bounds(spec, length))
        except DataError as error:
            assert "is empty" in str(error)
    assert sides == list(range(length))


@pytest.mark.parametrize(
    "spec", ["", "a+b", "all", "train[", "train[3]", "train[1shard:]", "t[x:]"]
)
def test_other_syntax_is_refused(spec):
    with pytest.raises(DataError, match="cannot read the split.*such as train"):
        splits.bounds(spec, 10)


def test_out_of_range_and_empty_are_refused():
    with pytest.raises(DataError, match=r"split 'train\[20:\]' of 10 images"):
        splits.bounds("train[20:]", 10)
    with pytest.raises(DataError, match=r"split 'train\[5:5\]' of 10 images is empty"):
        splits.bounds("train[5:5]", 10)


def as_tfds_has_it(spec, length):
    """The bounds that TFDS finds; None where it refuses, or nothing lies between them."""
    try:
        instruction = tfds.core.ReadInstruction.from_spec(spec)
        name = instruction.split_name
        info = tfds.core.SplitInfo(
            name=name, shard_lengths=[length], num_bytes=0, filename_template=None
        )
        (found,) = instruction.to_absolute({name: info})
    except ValueError:
        return None
    start, stop = found.from_ or 0, length if found.to is None else found.to
    return (start, stop) if start < stop else None


@pytest.mark.parametrize("unit", ["", "%"])
@pytest.mark.parametrize("length", [1, 2, 7, 99, 1003])
def test_bounds_are_those_of_tfds(length, unit):
    ends = ["", *(f"{at}{unit}" for at in (-1003, -100, -50, -3, -1, 0, 1, 2, 33, 50, 99, 100))]
    for spec in (f"train[{a}:{b}]" for a, b in itertools.product(ends, ends) if a or b):
        try:
            found = splits.bounds(spec, length)
        except DataError:
            found = None
        assert found == as_tfds_has_it(spec, length), spec
    assert splits.bounds("train[:0.5%]", 1003) == as_tfds_has_it("train[:0.5%]", 1003) == (0, 5)
