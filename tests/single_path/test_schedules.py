"""Schedules of merges: how they share, what they save, and which of them are tried."""

import dataclasses
import itertools

import pytest

from spvit_jax.config import Budget
from spvit_jax.models import VARIANTS, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.budget import budgets
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.schedules import SHAPES, saving, schedule, tried

SMALL = VARIANTS["deit_small_patch16_224"]
POOLED = dataclasses.replace(SMALL, class_token=False, pool="norm_average")


def whole(spec, merges):
    depth = len(spec.blocks)
    units = tuple(block.hidden for block in spec.blocks)
    return Architecture(("msa",) * depth, units, merges=merges)


@pytest.mark.parametrize("spec", [SMALL, POOLED])
@pytest.mark.parametrize("total", [0, 1, 60, 130, 195])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_schedule_shares_out_what_there_is(spec, total, shape):
    merges = schedule(spec, shape, total)
    whole(spec, merges).check(spec)
    assert len(merges) == 12 and merges[-1] == 0 and sum(merges) <= total
    if total == 60:
        assert sum(merges) == 60
        steps = [b - a for a, b in itertools.pairwise(merges[:-1])]
        if shape == "constant":
            assert max(merges[:-1]) - min(merges[:-1]) <= 1
        else:  # but for rounding, each a step further
            assert all(-1 <= (step if shape == "rising" else -step) <= 3 for step in steps)
            assert abs(merges[-2] - merges[0]) >= 8


def test_no_block_merges_more_than_half_of_what_is_left():
    spec = ViTSpec(depth=6, patch_size=56)  # 16 patches
    assert schedule(spec, "rising", 15) == (0, 2, 2, 5, 3, 0)
    assert schedule(spec, "falling", 40) == (8, 4, 2, 1, 0, 0)


def pricing(spec, **held):
    return lambda merges: budgets(Budget(**held), spec, PAPER, merges)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_saves_its_part_and_one_merge_less_does_not(shape):
    price = pricing(SMALL, macs=0.7)
    merges = saving(SMALL, shape, 0.5, price)
    (plain,) = price(())
    wanted = 0.5 * (plain.prices.dense - plain.target)
    saved = plain.prices.dense - whole(SMALL, merges).macs(SMALL)
    assert wanted <= saved < 1.1 * wanted
    fewer = schedule(SMALL, shape, sum(merges) - 1)
    assert plain.prices.dense - whole(SMALL, fewer).macs(SMALL) < wanted


def test_parameters_are_left_to_the_rest():
    both = saving(SMALL, "constant", 1.0, pricing(SMALL, macs=0.7, params=0.5))
    assert both == saving(SMALL, "constant", 1.0, pricing(SMALL, macs=0.7))
    assert saving(SMALL, "constant", 1.0, pricing(SMALL, params=0.5)) is None


def test_nothing_is_merged_where_nothing_has_to_be_saved_or_no_schedule_saves_it():
    assert saving(SMALL, "constant", 1.0, pricing(SMALL, macs=1.0)) is None
    assert saving(SMALL, "rising", 1.0, pricing(SMALL, macs=0.2)) is None
    swin = VARIANTS["swin_tiny_patch4_window7_224"]
    assert saving(swin, "constant", 1.0, pricing(swin, macs=0.7)) is None


def trials(errors):
    """Tries by a table of errors: the names that were tried, and what is said of them."""
    names, merges = [], {}

    def trial(name, schedule):
        names.append(name)
        merges[name] = schedule
        return errors[name]

    def find(shape, part):
        return (1 + list(SHAPES).index(shape), round(4 * part))

    found = tried(trial, find)
    assert found == {merges[name]: errors[name] for name in names}
    return names


def test_half_is_tried_first_then_more_or_less_and_then_other_shapes():
    errors = {"nothing merged": 5.0, "constant, half": 4.5, "constant, three quarters": 4.7}
    errors |= {"constant, a quarter": 4.0, "rising, a quarter": 4.0, "falling, a quarter": 6.0}
    assert trials(errors) == list(errors)
    errors = {"nothing merged": 5.0, "constant, half": 4.0, "constant, three quarters": 3.0}
    errors |= {"constant, all": 2.0, "rising, all": 2.0, "falling, all": 2.0}
    assert trials(errors) == list(errors)
    errors = {"nothing merged": 5.0, "constant, half": 4.0, "constant, three quarters": 3.0}
    errors |= {"constant, all": 3.5}
    errors |= {"rising, three quarters": 3.0, "falling, three quarters": 4.0}
    assert trials(errors) == list(errors)


def test_another_shape_that_is_better_is_tried_with_more_and_with_less():
    errors = {"nothing merged": 5.0, "constant, half": 4.5, "constant, three quarters": 4.7}
    errors |= {"constant, a quarter": 4.0, "rising, a quarter": 3.0}
    errors |= {"rising, half": 2.0, "rising, three quarters": 2.5}
    assert trials(errors) == list(errors)
    errors = {"nothing merged": 5.0, "constant, half": 4.0, "constant, three quarters": 4.5}
    errors |= {"constant, a quarter": 4.5, "rising, half": 4.0, "falling, half": 2.0}
    errors |= {"falling, three quarters": 2.5, "falling, a quarter": 3.0}
    assert trials(errors) == list(errors)


def test_where_merging_does_not_help_little_of_it_is_tried():
    errors = {"nothing merged": 1.0, "constant, half": 2.0, "constant, a quarter": 1.5}
    assert trials(errors) == list(errors)


def test_a_shape_that_cannot_save_so_much_makes_room_for_one_that_can():
    limits = {"constant": 0.6, "rising": 0.3, "falling": 0.8}
    seen = []
    found = tried(
        lambda name, merges: seen.append(name) or 1.0 / (1 + sum(merges[:1])),
        lambda shape, part: (round(4 * part), len(shape)) if part < limits[shape] else None,
    )
    assert seen == ["nothing merged", "constant, half", "falling, three quarters"]
    assert list(found) == [(), (2, 8), (3, 7)]
    assert list(tried(lambda name, merges: 1.0, lambda shape, part: None)) == [()]
