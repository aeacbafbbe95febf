"""The JSON form of an architecture: round trip, hand-written, and every way to get it wrong."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.models import ViTSpec
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import (
    Architecture,
    ArchitectureError,
    describe,
    from_gates,
    from_json,
)
from spvit_jax.single_path.ops import OPS, PAPER
from spvit_jax.single_path.prune import prune

SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=8, patch_size=4, image_size=16, classes=7)
GOOD = Architecture(("conv3x3", "msa"), ((0, 3, 7), ()), "deit_tiny_patch16_224")
HEADS = dataclasses.replace(GOOD, heads=((), (0, 2)))


def test_json_round_trip():
    counted = dataclasses.replace(GOOD, ffn=(5, (1, 2)), model="")
    narrow = dataclasses.replace(HEADS, dims=((), (8, 3)))
    for one in (GOOD, HEADS, counted, dataclasses.replace(counted, heads=(0, 2)), narrow):
        assert from_json(one.to_json()) == one
        assert ("dims" in json.loads(one.to_json())) == bool(one.dims)
        assert ("heads" in json.loads(one.to_json())) == bool(one.heads)


def test_file_round_trip_leaves_one_file(tmp_path):
    HEADS.save(tmp_path / "architecture.json")
    assert architectures.load(tmp_path / "architecture.json") == HEADS
    assert [file.name for file in tmp_path.iterdir()] == ["architecture.json"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    HEADS.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert architectures.load(tmp_path / "real.json") == HEADS


def test_a_person_writes_widths_and_may_leave_the_model_and_heads_out():
    found = from_json('{"ops": ["skip", "msa"], "ffn": [8, [2, 5]]}')
    assert found == Architecture(("skip", "msa"), (8, (2, 5)), "")
    assert found.widths == (8, 2) and found.head_counts(SPEC) == (0, 3)
    found.check(SPEC)
    fewer = from_json('{"ops": ["skip", "msa"], "heads": [[], 2], "ffn": [8, [2, 5]]}')
    assert fewer.heads == ((), 2) and fewer.head_counts(SPEC) == (0, 2)
    fewer.check(SPEC)


@pytest.mark.parametrize("spec", ["vit", "swin"], indirect=True)
def test_random_architectures_survive_gates_and_json(spec, random_architecture):
    for seed in range(20):
        found = random_architecture(seed)
        assert any(found.heads)
        for one in (found, dataclasses.replace(found, heads=())):
            assert from_gates(one.gates(spec), tuple(OPS)) == one
            assert from_gates(one.gates(spec, PAPER), PAPER) == one
            assert from_json(one.to_json()) == one


def test_gates_are_nested_integers():
    found = Architecture(("conv3x3", "norm_skip", "msa"), ((0, 3), 2, 8), heads=(0, 0, (0, 2)))
    gates = found.gates(dataclasses.replace(SPEC, depth=3))
    assert list(OPS) == ["skip", "norm_skip", "conv1x1", "conv3x3", "msa"]
    assert [block["op"].tolist() for block in gates] == [[1, 1, 1, 0], [1, 0, 0, 0], [1] * 4]
    assert [block["heads"].tolist() for block in gates] == [[0] * 3, [0] * 3, [1, 0, 1]]
    units = [[1, 0, 0, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0], [1] * 8]
    assert [block["ffn"].tolist() for block in gates] == units
    assert {gate.dtype.kind for block in gates for gate in block.values()} == {"i"}
    (first, _) = GOOD.gates(SPEC, PAPER)
    assert first["op"].tolist() == [1, 1, 0]


def test_all_heads_need_no_entry():
    whole = dataclasses.replace(HEADS, heads=((), (0, 1, 2)))
    assert whole.gates(SPEC)[1]["heads"].tolist() == [1, 1, 1]
    assert from_gates(whole.gates(SPEC), tuple(OPS)) == dataclasses.replace(GOOD, model="")


def test_a_description_names_ops_and_the_heads_that_are_left():
    assert describe(HEADS, SPEC) == "conv3x3 msa:2"
    assert describe(GOOD, SPEC) == "conv3x3 msa"
    narrow = dataclasses.replace(HEADS, dims=((), (8, 3)), merges=(2, 0))
    assert describe(narrow, SPEC) == "conv3x3-2 msa:2x8/3"
    assert "msa:2x8/3|0" in repr(narrow)
    assert describe(dataclasses.replace(HEADS, dims=((), (8, 8))), SPEC) == "conv3x3 msa:2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ops": ("msa",)}, r"ops must name 2 blocks, as the model has; it names 1"),
        ({"ffn": (1, 2, 3)}, r"ffn must name 2 blocks, as the model has; it names 3"),
        ({"heads": (2,)}, r"heads must name 2 blocks, as the model has; it names 1"),
        ({"ops": ("msa", "conv5x5")}, r"block 1: op must be one of skip.*, msa; got 'conv5x5'"),
        ({"ffn": (9, 1)}, r"block 0: FFN units must be a number up to 8,.*got 9"),
        ({"ffn": (1, -1)}, r"block 1: .*got -1"),
        ({"ffn": (1, (0, 8))}, r"block 1: .*ascending indices below it; got \(0, 8\)"),
        ({"ffn": (1, (-1, 2))}, r"block 1: .*got \(-1, 2\)"),
        ({"ffn": ((3, 1), 1)}, r"block 0: .*got \(3, 1\)"),
        ({"ffn": ((1, 1), 1)}, r"block 0: .*got \(1, 1\)"),
        ({"heads": (2, 2)}, r"block 0: conv3x3 has no heads to keep; got 2"),
        ({"heads": ((0,), 2)}, r"block 0: conv3x3 has no heads to keep; got \(0,\)"),
        ({"heads": ((), 0)}, r"block 1: attention needs a head at least; .* write skip as its op"),
        ({"heads": ((), ())}, r"block 1: attention needs a head at least"),
        ({"heads": ((), 4)}, r"block 1: attention heads must be a number up to 3,.*got 4"),
        ({"heads": ((), (0, 3))}, r"block 1: attention heads .*got \(0, 3\)"),
        ({"heads": ((), (2, 0))}, r"block 1: attention heads .*got \(2, 0\)"),
        ({"heads": ((), -1)}, r"block 1: attention heads .*got -1"),
        ({"dims": ((8, 8),)}, r"dims must name 2 blocks, as the model has; it names 1"),
        ({"dims": ((8, 8), (8, 8))}, r"block 0: conv3x3 has no heads, so .* \[\]; got \(8, 8\)"),
        ({"dims": ((), ())}, r"block 1: dims must be two numbers, .* got \(\)"),
        ({"dims": ((), (9, 8))}, r"keys \(up to 8\) and of its values \(up to 8\); got \(9, 8\)"),
        ({"dims": ((), (8, 0))}, r"block 1: dims must be .* got \(8, 0\)"),
        ({"dims": ((), (8, True))}, r"block 1: dims must be .* got \(8, True\)"),
        ({"dims": ((), 8)}, r"block 1: dims must be .* got 8"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(change, message):
    wrong = dataclasses.replace(GOOD, **change)
    for use in (wrong.check, wrong.gates, wrong.macs, wrong.published_macs):
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
        (
            '{"ops": ["msa"], "ffn": [1.5]}',
            r"ffn must hold numbers or lists of indices, got '1\.5'",
        ),
        ('{"ops": ["msa"], "ffn": [true]}', r"ffn must hold"),
        ('{"ops": ["msa"], "ffn": ["12"]}', r"ffn must hold"),
        ('{"ops": ["msa"], "ffn": [[1.5]]}', r"ffn must hold"),
        ('{"ops": ["msa"], "heads": [1.5], "ffn": [1]}', r"heads must hold .*, got '1\.5'"),
        ('{"ops": ["msa"], "heads": [null], "ffn": [1]}', r"heads must hold .*, got 'None'"),
        ('{"ops": ["msa"], "heads": 2, "ffn": [1]}', r"TypeError"),
        ('{"ops": ["msa"], "head": [2], "ffn": [1]}', r"unknown key 'head'"),
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


def test_the_strongest_units_and_heads_are_kept(spec, dense):
    model = dense()
    block, mixer = model.blocks[1].ffn, model.blocks[1].mixer

    def strongest(into, out, count):
        strengths = [np.linalg.norm(i) * np.linalg.norm(o) for i, o in zip(into, out, strict=True)]
        return tuple(sorted(sorted(range(len(strengths)), key=lambda u: -strengths[u])[:count]))

    mixer.out.kernel[...] *= jnp.repeat(jnp.array([1, 0.1, 1]), mixer.out.kernel.shape[0] // 3)[
        :, None
    ]
    units = strongest(block.fc1.kernel[...].T, block.fc2.kernel[...], 5)
    geometry = spec.blocks[1]
    values = mixer.v.kernel[...].reshape(geometry.width, geometry.heads, -1).swapaxes(0, 1)
    heads = strongest(values, mixer.out.kernel[...].reshape(geometry.heads, -1, geometry.width), 2)
    assert heads == (0, 2) and units != tuple(range(5))  # so that others would show

    given = Architecture(("msa",) * 4, ((1, 2), 5, 0, 48), heads=((1,), 2, 1, 3))
    found = prune(model, given).architecture
    assert found.ffn == ((1, 2), units, (), tuple(range(48)))
    assert found.heads[:2] == ((1,), heads)
    assert found.widths == given.widths and found.macs(spec) == given.macs(spec)
    assert found.head_counts(spec) == (1, 2, 1, 3)

    block.fc1.kernel[...] *= 3.0  # scale moved between the layers picks the same units
    block.fc2.kernel[...] /= 3.0
    mixer.v.kernel[...] *= 3.0
    mixer.out.kernel[...] /= 3.0
    assert prune(model, given).architecture == found


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_text_or_without_end_are_named(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(ArchitectureError, match=r"a\.json"):
        architectures.load(tmp_path / "a.json")
