"""The picture of merged patches, pixel by pixel."""

import numpy as np
import pytest

from spvit_jax.mosaic import GAP, mosaic


def drawn(image, sources, grid):
    """What is right of the image and the gap."""
    picture = mosaic(image, np.asarray(sources), grid)
    width = image.shape[1]
    assert picture.dtype == np.uint8 and picture.shape == (len(image), 2 * width + GAP, 3)
    np.testing.assert_array_equal(picture[:, :width], image)
    assert (picture[:, width : width + GAP] == 255).all()
    return picture[:, width + GAP :]


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)


def test_a_group_has_its_mean_colour_and_a_line_round_it():
    image = np.zeros((6, 6, 3), np.uint8)  # of 2 x 2 patches, 3 pixels each
    image[:3, :3] = 10, 20, 30  # merged with the one on its right
    image[:3, 3:] = 20, 40, 61
    image[3:, :3] = np.arange(27).reshape(3, 3, 3)  # these two stay alone
    image[3:, 3:] = np.arange(27).reshape(3, 3, 3) + 100
    expected = image.copy()
    expected[:2] = 15, 30, 46  # the mean, and where another group is below half way to white
    expected[2] = 135, 142, 150
    np.testing.assert_array_equal(drawn(image, [7, 7, 2, 5], (2, 2)), expected)


def test_a_map_may_be_wider_than_high():
    image = np.zeros((2, 6, 3), np.uint8)  # one row of 3 patches, 2x2 pixels each
    image[:, :2], image[:, 4:] = 20, 40  # merged with each other
    expected = image.copy()
    expected[:, 0] = expected[:, 5] = 30  # and beside the one between them half way to white
    expected[:, 1] = expected[:, 4] = 142
    np.testing.assert_array_equal(drawn(image, [0, 1, 0], (1, 3)), expected)


def test_patches_of_a_group_need_not_touch_and_light_ones_have_a_dark_line():
    image = np.zeros((9, 9, 3), np.uint8)
    image[:3, :3], image[6:, 6:] = 180, 220
    picture = drawn(image, [0, 1, 2, 3, 4, 5, 6, 7, 0], (3, 3))
    expected = image.copy()
    expected[:3, :3] = expected[6:, 6:] = 200
    expected[2, :3] = expected[:3, 2] = expected[6, 6:] = expected[6:, 6] = 100
    np.testing.assert_array_equal(picture, expected)


def test_where_nothing_is_merged_the_image_stays(image):
    before = image.copy()
    np.testing.assert_array_equal(drawn(image, np.arange(12)[::-1], (2, 6)), image)
    np.testing.assert_array_equal(image, before)


def test_where_all_is_merged_there_is_one_colour_and_no_line(image):
    picture = drawn(image, [3] * 9, (3, 3))
    np.testing.assert_array_equal(picture, np.broadcast_to(picture[0, 0], picture.shape))
    np.testing.assert_allclose(picture[0, 0], image.mean((0, 1)), atol=0.5)


def test_sums_of_large_images_do_not_overflow():
    assert (drawn(np.full((600, 600, 3), 255, np.uint8), [1] * 4, (2, 2)) == 255).all()
