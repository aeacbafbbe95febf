"""The error that judges candidates: of what heads see, and of patches, unmerged."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import MODELS, SwinSpec, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.features import feature_error
from spvit_jax.single_path.prune import prune
from spvit_jax.single_path.repair import repair, repaired_error

VIT = ViTSpec(width=24, depth=3, heads=3, hidden=40, patch_size=4, image_size=16, classes=7)
SPECS = {
    "token": VIT,
    "distilled": dataclasses.replace(VIT, distilled=True),
    "average": dataclasses.replace(VIT, pool="average_norm"),
    "swin": SwinSpec(
        width=12,
        depths=(2, 2),
        heads=(3, 4),
        hidden=(48, 56),
        window=2,
        patch_size=2,
        image_size=16,
    ),
}


def centred(images):
    return images.astype(float) / 127.5 - 1


def calibration(count=24, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return images, Calibration.of(images, centred, 8)


def build(spec):
    return MODELS[type(spec)](spec, rngs=nnx.Rngs(0))


def cut(spec, merges=()):
    halves = tuple(block.hidden // 2 for block in spec.blocks)
    return Architecture(("msa",) * len(spec.blocks), halves, merges=merges)


def by_hand(mine, theirs):
    variance = np.square(theirs - theirs.mean((0, 1))).sum()
    return np.square(mine - theirs).sum() / variance


@pytest.mark.parametrize("name", SPECS)
def test_it_is_that_of_what_the_heads_see(name):
    dense, (images, judges) = build(SPECS[name]), calibration(20)  # the last batch is not full
    pruned = prune(dense, cut(SPECS[name]))
    assert feature_error(dense, dense, judges) == 0
    mine, theirs = (
        np.asarray(m.features(m.stream(centred(images))[-1]), float) for m in (pruned, dense)
    )
    assert mine.shape == (20, 2 if name == "distilled" else 1, SPECS[name].blocks[-1].width)
    expected = by_hand(mine, theirs)
    assert 0 < feature_error(pruned, dense, judges) == pytest.approx(expected, rel=1e-4)


def test_patches_have_their_share_on_the_whole_grid():
    spec = SPECS["average"]
    dense, (images, judges) = build(spec), calibration()
    pruned = prune(dense, cut(spec, (4, 3, 0)))
    last = [m.stream(centred(images))[-1] for m in (pruned, dense)]
    assert last[0].x.shape[1] == 10 and last[0].unmerged().shape[1] == 17
    mine, theirs = (np.asarray(dense.norm(x.unmerged())[:, 1:], float) for x in last)
    heads, both = (feature_error(pruned, dense, judges, share) for share in (0.0, 0.25))
    expected = 0.75 * heads + 0.25 * by_hand(mine, theirs)
    assert both == pytest.approx(expected, rel=1e-4) and both != pytest.approx(heads, rel=1e-2)


@pytest.mark.parametrize("name", ["token", "average"])
def test_the_error_of_a_trial_is_that_of_the_model_repair_makes(name):
    spec = SPECS[name]
    dense, (_, seen), (_, judges) = build(spec), calibration(32), calibration(16, seed=1)
    for merges in ((), (5, 2, 0)):
        found = cut(spec, merges)
        found = dataclasses.replace(found, heads=((0, 2), (1,), (0, 1, 2)))
        whole = feature_error(repair(dense, dense, seen, found), dense, judges)
        assert repaired_error(dense, seen, judges, found) == pytest.approx(whole, rel=1e-3)
