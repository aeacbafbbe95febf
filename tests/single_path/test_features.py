"""The error that judges candidates: of what heads see, and of patches, unmerged."""

import dataclasses

import numpy as np
import pytest

from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.features import feature_error
from spvit_jax.single_path.prune import prune
from spvit_jax.single_path.repair import repair, repaired_error
from spvit_jax.sizes import sides


def centred(images):
    return images.astype(float) / 127.5 - 1


def calibration(spec, count=24, seed=0):
    shape = (count, *sides(spec.image_size), 3)
    images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return images, Calibration.of(images, centred, 8)


def cut(spec, merges=()):
    halves = tuple(block.hidden // 2 for block in spec.blocks)
    return Architecture(("msa",) * len(spec.blocks), halves, merges=merges)


def by_hand(mine, theirs):
    variance = np.square(theirs - theirs.mean((0, 1))).sum()
    return np.square(mine - theirs).sum() / variance


@pytest.mark.parametrize("spec", ["vit", "distilled", "average", "swin"], indirect=True)
def test_it_is_that_of_what_the_heads_see(spec, dense):
    whole, (images, judges) = dense(), calibration(spec, 20)  # the last batch is not full
    pruned = prune(whole, cut(spec))
    assert feature_error(whole, whole, judges) == 0
    mine, theirs = (
        np.asarray(m.features(m.stream(centred(images))[-1]), float) for m in (pruned, whole)
    )
    seen = 2 if getattr(spec, "distilled", False) else 1
    assert mine.shape == (20, seen, spec.blocks[-1].width)
    expected = by_hand(mine, theirs)
    assert 0 < feature_error(pruned, whole, judges) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("spec", ["average"], indirect=True)
def test_patches_have_their_share_on_the_whole_grid(spec, dense):
    whole, (images, judges) = dense(), calibration(spec)
    pruned = prune(whole, cut(spec, (4, 3, 0, 0)))
    last = [m.stream(centred(images))[-1] for m in (pruned, whole)]
    assert last[0].x.shape[1] == 9 and last[0].unmerged().shape[1] == 16
    mine, theirs = (np.asarray(whole.norm(x.unmerged()), float) for x in last)
    heads, both = (feature_error(pruned, whole, judges, share) for share in (0.0, 0.25))
    expected = 0.75 * heads + 0.25 * by_hand(mine, theirs)
    assert both == pytest.approx(expected, rel=1e-4) and both != pytest.approx(heads, rel=1e-2)


@pytest.mark.parametrize("spec", ["vit", "average"], indirect=True)
def test_the_error_of_a_trial_is_that_of_the_model_repair_makes(spec, dense):
    whole = dense()
    (_, seen), (_, judges) = calibration(spec, 32), calibration(spec, 16, seed=1)
    for merges in ((), (5, 2, 0, 0)):
        found = dataclasses.replace(cut(spec, merges), heads=((0, 2), (1,), (0, 1, 2), (2,)))
        error = feature_error(repair(whole, whole, seen, found), whole, judges)
        assert repaired_error(whole, seen, judges, found) == pytest.approx(error, rel=1e-3)
