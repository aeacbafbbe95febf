"""The idx reader, on files made here."""

import errno
import gzip
import struct

import numpy as np
import pytest

from spvit_jax.data import idx
from spvit_jax.data.errors import DataError


def encode(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_set(folder, labels, split="train", zipped=True, side=4):
    """Writes the two files of a split; the images are random."""
    labels = np.asarray(labels, np.uint8)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), side, side), np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        name, raw = f"{idx.PREFIXES[split]}-{kind}-ubyte", encode(array)
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(raw))
        else:
            (folder / name).write_bytes(raw)
    return images


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_reads_what_was_written(tmp_path, zipped, split):
    expected = write_set(tmp_path, [3, 1, 2], split, zipped)
    images, labels = idx.read_split(tmp_path, split)
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(labels, [3, 1, 2])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "begin with 00 00 08, found nothing"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01", "found 00 00 0d"),
        (b"\x00\x00\x08\x03\x00", "cut off inside its header"),
        (encode(np.zeros(9, np.uint8))[:-2], "should hold 9 bytes of shape (9,), found 7"),
    ],
)
def test_damaged_file_is_named(tmp_path, raw, message):
    path = tmp_path / "broken"
    path.write_bytes(raw)
    with pytest.raises(DataError) as raised:
        idx.read_idx(path)
    assert str(path) in str(raised.value) and message in str(raised.value)


def test_a_disk_that_fails_has_not_damaged_the_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "not now")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="not now"):
        idx.read_idx(tmp_path / "images")


@pytest.mark.parametrize("raw", [b"not gzip", gzip.compress(bytes(1000), mtime=0)[:-9]])
def test_damaged_gzip_is_named(tmp_path, raw):
    path = tmp_path / "broken.gz"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"broken\.gz.*fetch it again"):
        idx.read_idx(path)


def test_missing_file_lists_what_belongs_there(tmp_path):
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte.*t10k-labels-idx1-ubyte"):
        idx.read_split(tmp_path, "train")


def test_images_and_labels_must_belong_together(tmp_path):
    write_set(tmp_path, [0, 1, 2])
    name = "train-labels-idx1-ubyte.gz"
    (tmp_path / name).write_bytes(gzip.compress(encode(np.zeros(2, np.uint8))))
    with pytest.raises(DataError, match="3 train images but 2 train labels"):
        idx.read_split(tmp_path, "train")


def test_rank_is_checked(tmp_path):
    write_set(tmp_path, [0, 1])
    name = "train-images-idx3-ubyte.gz"
    (tmp_path / name).write_bytes(gzip.compress(encode(np.zeros((2, 16), np.uint8))))
    with pytest.raises(DataError, match=r"3 dimensions, found shape \(2, 16\)"):
        idx.read_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("kind", "array", "shape"),
    [("images-idx3", np.zeros((2, 0, 4)), r"2, 0, 4"), ("labels-idx1", np.zeros(0), "0,")],
)
def test_files_that_hold_nothing_are_refused(tmp_path, kind, array, shape):
    write_set(tmp_path, [0, 1])
    raw = gzip.compress(encode(array.astype(np.uint8)))
    (tmp_path / f"train-{kind}-ubyte.gz").write_bytes(raw)
    with pytest.raises(
        DataError, match=rf"{kind}-ubyte.gz holds nothing, its shape is \({shape}\)"
    ):
        idx.read_split(tmp_path, "train")
