"""The packaged Fashion-MNIST: contents, integrity, and the script that made it."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from spvit_jax.data import idx, package
from spvit_jax.data.errors import DataError

NAME = "fashion_mnist"
ORIGINAL = Path(os.environ.get("FASHION_MNIST_IDX", "/usr/share/datasets/fashion-mnist"))


@pytest.mark.parametrize(("split", "per_class"), [("train", 1000), ("test", 200)])
def test_every_class_has_its_share_even_in_part(split, per_class):
    images, labels = package.read(NAME, split)
    assert images.dtype == np.uint8 and images.shape == (10 * per_class, 28, 28)
    np.testing.assert_array_equal(np.bincount(labels), [per_class] * 10)
    np.testing.assert_array_equal(np.bincount(labels[-50:]), [5] * 10)


def test_pixels_are_pinned():
    """Of the decoded arrays, so that repackaging with another zlib must give the same ones."""
    digest = hashlib.sha256()
    for split in ("train", "test"):
        for array in package.read(NAME, split):
            digest.update(array.tobytes())
    assert digest.hexdigest() == "b5226b34c141cd55cc880f78f217919f5dd21e40a932fd1475bc56324d6b4756"


def test_mean_and_std_are_those_of_the_train_file():
    pixels = package.read(NAME, "train")[0] / 255
    np.testing.assert_allclose(package.PACKAGED[NAME].mean, [pixels.mean()] * 3, atol=5e-5)
    np.testing.assert_allclose(package.PACKAGED[NAME].std, [pixels.std()] * 3, atol=5e-5)


def test_licence_is_packaged_and_small():
    assert "2017 Zalando SE" in (package.FOLDER / "LICENSE-fashion-mnist").read_text("utf-8")
    assert sum(path.stat().st_size for path in package.FOLDER.iterdir()) < 6e6


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason=f"no original files in {ORIGINAL}")
@pytest.mark.parametrize("split", ["train", "test"])
def test_packaged_images_are_the_first_of_each_class_of_the_original(split):
    images, labels = package.read(NAME, split)
    all_images, all_labels = idx.read_split(ORIGINAL, split)
    for label in range(10):
        first = all_images[all_labels == label][: (labels == label).sum()]
        np.testing.assert_array_equal(images[labels == label], first)


def _flip_a_bit(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip_a_bit, "expected SHA-256 ff166a"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), r"\(1000 bytes\)"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_damaged_file_is_named_with_what_restores_it(tmp_path, damage, message):
    path = package.path_of(NAME, "test", tmp_path)
    shutil.copy(package.path_of(NAME, "test"), path)
    package.read(NAME, "test", tmp_path)
    damage(path)
    with pytest.raises(DataError, match=message) as raised:
        package.read(NAME, "test", tmp_path)
    assert f"git checkout -- {path}" in str(raised.value)


def test_selection_takes_turns():
    labels = np.array([1, 1, 1, 0, 2, 0, 2, 2, 0])
    np.testing.assert_array_equal(package.select(labels, 2, 3), [3, 0, 4, 5, 1, 6])
    with pytest.raises(DataError, match="class 3 has 0 images, 1 are needed"):
        package.select(labels, 1, 4)


def test_script_refuses_a_folder_without_the_originals(tmp_path):
    command = [sys.executable, "-m", "spvit_jax.data.package", str(tmp_path), str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode != 0
    assert f"in {tmp_path}; an idx folder holds" in result.stderr


@pytest.mark.skipif(not ORIGINAL.is_dir(), reason=f"no original files in {ORIGINAL}")
def test_script_makes_the_same_package_again(tmp_path):
    package.write(NAME, ORIGINAL, tmp_path)
    for split in ("train", "test"):
        with np.load(package.path_of(NAME, split, tmp_path)) as made:
            images, labels = package.read(NAME, split)
            np.testing.assert_array_equal(made["images"], images)
            np.testing.assert_array_equal(made["labels"], labels)
