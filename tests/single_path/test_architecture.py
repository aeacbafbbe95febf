"""The JSON form of an architecture: round trip, hand-written, and every way to get it wrong."""

import dataclasses

import numpy as np
import pytest

from spvit_jax.models import ViTSpec
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import (
    Architecture,
    ArchitectureError,
    by_magnitude,
    from_gates,
    from_json,
)

SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=8, patch_size=4, image_size=16, classes=7)
GOOD = Architecture(("conv3x3", "msa"), ((0, 3, 7), ()), "deit_tiny_patch16_224")


def test_json_round_trip():
    assert from_json(GOOD.to_json()) == GOOD
    counted = dataclasses.replace(GOOD, ffn=(5, (1, 2)), model="")
    assert from_json(counted.to_json()) == counted


def test_file_round_trip_leaves_one_file(tmp_path):
    GOOD.save(tmp_path / "architecture.json")
    assert architectures.load(tmp_path / "architecture.json") == GOOD
    assert [file.name for file in tmp_path.iterdir()] == ["architecture.json"]


def test_a_person_writes_widths_and_may_leave_the_model_out():
    found = from_json('{"ops": ["skip", "norm_skip"], "ffn": [8, [2, 5]]}')
    assert found == Architecture(("skip", "norm_skip"), (8, (2, 5)), "")
    assert found.widths == (8, 2)
    found.check(SPEC)


def test_random_architectures_survive_gates_and_json(spec, random_architecture):
    for seed in range(20):
        found = random_architecture(seed)
        assert from_gates(found.gates(spec)) == found
        assert from_json(found.to_json()) == found


def test_gates_are_nested_integers():
    first, second = Architecture(("conv3x3", "norm_skip"), ((0, 3), 2)).gates(SPEC)
    np.testing.assert_array_equal(first.kernel, [1, 1, 0])
    np.testing.assert_array_equal(first.ffn, [1, 0, 0, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(second.kernel, [0, 0, 0])
    np.testing.assert_array_equal(second.ffn, [1, 1, 0, 0, 0, 0, 0, 0])
    assert first.kernel.dtype.kind == first.ffn.dtype.kind == "i"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ops": ("msa",)}, r"ops must name 2 blocks, as the model has; it names 1"),
        ({"ffn": (1, 2, 3)}, r"ffn must name 2 blocks, as the model has; it names 3"),
        ({"ops": ("msa", "conv5x5")}, r"block 1: op must be one of skip.*norm_skip; got 'conv5x5'"),
        ({"ffn": (9, 1)}, r"block 0: FFN units must be a number up to 8,.*got 9"),
        ({"ffn": (1, -1)}, r"block 1: .*got -1"),
        ({"ffn": (1, (0, 8))}, r"block 1: .*ascending indices below it; got \(0, 8\)"),
        ({"ffn": (1, (-1, 2))}, r"block 1: .*got \(-1, 2\)"),
        ({"ffn": ((3, 1), 1)}, r"block 0: .*got \(3, 1\)"),
        ({"ffn": ((1, 1), 1)}, r"block 0: .*got \(1, 1\)"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(change, message):
    wrong = dataclasses.replace(GOOD, **change)
    for use in (wrong.check, wrong.gates, wrong.macs):
        with pytest.raises(ArchitectureError, match=message):
            use(SPEC)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"JSONDecodeError"),
        ('{"ops": ["msa"]}', r"KeyError: 'ffn'"),
        ('["msa"]', r"TypeError"),
        ('{"ops": 3, "ffn": [1]}', r"TypeError"),
        ('{"ops": "msa", "ffn": [1]}', r"ops must be a list"),
        ('{"ops": ["msa"], "ffn": [1.5]}', r"ffn"),
        ('{"ops": ["msa"], "ffn": [true]}', r"ffn"),
        ('{"ops": ["msa"], "ffn": ["12"]}', r"ffn"),
        ('{"ops": ["msa"], "ffn": [[1.5]]}', r"ffn"),
    ],
)
def test_other_json_is_refused_with_an_example(text, message, tmp_path):
    with pytest.raises(ArchitectureError, match=rf'expected JSON like {{"model".*{message}'):
        from_json(text)
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ArchitectureError, match=r"odd\.json: expected JSON like"):
        architectures.load(tmp_path / "odd.json")


def test_a_missing_file_says_where_architectures_come_from(tmp_path):
    with pytest.raises(ArchitectureError, match=r"no architecture at .*none\.json; run a search"):
        architectures.load(tmp_path / "none.json")


def test_the_largest_units_are_kept(spec, dense):
    model = dense()
    block = model.blocks[1].ffn
    into = np.linalg.norm(block.fc1.kernel[...], axis=0)
    out = np.linalg.norm(block.fc2.kernel[...], axis=1)
    largest = sorted(range(into.size), key=lambda u: -into[u] * out[u])[:5]
    assert into.size == out.size == spec.blocks[1].hidden
    given = Architecture(("msa",) * 4, ((1, 2), 5, 0, 48))
    found = by_magnitude(given, model)
    assert found.ffn == ((1, 2), tuple(sorted(largest)), (), tuple(range(48)))
    assert found.widths == given.widths and found.macs(spec) == given.macs(spec)

    block.fc1.kernel[...] *= 3.0  # scale moved between the layers picks the same units
    block.fc2.kernel[...] /= 3.0
    assert by_magnitude(given, model).ffn == found.ffn
