"""The operations against their definition, and what is drawn against the recipe's."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from spvit_jax.data import randaugment

BICUBIC = Image.Resampling.BICUBIC
FILL = (124, 116, 104)
AMOUNTS = (-1.0, -0.9, -0.35, 0.0, 0.35, 0.9, 1.0)
BY_NAME = {operation.__name__: operation for operation in randaugment.OPERATIONS}


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((40, 30), BICUBIC)


def by_table(function):
    """An operation that maps each value by ``function(value, strength)``."""

    def apply(image, amount):
        table = np.array([function(value, abs(amount)) for value in range(256)], np.uint8)
        return Image.fromarray(table[np.asarray(image)])

    return apply


def kept_bits(value, strength):
    return value // 2 ** (4 + int(strength * 4)) * 2 ** (4 + int(strength * 4))


DEFINITIONS = {
    "autocontrast": lambda image, amount: ImageOps.autocontrast(image),
    "equalize": lambda image, amount: ImageOps.equalize(image),
    "invert": by_table(lambda value, strength: 255 - value),
    "rotate": lambda image, amount: image.rotate(30 * amount, BICUBIC, fillcolor=FILL),
    "posterize": by_table(kept_bits),
    "solarize": by_table(lambda v, strength: 255 - v if v >= 256 - int(256 * strength) else v),
    "solarize_add": by_table(
        lambda v, strength: min(255, v + int(110 * strength)) if v < 128 else v
    ),
    "colour": lambda image, amount: ImageEnhance.Color(image).enhance(1 + 0.9 * amount),
    "contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + 0.9 * amount),
    "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + 0.9 * amount),
    "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * amount),
}
GEOMETRIC = {"shear_x", "shear_y", "translate_x", "translate_y"}


def test_there_are_the_fifteen_increasing_operations():
    assert len(randaugment.OPERATIONS) == 15
    assert set(BY_NAME) == set(DEFINITIONS) | GEOMETRIC


@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("amount", AMOUNTS)
def test_each_operation_is_its_definition(name, amount, image):
    found, expected = BY_NAME[name](image, amount), DEFINITIONS[name](image, amount)
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize(("axis", "name"), [(1, "translate_x"), (0, "translate_y")])
@pytest.mark.parametrize("amount", [-1.0, 0.5, 1.0])
def test_translation_is_a_share_of_the_side(axis, name, amount):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 3), np.uint8)
    found = np.asarray(BY_NAME[name](Image.fromarray(pixels), amount))
    moved = round(0.45 * amount * pixels.shape[axis])  # towards smaller coordinates
    expected = np.broadcast_to(np.array(FILL, np.uint8), pixels.shape).copy()
    length = pixels.shape[axis]
    for place in range(max(0, -moved), min(length, length - moved)):
        where = (slice(None),) * axis
        expected[(*where, place)] = pixels[(*where, place + moved)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("axis", "name"), [(1, "shear_x"), (0, "shear_y")])
@pytest.mark.parametrize("amount", [-1.0, 0.4, 0.9])
def test_shear_moves_each_line_by_its_distance(axis, name, amount):
    along, other = np.meshgrid(np.arange(60), np.arange(60), indexing="xy")  # [y, x]: x and y
    if axis == 0:
        along, other = other, along
    ramp = np.repeat((4 * along)[:, :, None], 3, axis=2).astype(np.uint8)
    found = np.asarray(BY_NAME[name](Image.fromarray(ramp), amount))
    place = along + 0.3 * amount * (other + 0.5)
    inside, outside = (place > 3) & (place < 56), (place < -1) | (place > 60)
    np.testing.assert_allclose(found[inside][:, 0], 4 * place[inside], atol=1.5)
    assert outside.any() and (found[outside] == FILL).all()


@pytest.mark.parametrize(
    "name", sorted(set(BY_NAME) - {"autocontrast", "equalize", "invert", "posterize"})
)
def test_level_zero_changes_nothing(name, image):
    np.testing.assert_array_equal(np.asarray(BY_NAME[name](image, 0.0)), np.asarray(image))


@pytest.mark.parametrize("name", ["posterize", "solarize", "solarize_add"])
def test_what_has_no_direction_ignores_the_sign(name, image):
    np.testing.assert_array_equal(
        np.asarray(BY_NAME[name](image, 0.9)), np.asarray(BY_NAME[name](image, -0.9))
    )


def test_the_recipe_level_keeps_one_bit_and_the_largest_none(image):
    assert set(np.unique(np.asarray(BY_NAME["posterize"](image, 0.9)))) == {0, 128}
    assert not np.asarray(BY_NAME["posterize"](image, 1.0)).any()


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (2, 300)])
@pytest.mark.parametrize("name", BY_NAME)
def test_operations_take_any_size(name, size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    for amount in (-1.0, 0.9):
        made = BY_NAME[name](Image.fromarray(noise), amount)
        assert made.size == size and made.mode == "RGB"


def test_levels_are_normal_clipped_and_of_either_sign():
    rng = np.random.default_rng(0)
    amounts = np.array([randaugment.draw_amount(rng) for _ in range(20_000)])
    levels = 10 * np.abs(amounts)
    largest = levels == 10
    assert 0.018 < largest.mean() < 0.028, "2.3 % of N(9, 0.5) is above 10"
    assert stats.kstest(levels[~largest], stats.truncnorm(-18, 2, 9, 0.5).cdf).pvalue > 1e-3
    assert abs((amounts > 0).mean() - 0.5) < 0.015
    low = np.abs(levels - 9) > 0.5  # the sign does not go with the level
    assert abs((amounts[low] > 0).mean() - 0.5) < 0.03


def test_a_level_below_zero_is_zero(monkeypatch):
    monkeypatch.setattr(randaugment, "LEVEL", -3.0)
    assert abs(randaugment.draw_amount(np.random.default_rng(0))) == 0


def test_two_operations_are_drawn_and_each_applied_half_of_the_time(monkeypatch):
    applied = []
    spies = tuple(
        lambda image, amount, number=number: applied[-1].append(number) or image
        for number in range(15)
    )
    monkeypatch.setattr(randaugment, "OPERATIONS", spies)
    rng = np.random.default_rng(0)
    for _ in range(15_000):
        applied.append([])
        randaugment.rand_augment(None, rng)
    lengths = np.bincount([len(one) for one in applied])
    assert stats.chisquare(lengths, 15_000 * np.array([0.25, 0.5, 0.25])).pvalue > 1e-3
    every = np.bincount([number for one in applied for number in one], minlength=15)
    assert stats.chisquare(every).pvalue > 1e-3
    pairs = [one for one in applied if len(one) == 2]
    twice = sum(first == second for first, second in pairs)
    assert stats.binomtest(twice, len(pairs), 1 / 15).pvalue > 1e-3, "with replacement"


def test_operations_follow_each_other(image, monkeypatch):
    monkeypatch.setattr(randaugment, "PROBABILITY", 1.0)
    monkeypatch.setattr(randaugment, "OPERATIONS", (BY_NAME["invert"],))
    twice = randaugment.rand_augment(image, np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(twice), np.asarray(image))


def test_same_generator_same_image(image):
    first, second = (
        [randaugment.rand_augment(image, rng).tobytes() for _ in range(40)]
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    )
    assert first == second and len(set(first)) > 20
