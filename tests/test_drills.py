"""The drills themselves, at their smallest: ``python -m tests.drills`` is what they are for."""

import random

import pytest

from tests.drills import damages, small, values


def test_some_values_are_tried(small_model, tmp_path):
    seen = []
    config = small.of(small_model["model.checkpoint"])
    counts, wrong = values.drill(config, tmp_path, 12, 0, lambda *_: seen.append(1))
    assert not wrong and sum(counts.values()) == 12 == len(seen)
    assert counts["refused"] >= 8


@pytest.mark.parametrize("kind", damages.KINDS)
def test_every_kind_of_damage_changes_a_file(tmp_path, kind):
    file = tmp_path / "dense.json"
    file.write_text('{"images": 128, "top1": 0.25}')
    before = file.read_bytes()
    assert damages.damage(file, kind, random.Random(1))
    assert not file.is_file() or file.read_bytes() != before
