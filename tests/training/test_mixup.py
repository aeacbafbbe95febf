"""Erasing and mixing. Run as a program, it writes what both give to a file."""

import math
import os
import subprocess
import sys
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from spvit_jax.training.mixup import mixup_cutmix, random_erasing
from spvit_jax.training.sharding import batch_sharded, make_mesh, replicated

MARK = 9.0  # further out than noise goes
CLASSES = 5

erase = jax.jit(random_erasing)


@cache
def mix(**options):
    """``mixup_cutmix`` with these options, compiled."""
    return jax.jit(partial(mixup_cutmix, classes=CLASSES, **options))


def key(number=0):
    return jax.random.key(number)


def erased(rows, height, width, probability=0.25):
    """Where ``random_erasing`` wrote: bool [rows, height, width]."""
    images = jnp.full((rows, height, width, 2), MARK)
    found = np.asarray(erase(images, key(1), probability)) != MARK
    assert (found == found[..., :1]).all(), "all channels"
    return found[..., 0]


def extents(mask):
    """First, last + 1 and number of the places along an axis that a box covers."""
    return mask.argmax(1), mask.shape[1] - mask[:, ::-1].argmax(1), mask.sum(1)


@cache
def both(count, **options):
    """Images of 1 and of 0, 24 x 24, mixed under ``count`` keys: the first, and all targets."""
    images = jnp.stack([jnp.ones((24, 24, 1)), jnp.zeros((24, 24, 1))])
    mixed = partial(mixup_cutmix, classes=CLASSES, **options)
    every = jax.jit(jax.vmap(mixed, in_axes=(None, None, 0)))
    found, targets = every(images, jnp.array([1, 3]), jax.random.split(key(), count))
    found = np.asarray(found)[..., 0]
    np.testing.assert_allclose(found[:, 0] + found[:, 1], 1, atol=1e-6)
    return found[:, 0], np.asarray(targets)


def share_of(targets, smoothing=0.1):
    """Lambda, from the first row's target of class 1."""
    return (targets[:, 0, 1] - smoothing / CLASSES) / (1 - smoothing)


def is_cut(images):
    return ((images == 0) | (images == 1)).all((1, 2))


def test_erasing_takes_one_box_in_a_quarter_of_the_images():
    mask = erased(4000, 30, 40)
    hit = mask.any((1, 2))
    assert stats.binomtest(int(hit.sum()), 4000, 0.25).pvalue > 1e-3
    for first, last, count in (extents(mask[hit].any(2)), extents(mask[hit].any(1))):
        assert (last - first == count).all()
    covered = mask[hit].any(2).sum(1) * mask[hit].any(1).sum(1)
    np.testing.assert_array_equal(covered, mask[hit].sum((1, 2)))


def test_erased_boxes_have_the_area_aspect_and_place_of_the_definition():
    height, width = 100, 80
    mask = erased(1500, height, width, 1.0)
    top, bottom, down = extents(mask.any(2))
    left, right, across = extents(mask.any(1))
    rng = np.random.default_rng(0)
    area = rng.uniform(0.02, 1 / 3, (40_000, 10)) * height * width
    aspect = np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3), (40_000, 10)))
    high, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (high < height) & (wide < width)
    first = np.arange(40_000), fits.argmax(1)
    high, wide = high[first], wide[first]
    for mine, theirs in ((down * across, high * wide), (down / across, high / wide)):
        assert stats.ks_2samp(mine, theirs).pvalue > 1e-3
    for start, stop, length in ((top, bottom, height), (left, right, width)):
        share = (start + 0.5) / (length - (stop - start) + 1)
        assert stats.kstest(share, "uniform").pvalue > 1e-3
        assert start.min() == 0 and stop.max() == length


def test_what_is_erased_is_normal_noise_and_the_rest_untouched():
    images = jnp.asarray(np.random.default_rng(0).uniform(50, 60, (40, 32, 32, 3)), jnp.float32)
    found = erase(images, key(), 1.0)
    changed = np.asarray(found != images)
    values = np.asarray(found)[changed]
    assert (changed.mean((1, 2, 3)) > 0.01).all() and (changed.mean((1, 2, 3)) < 0.35).all()
    assert stats.kstest(values, "norm").pvalue > 1e-3
    assert len(np.unique(values)) > 0.99 * len(values), "another number for each"


def test_erasing_that_never_happens_changes_nothing():
    assert not erased(50, 32, 32, 0.0).any()


@pytest.mark.parametrize("shape", [(3, 1, 1, 3), (2, 50, 3, 1)])
def test_both_take_any_shape(shape):
    found = erase(jnp.ones(shape), key(), 1.0)
    found, targets = mix()(found, jnp.zeros(shape[0], int), key())
    assert found.shape == shape and np.isfinite(found).all()
    np.testing.assert_allclose(targets.sum(1), 1, rtol=1e-6)


def test_mixup_adds_up_the_reversed_batch():
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(6, 8, 8, 3)), np.array([0, 1, 2, 3, 4, 1])
    found, targets = mix(cutmix=0, smoothing=0)(images, labels, key())
    share = float(targets[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(found, share * images + (1 - share) * images[::-1], atol=1e-5)
    one_hot = np.eye(CLASSES)[labels]
    np.testing.assert_allclose(targets, share * one_hot + (1 - share) * one_hot[::-1], atol=1e-6)


def test_cutmix_pastes_one_box_of_the_reversed_batch_and_lambda_is_what_is_left():
    rng, pasted = np.random.default_rng(0), 0
    images, labels = rng.normal(size=(6, 10, 14, 3)).astype(np.float32), np.arange(6) % CLASSES
    for number in range(20):
        found, targets = mix(mixup=0, smoothing=0)(images, labels, key(number))
        other = np.asarray(found) == images[::-1]
        assert (other | (np.asarray(found) == images)).all()
        box = other.all((0, 3))
        pasted += box.any()
        assert box.sum() == box.any(0).sum() * box.any(1).sum(), "a box"
        one_hot, share = np.eye(CLASSES)[labels], 1 - box.mean()
        expected = share * one_hot + (1 - share) * one_hot[::-1]
        np.testing.assert_allclose(targets, expected, atol=1e-6)
    assert pasted > 15


def test_the_switch_is_even_and_mixup_shares_are_beta():
    images, targets = both(4000)
    cut = is_cut(images)
    assert stats.binomtest(int(cut.sum()), 4000).pvalue > 1e-3
    share = share_of(targets)
    np.testing.assert_allclose(images.mean((1, 2)), share, atol=1e-5)
    assert stats.kstest(share[~cut], stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_the_switch_is_the_probability_of_cutmix():
    images, _ = both(1000, switch=0.2)
    assert stats.binomtest(int(is_cut(images).sum()), 1000, 0.2).pvalue > 1e-3


def reference_cutmix(size, count):
    """Boxes of NumPy's draws: the area left, as a share."""
    rng = np.random.default_rng(0)
    cut = (size * np.sqrt(1 - rng.uniform(size=count))).astype(int)  # Beta(1, 1) is uniform
    sides = []
    for _ in "yx":
        centre = rng.integers(0, size, count)
        sides.append(np.minimum(centre + (cut + 1) // 2, size) - np.maximum(centre - cut // 2, 0))
    return 1 - sides[0] * sides[1] / size**2


def test_cutmix_boxes_are_those_of_the_definition():
    images, targets = both(4000, mixup=0)
    assert is_cut(images).all()
    expected = reference_cutmix(24, 40_000)
    found, expected = ((24**2 * share).round() for share in (share_of(targets), expected))
    assert stats.ks_2samp(found, expected).pvalue > 1e-3
    first, last, side = extents((images == 0).any(2))
    inner = (first > 0) & (last < 24) & (side > 0)
    assert 0.35 < (side[inner] % 2).mean() < 0.65, "odd sides too"
    kept = images.mean(0)  # the middle is pasted over most, alike in all directions
    assert kept[12, 12] < kept[0, 0] - 0.1
    np.testing.assert_allclose(kept, kept.T, atol=0.06)
    np.testing.assert_allclose(kept, kept[::-1], atol=0.08)


def test_targets_are_smoothed_and_sum_to_one():
    _, targets = both(4000)
    np.testing.assert_allclose(targets.sum(2), 1, rtol=1e-5)
    off, on = 0.1 / CLASSES, 1 - 0.1 + 0.1 / CLASSES
    np.testing.assert_allclose(targets[:, :, [0, 2, 4]], off, rtol=1e-5)
    np.testing.assert_allclose(targets[:, :, [1, 3]].sum(2), on + off, rtol=1e-5)


def test_without_mixup_and_cutmix_only_labels_are_smoothed():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 6, 3)))
    found, targets = mix(mixup=0, cutmix=0)(images, jnp.arange(4), key())
    np.testing.assert_array_equal(found, images)
    expected = 0.02 + 0.9 * np.eye(CLASSES)[:4]
    np.testing.assert_allclose(targets, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_types_are_kept(dtype):
    def augmented(images, key):
        return mixup_cutmix(random_erasing(images, key), jnp.arange(4), key, CLASSES)

    with jax.enable_x64(dtype == "float64"):
        images = jax.ShapeDtypeStruct((4, 6, 6, 3), dtype)
        found, targets = jax.eval_shape(augmented, images, key())
    assert found.dtype == dtype
    assert targets.dtype == ("float64" if dtype == "float64" else "float32")


def test_the_key_decides():
    images = np.random.default_rng(0).normal(size=(6, 10, 14, 3)).astype(np.float32)
    labels = np.arange(6) % CLASSES
    for function in (
        lambda k: erase(images, k, 1.0),
        lambda k: mix(cutmix=0, smoothing=0)(images, labels, k)[0],
    ):
        first, again, other = map(function, (key(1), key(1), key(2)))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def on_all_devices():
    """Erased and mixed images and targets of a sharded batch, for keys that cut and mix."""
    mesh = make_mesh()
    rows, everywhere = batch_sharded(mesh), replicated(mesh)
    images = np.random.default_rng(0).normal(size=(16, 12, 12, 3)).astype(np.float32)
    labels = (np.arange(16) % CLASSES).astype(np.int32)

    def augmented(images, labels, key):
        first, second = jax.random.split(key)
        return mixup_cutmix(random_erasing(images, first, 0.5), labels, second, CLASSES)

    shardings = {"in_shardings": (rows, rows, everywhere), "out_shardings": (rows, rows)}
    step = jax.jit(augmented, **shardings)
    step = step.lower(images, labels, key()).compile()
    found = {"gathers": np.array(step.as_text().count("all-gather"))}
    for number in range(4):
        made = step(jax.device_put(images, rows), jax.device_put(labels, rows), key(number))
        assert made[0].sharding.num_devices == jax.device_count()
        found |= {f"{name} {number}": np.asarray(x) for name, x in zip("it", made, strict=True)}
    return found


def test_eight_devices_give_what_one_does(tmp_path):
    settings = {"JAX_NUM_CPU_DEVICES": "8"}
    file = tmp_path / "eight.npz"
    subprocess.run([sys.executable, __file__, file], check=True, env=os.environ | settings)
    alone = on_all_devices()
    with np.load(file) as eight:
        assert eight["devices"] == 8 and eight["gathers"] == 0
        for name, value in alone.items():
            np.testing.assert_allclose(eight[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    shares = [144 * float(alone[f"t {n}"][1, 1] - 0.02) / 0.9 for n in range(4)]
    cut = [math.isclose(share, round(share), abs_tol=1e-2) for share in shares]
    assert 0 < sum(cut) < 4, "of 144 pixels, cutmix leaves a whole number and mixup does not"


if __name__ == "__main__":
    np.savez(sys.argv[1], devices=jax.device_count(), **on_all_devices())
