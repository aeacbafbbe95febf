"""Training views against the distributions of their definition."""

import io
import math

import numpy as np
import pytest
from PIL import Image, ImageOps
from scipy import stats

from spvit_jax.data import augment
from spvit_jax.data.decode import from_array, open_image
from spvit_jax.data.errors import DataError
from spvit_jax.data.randaugment import rand_augment
from spvit_jax.sizes import sides

PRESETS = {
    "recipe": augment.recipe_transform,
    "plain": augment.plain,
    "three": augment.three_augment,
}


def noise(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def boxes(size, count=4000):
    rng = np.random.default_rng(1)
    return np.array([augment.random_crop_box(size, rng) for _ in range(count)])


def reference_sizes(width, height, count=40_000):
    """Widths and heights of the first boxes that fit, all tries at once."""
    rng = np.random.default_rng(2)
    area = rng.uniform(0.08, 1, (count, 10)) * width * height
    aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), (count, 10)))
    across, down = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (across <= width) & (down <= height)
    first = np.arange(count), fits.argmax(1)
    return across[first][fits.any(1)], down[first][fits.any(1)]


@pytest.mark.parametrize("size", [(6000, 6000), (5000, 3750), (2000, 6400)])
def test_crops_have_the_area_and_aspect_of_the_definition(size):
    left, top, right, bottom = boxes(size).T
    across, down = right - left, bottom - top
    central = (left == (size[0] - across) // 2) & (top == (size[1] - down) // 2)
    random = ~central  # those that no try fitted are tested below
    wide, high = reference_sizes(*size)
    found = across[random] * down[random], across[random] / down[random]
    for mine, theirs in zip(found, (wide * high, wide / high), strict=True):
        assert stats.ks_2samp(mine, theirs).pvalue > 1e-3
    assert across.min() > 0 and left.min() >= 0 and (right <= size[0]).all()
    assert down.min() > 0 and top.min() >= 0 and (bottom <= size[1]).all()


def test_crops_cover_the_whole_range_where_all_fit():
    left, top, right, bottom = boxes((6000, 6000)).T
    area = (right - left) * (bottom - top) / 6000**2
    aspect = (right - left) / (bottom - top)
    assert 0.08 <= area.min() < 0.09 and 0.97 < area.max() <= 1
    assert 0.749 < aspect.min() < 0.76 and 1.32 < aspect.max() < 1.334
    small = area < 0.5  # these always fit, so nothing is rejected
    assert stats.kstest((area[small] - 0.08) / 0.42, "uniform").pvalue > 1e-3
    logarithm = np.log(aspect[small]) / np.log(4 / 3) / 2 + 0.5
    assert stats.kstest(logarithm, "uniform").pvalue > 1e-3


def test_crops_lie_anywhere():
    size = (6000, 4000)
    left, top, right, bottom = boxes(size).T
    for start, stop, length in ((left, right, size[0]), (top, bottom, size[1])):
        roomy = length - (stop - start) > 500
        share = (start / (length - (stop - start) + 1))[roomy]
        assert stats.kstest(share, "uniform").pvalue > 1e-3


def test_a_crop_reaches_both_borders():
    left, top, right, bottom = boxes((4, 4)).T
    for start, stop in ((left, right), (top, bottom)):
        inner = stop - start == 3
        assert set(start[inner]) == {0, 1}


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((5000, 3), (2498, 0, 2502, 3)),  # 3 * 4/3 = 4 wide
        ((3, 5000), (0, 2498, 3, 2502)),
        ((200, 5), (96, 0, 103, 5)),
        ((5, 200), (0, 96, 5, 103)),
        ((1, 1), (0, 0, 1, 1)),
    ],
)
def test_where_nothing_fits_the_middle_is_taken(size, expected):
    assert {tuple(box) for box in boxes(size, 60)} == {expected}


def test_boxes_are_as_wide_for_their_height_as_what_is_made_of_them():
    rng = np.random.default_rng(1)
    for aspect in (0.25, 4.0):
        found = np.array([augment.random_crop_box((640, 480), rng, aspect) for _ in range(500)])
        ratios = (found[:, 2] - found[:, 0]) / (found[:, 3] - found[:, 1]) / aspect
        assert 0.74 < ratios.min() < 0.78 and 1.28 < ratios.max() < 1.36  # of whole pixels
        assert len(np.unique(found[:, 0])) > 50 < len(np.unique(found[:, 1]))


def test_ten_boxes_are_tried(monkeypatch):
    class Large:  # draws areas that never fit a thin image
        drawn = 0

        def uniform(self, low, high):
            self.drawn += 1
            return high

    rng = Large()
    augment.random_crop_box((200, 5), rng)
    assert rng.drawn == 20


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(1, 1), (5000, 3), (3, 5000), (30, 61), (33, 32), (2, 1)])
def test_views_have_the_size_whatever_the_image(preset, size):
    rng = np.random.default_rng(0)
    for _ in range(6):
        for wanted in (32, (40, 24), (8, 200)):
            made = PRESETS[preset](from_array(noise(*size)), rng, image_size=wanted)
            assert made.shape == (*sides(wanted), 3) and made.dtype == np.uint8
        assert made.flags.c_contiguous and made.flags.writeable


@pytest.mark.parametrize("preset", PRESETS)
def test_same_generator_same_view(preset):
    opened = from_array(noise(40, 30))
    first, second = (
        [PRESETS[preset](opened, rng, image_size=16).tobytes() for _ in range(20)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert first == second and len(set(first)) == 20


@pytest.mark.parametrize("preset", PRESETS)
def test_undecodable_images_are_named(preset):
    stream = io.BytesIO()
    Image.fromarray(noise(80, 60)).save(stream, "JPEG")
    damaged = open_image(stream.getvalue()[:-900], "a/b.jpg")
    with pytest.raises(DataError, match=r"a/b\.jpg"):
        PRESETS[preset](damaged, np.random.default_rng(0), image_size=16)


def test_plain_is_the_crop_flipped_half_of_the_time():
    opened, flipped = from_array(noise(40, 30)), 0
    for seed in range(1200):
        box = augment.random_crop_box(opened.size, np.random.default_rng(seed))
        expected = np.asarray(opened.crop_resized(box, (16, 16)))
        made = augment.plain(opened, np.random.default_rng(seed), image_size=16)
        mirrored = np.array_equal(made, expected[:, ::-1])
        assert mirrored or np.array_equal(made, expected)
        flipped += mirrored
    assert stats.binomtest(flipped, 1200).pvalue > 1e-3


def test_the_recipe_is_plain_and_then_randaugment_without_jitter():
    opened, changed = from_array(noise(40, 30)), 0
    for seed in range(100):
        made = augment.recipe_transform(opened, np.random.default_rng(seed), image_size=16)
        rng = np.random.default_rng(seed)
        plain = augment.plain(opened, rng, image_size=16)
        np.testing.assert_array_equal(made, rand_augment(Image.fromarray(plain), rng))
        changed += not np.array_equal(made, plain)
    assert 55 < changed < 90, "in a quarter neither operation is applied"


def test_three_augment_chooses_evenly(monkeypatch):
    radii, blur = [], augment.ImageFilter.GaussianBlur
    monkeypatch.setattr(augment, "JITTER", 0.0)
    monkeypatch.setattr(
        augment.ImageFilter, "GaussianBlur", lambda radius: radii.append(radius) or blur(radius)
    )
    opened, counts = from_array(noise(20, 20)), np.zeros(3)
    for seed in range(3000):
        made = augment.three_augment(opened, np.random.default_rng(seed), image_size=16)
        view = Image.fromarray(augment.plain(opened, np.random.default_rng(seed), image_size=16))
        expected = (
            ImageOps.grayscale(view).convert("RGB"),
            ImageOps.solarize(view, 128),
            view.filter(blur(radii[-1] if radii else 1)),
        )
        matches = [np.array_equal(made, one) for one in expected]
        assert sum(matches) == 1
        counts += matches
    assert stats.chisquare(counts).pvalue > 1e-3
    assert len(radii) == counts[2]
    assert stats.kstest((np.array(radii) - 0.1) / 1.9, "uniform").pvalue > 1e-3


def test_three_augment_jitters_last(monkeypatch):
    seen = []
    monkeypatch.setattr(
        augment, "colour_jitter", lambda image, rng, amount: seen.append(amount) or image
    )
    augment.three_augment(from_array(noise(20, 20)), np.random.default_rng(0), image_size=16)
    assert seen == [0.3]


def test_jitter_is_three_uniform_factors_in_random_order(monkeypatch):
    orders, factors = [], []
    for name in ("Brightness", "Contrast", "Color"):

        class Spy:
            def __init__(self, image, name=name):
                self.image, self.name = image, name

            def enhance(self, factor):
                orders[-1].append(self.name)
                factors.append(factor)
                return self.image

        monkeypatch.setattr(augment.ImageEnhance, name, Spy)
    rng = np.random.default_rng(0)
    for _ in range(1200):
        orders.append([])
        augment.colour_jitter(None, rng, 0.4)
    _, counts = np.unique([" ".join(order) for order in orders], return_counts=True)
    assert len(counts) == math.factorial(3) and stats.chisquare(counts).pvalue > 1e-3
    assert all(len(set(order)) == 3 for order in orders)
    assert stats.kstest((np.array(factors) - 0.6) / 0.8, "uniform").pvalue > 1e-3


def test_no_jitter_changes_nothing():
    image = Image.fromarray(noise(20, 20))
    made = augment.colour_jitter(image, np.random.default_rng(0), 0.0)
    np.testing.assert_array_equal(np.asarray(made), np.asarray(image))
