"""Crops, resizes and augmentation of single images."""

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from spvit_jax.config import AUGMENTATIONS
from spvit_jax.data import transforms
from spvit_jax.data.decode import from_array, open_image
from spvit_jax.sizes import sides


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(1, 256, (20, 30, 3), np.uint8)


def test_evaluation_leaves_a_fitting_image_alone(image):
    square = np.ascontiguousarray(image[:, :20])
    result = transforms.eval_transform(from_array(square), image_size=20, crop_ratio=1.0)
    np.testing.assert_array_equal(result, square)


def test_evaluation_resizes_the_short_side_and_crops_the_centre(image):
    image = image[:, :29]  # 28 / 0.875 = 32, and 29 * 32 / 20 = 46.4 is rounded down
    resized = Image.fromarray(image).resize((46, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[2:30, 9:37]
    result = transforms.eval_transform(from_array(image), image_size=28, crop_ratio=0.875)
    np.testing.assert_allclose(result, expected.astype(int), atol=1)  # resampled in one go


def test_evaluation_of_no_square_covers_both_sides_and_crops_the_centre(image):
    image = 64 + image // 2  # so that nothing is clipped between the two passes of a resize
    # 14 / 0.875 = 16 and 42 / 0.875 = 48; of 30x20 pixels the width decides, and 20 becomes 32
    resized = Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC)
    expected = np.asarray(resized)[9:23, 3:45]
    result = transforms.eval_transform(from_array(image), image_size=(14, 42), crop_ratio=0.875)
    np.testing.assert_allclose(result, expected.astype(int), atol=1)


@pytest.mark.parametrize("size", [16, (16, 9), (9, 16)])
@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (7, 50), (500, 40)])
def test_results_always_have_the_size(shape, size):
    image = np.zeros((*shape, 3), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(20):
        made = transforms.train_transform(from_array(image), rng, image_size=size, augment="shift")
        assert made.shape == (*sides(size), 3) and made.dtype == np.uint8
    made = transforms.eval_transform(from_array(image), image_size=size, crop_ratio=0.875)
    assert made.shape == (*sides(size), 3) and made.dtype == np.uint8


def test_training_without_augmentation_still_crops_at_random(image):
    rng = np.random.default_rng(0)
    found = {
        transforms.train_transform(from_array(image), rng, image_size=20, augment="none").tobytes()
        for _ in range(300)
    }
    assert found == {
        np.ascontiguousarray(image[:, left : left + 20]).tobytes() for left in range(11)
    }


def test_flip_gives_both_sides_equally_often(image):
    square, rng = image[:, :20], np.random.default_rng(0)
    made = [
        transforms.train_transform(from_array(square), rng, image_size=20, augment="flip")
        for _ in range(400)
    ]
    flipped = sum(np.array_equal(one, square[:, ::-1]) for one in made)
    assert flipped + sum(np.array_equal(one, square) for one in made) == 400
    assert 150 < flipped < 250


def test_shift_reaches_every_offset_in_both_axes(image):
    square, rng = image[:, :20], np.random.default_rng(0)
    expected = {
        transforms.shifted(side, down, right).tobytes()
        for side in (square, square[:, ::-1])
        for down in range(-2, 3)
        for right in range(-2, 3)
    }
    found = {
        transforms.train_transform(
            from_array(square), rng, image_size=20, augment="shift"
        ).tobytes()
        for _ in range(1000)
    }
    assert len(expected) == 50 and found == expected


def test_shifted_moves_and_fills_with_black(image):
    result = transforms.shifted(image, 2, -1)
    np.testing.assert_array_equal(result[2:, :-1], image[:-2, 1:])
    assert not result[:2].any() and not result[:, -1].any()
    np.testing.assert_array_equal(transforms.shifted(image, 0, 0), image)


def test_same_generator_same_image(image):
    first, second = (
        transforms.train_transform(
            from_array(image), np.random.default_rng(5), image_size=16, augment="shift"
        )
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_every_augmentation_of_the_config_is_one(image, augment):
    rng = np.random.default_rng(0)
    made = transforms.train_transform(from_array(image), rng, image_size=16, augment=augment)
    assert made.shape == (16, 16, 3) and made.dtype == np.uint8
    assert set(AUGMENTATIONS) == {*transforms.SIMPLE, *transforms.PRESETS}


@pytest.fixture
def photo():
    """A real JPEG of 512x600, public domain, that Matplotlib ships."""
    return cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_views_of_a_photograph_differ_and_are_of_it(photo, augment):
    opened, whole = open_image(str(photo), "photo"), np.asarray(Image.open(photo).convert("RGB"))
    views = [
        transforms.train_transform(
            opened, np.random.default_rng(seed), image_size=96, augment=augment
        )
        for seed in range(24)
    ]
    assert all(view.shape == (96, 96, 3) for view in views)
    assert len({view.tobytes() for view in views}) > 12
    assert abs(np.mean(views) - whole.mean()) < 40


def test_a_photograph_is_evaluated_as_torchvision_would(photo):
    width, height = Image.open(photo).size
    resized = Image.open(photo).convert("RGB")
    target = (110 * width // min(width, height), 110 * height // min(width, height))
    resized = resized.resize(target, Image.Resampling.BICUBIC)
    left, top = (round((side - 96) / 2) for side in target)
    expected = np.asarray(resized).astype(int)[top : top + 96, left : left + 96]
    found = transforms.eval_transform(
        open_image(str(photo), "photo"), image_size=96, crop_ratio=0.875
    )
    assert np.abs(found - expected).max() <= 1


def test_unknown_augmentation_is_named(image):
    with pytest.raises(ValueError, match="none, flip, shift, .*; got 'mixup'"):
        transforms.train_transform(
            from_array(image), np.random.default_rng(0), image_size=20, augment="mixup"
        )
