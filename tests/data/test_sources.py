"""Each kind of source, on data made here, and what it says when the data is not there."""

import errno
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from spvit_jax.config import Data
from spvit_jax.data import package
from spvit_jax.data.errors import DataError, LabelError
from spvit_jax.data.fingerprint import fingerprint
from spvit_jax.data.pipeline import eval_batches, train_batches
from spvit_jax.data.sources import Source, TfdsSource, open_source
from spvit_jax.remote import is_transient

SAVED = {
    "a.png": "L",
    "b.png": "RGB",
    "c.png": "RGBA",
    "d.png": "P",
    "e.jpg": "CMYK",
    "F.JPEG": "L",
}


def solid(mode, colour=(204, 51, 102)):
    return Image.new("RGB", (9, 6), colour).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Two splits of classes "b" and "a b", six images each in as many modes."""
    for split in ("train", "val"):
        for name in ("b", "a b"):
            (tmp_path / split / name / "deeper").mkdir(parents=True)
            for file, mode in SAVED.items():
                solid(mode).save(tmp_path / split / name / file)
            solid("RGB").save(tmp_path / split / name / "deeper" / "g.bmp")
            (tmp_path / split / name / "notes.txt").write_text("not an image")
    return tmp_path


def labels_of(source):
    return [source[index]["label"] for index in range(len(source))]


def pixels(one):
    return np.asarray(one["image"].full())


def contents(source):
    return [
        (one["label"], pixels(one).tobytes()) for one in map(source.__getitem__, range(len(source)))
    ]


def test_packaged_images_are_the_packaged_grey_three_times():
    source = open_source(Data(), "test")
    images, labels = package.read("fashion_mnist", "test")
    assert isinstance(source, Source) and len(source) == 2000
    assert source.class_names[0] == "T-shirt/top" and len(source.class_names) == 10
    for index in (0, 17, 1999):
        one = source[index]
        assert pixels(one).dtype == np.uint8 and pixels(one).shape == (28, 28, 3)
        assert type(one["label"]) is int and one["label"] == labels[index]
        for channel in range(3):
            np.testing.assert_array_equal(pixels(one)[:, :, channel], images[index])


def test_packaged_subsplits_are_disjoint_complete_and_balanced():
    whole, kept, held_out = (
        open_source(Data(), split) for split in ("test", "test[:90%]", "test[90%:]")
    )
    assert contents(kept) + contents(held_out) == contents(whole)
    np.testing.assert_array_equal(np.bincount(labels_of(held_out)), [20] * 10)


def test_idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    images = {
        "train": rng.integers(0, 256, (8, 5, 5), np.uint8),
        "t10k": np.zeros((2, 5, 5), np.uint8),
    }
    for prefix, array in images.items():
        labels = (np.arange(len(array)) % 3).astype(np.uint8)
        for kind, part in (("images-idx3", array), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{part.ndim}I", 0, 0, 8, part.ndim, *part.shape)
            path = tmp_path / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + part.tobytes()))
    data = Data(source=f"idx:{tmp_path}")
    source = open_source(data, "train[2:]")
    assert len(source) == 6 and labels_of(source) == [2, 0, 1, 2, 0, 1]
    np.testing.assert_array_equal(pixels(source[0])[:, :, 1], images["train"][2])
    test = open_source(data, "test")
    assert len(test) == 2 and test.class_names == source.class_names == ("0", "1", "2")


def test_folder_decodes_every_mode_to_rgb(folder):
    source = open_source(Data(source=f"folder:{folder}"), "train")
    assert isinstance(source, Source) and source.class_names == ("a b", "b") and len(source) == 14
    found = {}
    for index, (path, label) in enumerate(source.files):
        one = source[index]
        assert pixels(one).dtype == np.uint8 and pixels(one).shape == (6, 9, 3)
        assert one["label"] == label == source.class_names.index(path.split("/")[0])
        found[path] = pixels(one)[3, 4].astype(int)
    grey = np.asarray(solid("L").convert("RGB"))[0, 0]
    for file, mode in [*SAVED.items(), ("deeper/g.bmp", "RGB")]:
        expected = grey if mode == "L" else np.array([204, 51, 102])
        assert abs(found[f"b/{file}"] - expected).max() <= (4 if mode == "CMYK" else 0), file


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_files_of_a_folder_may_have_any_name(folder, share):
    for split in ("train", "val"):
        solid("L").save(odd := os.fsdecode(os.fsencode(folder / split / "b") + b"/caf\xe9.png"))
    root = folder / "train" if share else folder
    source = open_source(Data(source=f"folder:{root}", val_share=share), "train[:100%]")
    paths = [path for path, _ in source.files] + [
        path for path, _ in open_source(Data(source=f"folder:{root}", val_share=share), "val").files
    ]
    assert f"b/{os.path.basename(odd)}" in paths
    assert all(source[index]["image"].full() for index in range(len(source)))


def test_folder_subsplits_are_disjoint_complete_and_mixed(folder):
    data = Data(source=f"folder:{folder}")
    whole, first, second = (
        open_source(data, split) for split in ("train", "train[:50%]", "train[50%:]")
    )
    assert first.files + second.files == whole.files and len(set(whole.files)) == 14
    assert set(labels_of(first)) == set(labels_of(second)) == {0, 1}


def test_one_folder_of_classes_is_divided_by_a_seed(folder):
    def read(split, **options):
        data = Data(source=f"folder:{folder / 'train'}", test_split="val", **options)
        return open_source(data, split)

    whole = read("train")
    assert set(whole.files) == set(open_source(Data(source=f"folder:{folder}"), "train").files)
    with pytest.raises(DataError, match="one folder of 2 classes, without 'val'.*data.val_share"):
        read("val")
    train, val = (read(split, val_share=0.3) for split in ("train", "val"))
    assert sorted(train.files + val.files) == sorted(whole.files)
    assert [label for _, label in val.files].count(0) == 2 == len(val) // 2
    assert read("val", val_share=0.3).files == val.files
    assert any(read("val", val_share=0.3, val_seed=n).files != val.files for n in (1, 2, 3))
    assert read("train[:50%]", val_share=0.3).files == train.files[: len(train) // 2]


def test_folder_without_images_says_what_goes_where(tmp_path):
    with pytest.raises(DataError) as raised:
        open_source(Data(source=f"folder:{tmp_path}/imagenet"), "train")
    assert f"{tmp_path}/imagenet/train/n01440764/*.JPEG" in str(raised.value)
    assert "data.test_split=val" in str(raised.value)


def test_folder_with_an_empty_class_is_refused(folder):
    (folder / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="no image .* in .*empty"):
        open_source(Data(source=f"folder:{folder}"), "train")


def test_folder_whose_splits_disagree_on_classes_is_refused(folder):
    (folder / "val" / "b").rename(folder / "val" / "c")
    with pytest.raises(DataError, match="only one of the two has b, c"):
        open_source(Data(source=f"folder:{folder}"), "val")


@pytest.mark.parametrize("raw", [b"no image", None])
def test_undecodable_image_is_named(folder, raw):
    path = folder / "train" / "b" / "b.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(raw or path.read_bytes()[:5000])
    source = open_source(Data(source=f"folder:{folder}"), "train")
    with pytest.raises(DataError, match=r"cannot decode the image .*train/b/b\.png"):
        contents(source)


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Ten PNGs of two classes; pixel [0, 0] tells which image it is."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "kind": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, supervised_keys=("picture", "kind")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(10):
            path = f"{self.data_dir}/../{index}.png"
            Image.new("RGB", (4 + index, 5), (index, 0, 255)).save(path)
            yield index, {"picture": path, "kind": index % 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A TFDS data directory with ``tiny_pictures`` stored as ArrayRecord."""
    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyPictures(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(file_format="array_record")
    return folder


def test_tfds(prepared):
    data = Data(source="tfds:tiny_pictures", directory=str(prepared))
    source = open_source(data, "train")
    assert isinstance(source, Source) and source.class_names == ("cat", "dog")
    seen = set()
    for one in map(source.__getitem__, range(len(source))):
        which = int(pixels(one)[0, 0, 0])
        assert pixels(one).dtype == np.uint8 and pixels(one).shape == (5, 4 + which, 3)
        assert one["label"] == which % 2 and type(one["label"]) is int
        seen.add(which)
    assert seen == set(range(10))
    parts = [contents(open_source(data, f"train[{cut}]")) for cut in (":70%", "70%:")]
    assert parts[0] + parts[1] == contents(source) and len(parts[0]) == 7


def test_tfds_reads_without_tensorflow(prepared):
    code = (
        "import sys\n"
        "from spvit_jax.config import Data\n"
        "from spvit_jax.data.sources import open_source\n"
        f"data = Data(source='tfds:tiny_pictures', directory={str(prepared)!r})\n"
        "print(open_source(data, 'train')[0]['image'].size[1], 'tensorflow' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.stdout.split() == ["5", "False"], result.stderr


def test_a_set_that_a_disk_does_not_give_now_is_not_bad(prepared, monkeypatch):
    def not_now(*arguments):
        raise OSError(errno.EIO, "not now")

    data = Data(source="tfds:tiny_pictures", directory=str(prepared))
    monkeypatch.setattr("tensorflow_datasets.core.utils.retry.retry", not_now)
    with pytest.raises(OSError, match="not now") as error:
        open_source(data, "train")
    assert is_transient(error.value)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, OSError), (errno.EACCES, DataError)])
def test_records_that_cannot_be_read_are_told_from_those_that_cannot_now(number, kind):
    class Records:
        def __getitem__(self, index):
            raise RuntimeError(f"open() failed: {os.strerror(number)}; opening x.array_record")

    source = TfdsSource(Records(), "picture", "kind", ("a",), "tfds:x, val")
    with pytest.raises(kind, match=f"{os.strerror(number)}; opening x.array_record") as error:
        source[0]
    assert is_transient(error.value) == (kind is OSError)


@pytest.mark.parametrize("text", ["", "cat\n", "cat\ndog\nemu\n"])
def test_names_of_classes_that_are_damaged_are_not_made_up(prepared, tmp_path, text):
    shutil.copytree(prepared / "tiny_pictures", tmp_path / "tiny_pictures")
    (file,) = tmp_path.rglob("kind.labels.txt")
    file.write_text(text)
    with pytest.raises(DataError, match=r"kind\.labels\.txt does not name the classes|TFDS cannot"):
        open_source(Data(source="tfds:tiny_pictures", directory=str(tmp_path)), "train")


def test_tfds_missing_split_lists_those_there_are(prepared):
    data = Data(source="tfds:tiny_pictures", directory=str(prepared))
    with pytest.raises(DataError, match="no split 'validation', only train"):
        open_source(data, "validation")


def test_tfds_stored_as_tfrecord_says_what_to_run(prepared, tmp_path):
    stored = prepared / "tiny_pictures" / "1.0.0"
    copy = tmp_path / "tiny_pictures" / "1.0.0"
    copy.mkdir(parents=True)
    for path in stored.iterdir():
        (copy / path.name.replace("array_record", "tfrecord")).write_bytes(path.read_bytes())
    info = json.loads((copy / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError) as raised:
        open_source(Data(source="tfds:tiny_pictures", directory=str(tmp_path)), "train")
    command = f"tfds convert_format --dataset_version_dir={copy} --out_file_format=array_record"
    assert "stored as tfrecord" in str(raised.value) and command in str(raised.value)


def test_tfds_unprepared_imagenet_says_what_to_run(tmp_path):
    with pytest.raises(DataError) as raised:
        open_source(Data(source="tfds:imagenet2012", directory=str(tmp_path)), "train")
    message = str(raised.value)
    assert f"tfds:imagenet2012 is not prepared in {tmp_path}" in message
    assert f"python -m spvit_jax.prepare FOLDER {tmp_path}" in message
    assert "ILSVRC2012_img_train.tar" in message and "folder:FOLDER" in message


@pytest.mark.parametrize(("label", "said"), [(-1, "nobody has labelled"), (3, "; there are 3")])
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_label_of_no_class_is_refused_by_name(label, said, on_error):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    records = [{"picture": file.getvalue(), "kind": np.int64(kind)} for kind in (0, 2, label, 1)]
    source = TfdsSource(records, "picture", "kind", ("a", "b", "c"), "tfds:x, val")
    data = Data(augment="none", on_error=on_error)
    options = {"batch_size": 4, "rows": np.arange(4), "image_size": 8}
    for read in (
        lambda: list(map(source.__getitem__, range(4))),
        lambda: next(train_batches(source, data, **options, seed=0, start_step=0)),
        lambda: next(eval_batches(source, data, **options)),
        lambda: fingerprint(source),
    ):
        with pytest.raises(LabelError, match="the image 2 of tfds:x, val has the label") as error:
            read()
        assert said in str(error.value) and f"the label {label}" in str(error.value)


class TinyTexts(TinyPictures):
    """A set that is not image classification."""

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()})
        )

    def _generate_examples(self):
        yield 0, {"text": "hello"}


def test_tfds_set_without_images_is_refused(tmp_path):
    TinyTexts(data_dir=tmp_path, file_format="array_record").download_and_prepare(
        file_format="array_record"
    )
    with pytest.raises(
        DataError, match="not image classification: expected 'image' to be Image, it"
    ):
        open_source(Data(source="tfds:tiny_texts", directory=str(tmp_path)), "train")


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("packaged:cifar", "train", "no packaged set 'cifar'; there is fashion_mnist"),
        ("packaged:fashion_mnist", "validation", "has train and test, not 'validation'"),
        ("packaged:", "train", "names nothing after the colon"),
        ("folder:gs://bucket/pets", "train", "of a bucket only tfds: sets are read; make one"),
        ("zip:there", "train", "must begin with packaged:, idx:, inat:, folder: or tfds:"),
        ("tfds:no_such_set", "train", "knows no set 'no_such_set'"),
        ("tfds:imagenet-1k", "train", "=tfds:imagenet-1k: expected NAME, .* letters, digits and _"),
        ("tfds:/a/path", "train", "=tfds:/a/path: expected .* goes into data.directory"),
        ("tfds:My Photos", "train", "=tfds:My Photos: expected NAME, .*data.source=folder:FOLDER"),
        ("idx:/nowhere", "train", "no train-images-idx3-ubyte.gz"),
    ],
)
def test_source_that_is_not_there(source, split, message):
    with pytest.raises(DataError, match=message):
        open_source(Data(source=source), split)


def test_hidden_and_system_folders_are_no_classes(folder):
    data = Data(source=f"folder:{folder}", train_split="train", test_split="val")
    before = contents(open_source(data, "train"))
    for name in (".git", "__MACOSX", "#recycle", "__pycache__", "b/.ipynb_checkpoints", "b/@eaDir"):
        (folder / "train" / name).mkdir()
        solid("RGB").save(folder / "train" / name / "copy.png")
    solid("RGB").save(folder / "train" / "b" / "._x.png")
    source = open_source(data, "train")
    assert source.class_names == ("a b", "b") and contents(source) == before


@pytest.mark.parametrize("place", ["train/b", "train/b/deeper", ""])
def test_files_of_other_endings_are_counted_once(folder, tmp_path_factory, caplog, place):
    folder = folder if place else tmp_path_factory.mktemp("flat")
    for name in ("a.png", "b.avif", "c.AVIF", "d.avif", ".hidden", "README"):
        solid("RGB").save(folder / place / name, "PNG")
    for _ in range(2):
        open_source(Data(source=f"folder:{folder}"), "train")
    (said,) = [record.getMessage() for record in caplog.records]
    where, texts = (folder / "train", ".txt (2), ") if place else (folder, "")
    assert said.startswith(f"{6 if place else 4} files in {where} are left out, since their names")
    assert f"end in .avif (3), {texts}nothing (1); images are those that end in .jpg" in said


def test_links_are_followed_to_each_folder_once(folder):
    data = Data(source=f"folder:{folder}", train_split="train", test_split="val")
    before = len(open_source(data, "train"))
    train, elsewhere = folder / "train", folder / "elsewhere"
    (train / "b").rename(elsewhere)
    (train / "b").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to("deeper")
    (train / "a b" / "self").symlink_to("..")
    assert len(open_source(data, "train")) == before
    names = open_source(data, "train").class_names
    (train / "self").symlink_to(".")
    (train / "all").symlink_to(folder)
    assert open_source(data, "train").class_names == names


def test_a_folder_that_cannot_be_listed_is_not_passed_over(folder, monkeypatch):
    data, scan = Data(source=f"folder:{folder}"), os.scandir

    def refuse(place):
        if os.path.basename(place) == "deeper":
            raise OSError(errno.EIO, "not now")
        return scan(place)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(OSError, match="not now"):
        open_source(data, "train")


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "gif", "jfif"])
def test_images_of_other_endings_are_read(tmp_path, suffix):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        kind = {"tif": "TIFF", "jfif": "JPEG"}.get(suffix.lower(), suffix[:4])
        solid("RGB").save(tmp_path / "train" / name / f"x.{suffix}", format=kind)
    source = open_source(Data(source=f"folder:{tmp_path}", train_split="train"), "train")
    assert labels_of(source) == [0, 1] or labels_of(source) == [1, 0]
    assert pixels(source[0]).shape == (6, 9, 3)
