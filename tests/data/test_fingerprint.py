import errno

import numpy as np
import pytest
from PIL import Image

from spvit_jax.config import Data
from spvit_jax.data import fingerprint as fingerprints
from spvit_jax.data.errors import DataError
from spvit_jax.data.fingerprint import fingerprint
from spvit_jax.data.images import open_images
from spvit_jax.data.sources import ArraySource, FolderSource, Some
from spvit_jax.hosts import differences

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 5), np.uint8)
LABELS = np.arange(40) % 3
NAMES = ("ant", "bee", "cat")


def test_a_copy_has_the_same():
    assert fingerprint(ArraySource(IMAGES, LABELS, NAMES)) == fingerprint(
        ArraySource(IMAGES.copy(), LABELS.copy(), ("ant", "bee", "cat"))
    )


SOME, ALL = "CRC-32 of some images", "CRC-32 of all pixels and labels"
ONE_LABEL = np.where(np.arange(40) == 1, 0, LABELS)  # of an image that is not in the sample


@pytest.mark.parametrize(
    ("differs", "other"),
    [
        ({"images", SOME, ALL}, ArraySource(IMAGES[:-1], LABELS[:-1], NAMES)),
        ({SOME, ALL}, ArraySource(255 - IMAGES, LABELS, NAMES)),
        ({SOME, ALL}, ArraySource(IMAGES, LABELS + 256, NAMES)),
        ({SOME, ALL}, ArraySource(IMAGES[::-1], LABELS[::-1], NAMES)),
        ({ALL}, ArraySource(IMAGES, ONE_LABEL, NAMES)),
        ({"class names"}, ArraySource(IMAGES, LABELS, ("ant", "bee", "dog"))),
        ({"class names"}, ArraySource(IMAGES, LABELS, ("bee", "ant", "cat"))),
    ],
)
def test_other_images_labels_classes_or_orders_have_another(differs, other):
    mine, found = fingerprint(ArraySource(IMAGES, LABELS, NAMES)), fingerprint(other)
    assert {name for name in mine if mine[name] != found[name]} == differs


def test_other_class_names_are_said_in_words():
    before = fingerprint(ArraySource(IMAGES, LABELS, NAMES))
    now = fingerprint(ArraySource(IMAGES, LABELS, ("ant", "bee", "dog")))
    assert differences(before, now) == ["class names.2: cat, now dog"]


def test_names_and_sizes_of_all_files_count(tmp_path, monkeypatch):
    for number in range(40):
        folder = tmp_path / "train" / NAMES[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number]).save(folder / f"{number}.png")
    first = fingerprint(FolderSource.open(tmp_path, "train", Data()))
    judged = Some(open_images(tmp_path), np.arange(1, 40, 2))
    seen = [fingerprint(judged)]
    files = [file for file, _ in FolderSource.open(tmp_path, "train", Data()).files]
    odd = tmp_path / "train" / files[1]  # not in the sample
    whole = odd.read_bytes()
    odd.write_bytes(whole + b"more")
    longer = fingerprint(FolderSource.open(tmp_path, "train", Data()))
    assert [name for name in first if first[name] != longer[name]] == [
        "CRC-32 of the files' names, labels and sizes"
    ]
    odd.unlink()
    odd.symlink_to("nowhere")
    assert fingerprint(FolderSource.open(tmp_path, "train", Data()))["images"] == 40
    odd.unlink()
    odd.write_bytes(whole)
    assert fingerprint(FolderSource.open(tmp_path, "train", Data())) == first
    for file in judged.source.items[1::2]:
        file.write_bytes(file.read_bytes() + b"more")
    seen.append(fingerprint(judged))
    monkeypatch.setattr(fingerprints, "SIZED", 3)  # and of more files only some
    seen.append(fingerprint(judged))
    assert len({one["CRC-32 of the files' names, labels and sizes"] for one in seen}) == 3


@pytest.mark.parametrize("kind", [np.asarray, Image.fromarray])
@pytest.mark.parametrize("judged", [range(40), range(1, 40, 2)])
def test_all_pictures_in_memory_count(kind, judged):
    changed = IMAGES.copy()
    changed[3] = 0  # not in the sample
    seen = [
        fingerprint(Some(open_images(list(map(kind, images))), judged))
        for images in (IMAGES, IMAGES.copy(), changed)
    ]
    assert seen[0] == seen[1]
    assert {name for name in seen[0] if seen[0][name] != seen[2][name]} == {ALL}


def test_a_damaged_image_is_left_to_whoever_trains_on_it():
    class Damaged(ArraySource):
        def __getitem__(self, index):
            raise DataError("cut short")

    assert fingerprint(Damaged(IMAGES, LABELS, NAMES))["images"] == 40


def test_sizes_that_a_disk_does_not_give_now_are_no_others(tmp_path, monkeypatch):
    def not_now(path):
        raise OSError(errno.EIO, "not now")

    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    monkeypatch.setattr("os.path.getsize", not_now)
    with pytest.raises(OSError, match="not now"):
        fingerprint(FolderSource(tmp_path, (("a.png", 0),), ("ant",)))
