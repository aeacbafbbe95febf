import numpy as np
import pytest

from spvit_jax.data.errors import DataError
from spvit_jax.data.fingerprint import fingerprint
from spvit_jax.data.sources import ArraySource

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8)
LABELS = np.arange(40) % 3
NAMES = ("ant", "bee", "cat")


def test_a_copy_has_the_same():
    assert fingerprint(ArraySource(IMAGES, LABELS, NAMES)) == fingerprint(
        ArraySource(IMAGES.copy(), LABELS.copy(), ("ant", "bee", "cat"))
    )


@pytest.mark.parametrize(
    ("differs", "other"),
    [
        ({"images", "sample"}, ArraySource(IMAGES[:-1], LABELS, NAMES)),
        ({"sample"}, ArraySource(255 - IMAGES, LABELS, NAMES)),
        ({"sample"}, ArraySource(IMAGES, LABELS + 256, NAMES)),
        ({"sample"}, ArraySource(IMAGES[::-1], LABELS[::-1], NAMES)),
        ({"classes"}, ArraySource(IMAGES, LABELS, ("ant", "bee", "dog"))),
        ({"classes"}, ArraySource(IMAGES, LABELS, ("bee", "ant", "cat"))),
    ],
)
def test_other_images_labels_classes_or_orders_have_another(differs, other):
    mine, found = fingerprint(ArraySource(IMAGES, LABELS, NAMES)), fingerprint(other)
    assert {name for name in mine if mine[name] != found[name]} == differs


def test_a_damaged_image_is_left_to_whoever_trains_on_it():
    class Damaged(ArraySource):
        def __getitem__(self, index):
            raise DataError("cut short")

    assert fingerprint(Damaged(IMAGES, LABELS, NAMES))["images"] == 40
