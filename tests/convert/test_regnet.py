import dataclasses

import numpy as np
import pytest

from spvit_jax.convert import (
    CheckpointError,
    dense_from_state,
    forms,
    regnet,
    released_from_state,
    state_for_torch,
)
from spvit_jax.models import VARIANTS, RegNetSpec

TINY = RegNetSpec((16, 24, 40, 64), (1, 2, 2, 1), 8, classes=7)


def test_the_spec_is_read_from_the_shapes(released):
    state = released("regnety_a")
    assert regnet.recognises(state)
    assert regnet.form_of(state) == "dense"
    assert regnet.spec_from_state(state) == TINY


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.startswith("regnety_0")])
def test_every_size_is_named_by_its_table(variant):
    spec = VARIANTS[variant]
    shapes = forms.shapes(forms.build(spec, "dense"))
    table = regnet.table("dense", spec)
    targets = [name for rule in table for name in rule.targets]
    assert sorted(targets) == sorted(shapes)
    kept = {  # what the spec is read from, in timm's names
        rule.sources[0]: rule.pair.backward(np.broadcast_to(0, shapes[rule.targets[0]]))[0]
        for rule in table
    }
    assert regnet.spec_from_state(kept) == spec


def test_missing_arrays_are_named(released):
    state = released("regnety_a")
    for name in ("s2.b2.se.fc1.bias", "s1.b1.downsample.conv.weight", "head.fc.bias"):
        del state[name]
    with pytest.raises(CheckpointError) as error:
        released_from_state(state)
    assert "in 3 places" in str(error.value)
    assert "missing s1.b1.downsample.conv.weight [16, 32, 1, 1]" in str(error.value)
    state = released("regnety_a")
    del state["s3.b1.conv1.conv.weight"]
    with pytest.raises(CheckpointError, match=r"s3\.b1\.conv1\.conv\.weight is missing"):
        released_from_state(state)


def test_shapes_of_no_regnet_are_named(released):
    state = released("regnety_a")
    state["s1.b1.conv2.conv.weight"] = np.zeros((16, 7, 3, 3))
    with pytest.raises(CheckpointError, match=r"no RegNetY that can be built.*group width"):
        released_from_state(state)
    state["s1.b1.conv2.conv.weight"] = np.zeros((16, 0, 3, 3))
    with pytest.raises(CheckpointError, match=r"no RegNetY that can be built"):
        released_from_state(state)


def test_another_number_of_classes_and_any_image_size(released):
    spec = dataclasses.replace(TINY, classes=3, image_size=96)
    notes = []
    model = dense_from_state(released("regnety_a"), spec, notes)
    assert len(notes) == 1 and "7 classes with its head.fc, the model 3" in notes[0]
    assert model.spec == spec
    assert state_for_torch(model)["head.fc.weight"].shape == (3, 64)
