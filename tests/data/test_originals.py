"""What is found in a folder and in ImageNet's tars: labels, order, splits, and what is refused."""

import io
import os
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io

from spvit_jax.data import imagenet
from spvit_jax.data.errors import DataError
from spvit_jax.data.originals import list_folder

WNIDS = ("n02000000", "n01000000", "n03000000")  # not in order, as in meta.mat
TRUTH = (3, 1, 2, 3, 1)  # ILSVRC2012_ID of each validation image


def jpeg(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (8, 6, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def fill(root, names, count=4):
    """``count`` files in each class, half of them a level deeper; the bytes say which."""
    for name in names:
        (root / name / "deeper").mkdir(parents=True)
        for index in range(count):
            below = "deeper/" if index % 2 else ""
            (root / name / f"{below}{index}.JPG").write_bytes(f"{name} {index}".encode())
        (root / name / "notes.txt").write_text("not an image")


def pack(file, contents, mode="w"):
    """Writes a tar of the given {name: bytes}."""
    with (
        tarfile.open(file, mode)
        if not hasattr(file, "write")
        else tarfile.open(fileobj=file, mode=mode) as opened
    ):
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))


def packed(contents):
    file = io.BytesIO()
    pack(file, contents)
    return file.getvalue()


def devkit(folder, truth=TRUTH, wnids=WNIDS):
    """The devkit's two files: leaf synsets numbered from 1, one synset above them behind."""
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children")]
    rows = [(number + 1, wnid, "a, b", 0) for number, wnid in enumerate(wnids)]
    synsets = np.array([*rows, (len(rows) + 1, "n00001740", "entity", 3)], dtype=fields)
    file = io.BytesIO()
    scipy_io.savemat(file, {"synsets": synsets})
    inside = {
        "ILSVRC2012_devkit_t12/data/meta.mat": file.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "".join(
            f"{number}\n" for number in truth
        ).encode(),
    }
    pack(folder / imagenet.DEVKIT, inside, "w:gz")


def tars(folder, wnids=WNIDS, count=3, truth=TRUTH):
    """ImageNet in small; returns {split: {path: bytes}}."""
    given = {"train": {}, "validation": {}}
    classes = {}
    for number, wnid in enumerate(wnids):
        names = {f"{wnid}_{index}.JPEG": jpeg(100 * number + index) for index in range(count)}
        given["train"] |= {f"{wnid}/{name}": data for name, data in names.items()}
        classes[f"{wnid}.tar"] = packed(names)
    pack(folder / imagenet.TRAIN, classes)
    flat = {f"ILSVRC2012_val_{n + 1:08d}.JPEG": jpeg(10000 + n) for n in range(len(truth))}
    pack(folder / imagenet.VALIDATION, flat)
    for (name, data), number in zip(flat.items(), truth, strict=True):
        given["validation"][f"{wnids[number - 1]}/{name}"] = data
    devkit(folder, truth, wnids)
    return given


def read(originals, split):
    return {one.path: one.read() for one in originals.splits[split]}


def test_folder_of_splits(tmp_path):
    for split in ("train", "val", "minival"):
        fill(tmp_path / split, ("b", "a b"))
    (tmp_path / ".cache" / "b").mkdir(parents=True)
    (tmp_path / "annotations").mkdir()
    found = list_folder(tmp_path)
    assert found.class_names == ("a b", "b") and set(found.splits) == {"train", "val", "minival"}
    assert f"{tmp_path}/annotations is left out: it has no class folders" in found.notes[1]
    assert found.notes[0].startswith(f"2 files in {tmp_path}/train are left out, since their names")
    assert "end in .txt (2); images are those that end in .jpg .jpeg" in found.notes[0]
    assert len(found.notes) == 4
    for images in found.splits.values():
        assert {one.path for one in images} == {
            f"{name}/{file}"
            for name in ("a b", "b")
            for file in ("0.JPG", "deeper/1.JPG", "2.JPG", "deeper/3.JPG")
        }
        for one in images:
            name, _, rest = one.path.partition("/")
            assert one.label == found.class_names.index(name)
            assert one.read() == f"{name} {rest[-5]}".encode() and one.size == len(one.read())


def test_order_mixes_the_classes_and_depends_on_the_paths_alone(tmp_path):
    names = ("a", "b", "c")
    for folder in (tmp_path / "one", tmp_path / "two"):
        fill(folder, names if folder.name == "one" else names[::-1], count=30)
    one, two = (
        [(image.path, image.label) for image in list_folder(tmp_path / name).splits["train"]]
        for name in ("one", "two")
    )
    assert one == two
    counts = np.bincount([label for _, label in one[:45]], minlength=3)
    assert counts.min() >= 8, counts


def test_folder_without_splits_is_train_even_with_a_class_named_train(tmp_path):
    fill(tmp_path, ("train", "tram"))
    found = list_folder(tmp_path)
    assert found.class_names == ("train", "tram") and list(found.splits) == ["train"]
    assert len(found.splits["train"]) == 8


def test_val_share_is_a_seeded_share_of_each_class(tmp_path):
    fill(tmp_path, ("a", "b"), count=20)
    fill(tmp_path, ("single",), count=1)
    whole = {one.path for one in list_folder(tmp_path).splits["train"]}
    drawn = []
    for seed in (0, 0, 1):
        splits = list_folder(tmp_path, 0.25, seed).splits
        train, val = ({one.path for one in splits[name]} for name in ("train", "val"))
        assert train | val == whole and not train & val
        np.testing.assert_array_equal(
            np.bincount([one.label for one in splits["val"]], minlength=3), [5, 5, 0]
        )
        drawn.append(val)
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(list_folder(tmp_path, 0.9).splits["train"]) == 2 + 2 + 1
    with pytest.raises(DataError, match="take a larger share"):
        list_folder(tmp_path, 0.001)


def empty_class(root):
    (root / "train" / "empty").mkdir()


def only_in_val(root):
    (root / "val" / "c").mkdir()
    (root / "val" / "c" / "0.jpg").write_bytes(b"0")


def padded_name(root):
    for split in ("train", "val"):
        (root / split / "b").rename(root / split / "b ")


def bytes_name(root):
    os.mkdir(os.fsencode(root / "train") + b"/\xff")


def odd_split(root):
    (root / "val").rename(root / "val-2")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (empty_class, r"no image \(.*\) in .*/train/empty"),
        (only_in_val, "val must have the class folders of .*train.*only one of the two has c"),
        (padded_name, "has a class named 'b '; rename it"),
        (bytes_name, "/train/%DCFF is not UTF-8; rename the folder"),
        (odd_split, "val-2 cannot be a split's name"),
    ],
)
def test_folder_that_is_refused(tmp_path, spoil, message):
    for split in ("train", "val"):
        fill(tmp_path / split, ("a", "b"))
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        list_folder(tmp_path)


def test_folder_with_nothing_in_it(tmp_path):
    with pytest.raises(DataError, match="no class folders in .*expected .*CLASS"):
        list_folder(tmp_path)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        list_folder(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="no class folders"):
        list_folder(tmp_path)


def test_file_that_changes_after_listing_is_named(tmp_path):
    fill(tmp_path, ("a",), count=1)
    (one,) = list_folder(tmp_path).splits["train"]
    (tmp_path / "a" / "0.JPG").write_bytes(b"longer than before")
    with pytest.raises(DataError, match=r"a/0\.JPG changed from 3 to 18 bytes"):
        one.read()


def test_imagenet_tars(tmp_path):
    given = tars(tmp_path)
    assert imagenet.is_imagenet(tmp_path)
    found = imagenet.list_tars(tmp_path)
    assert found.class_names == tuple(sorted(WNIDS)) and not found.notes
    for split in ("train", "validation"):
        assert read(found, split) == given[split]
        for one in found.splits[split]:
            assert one.path.startswith(found.class_names[one.label])
    val = {one.path[-6:]: one.label for one in found.splits["validation"]}
    assert [val[f"{n}.JPEG"] for n in range(1, 6)] == [2, 1, 0, 2, 1]  # of 3, 1, 2, 3, 1


def test_imagenet_tars_list_as_the_same_images_in_folders_do(tmp_path):
    given = tars(tmp_path)
    for split, images in given.items():
        for path, data in images.items():
            file = tmp_path / "folder" / split / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
    folder, packed_up = list_folder(tmp_path / "folder"), imagenet.list_tars(tmp_path)
    assert folder.listing(sizes=True) == packed_up.listing(sizes=True)


@pytest.mark.parametrize("only", [imagenet.TRAIN, imagenet.VALIDATION])
def test_imagenet_with_one_tar(tmp_path, only):
    given = tars(tmp_path)
    other = {imagenet.TRAIN, imagenet.VALIDATION} - {only}
    (tmp_path / other.pop()).unlink()
    found = imagenet.list_tars(tmp_path)
    (split,) = found.splits
    assert read(found, split) == given[split] and found.class_names == tuple(sorted(WNIDS))
    assert found.notes[0].endswith(f"only {split}")


def test_imagenet_without_devkit_says_which_file_goes_where(tmp_path):
    tars(tmp_path)
    (tmp_path / imagenet.DEVKIT).unlink()
    with pytest.raises(DataError) as raised:
        imagenet.list_tars(tmp_path)
    assert f"{tmp_path}/ILSVRC2012_devkit_t12.tar.gz is missing" in str(raised.value)
    assert "image-net.org" in str(raised.value) and "beside" in str(raised.value)


def cut(folder, name, at):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(len(data) * at)])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: cut(f, imagenet.TRAIN, 0.5), r"img_train\.tar.* is damaged"),
        (lambda f: cut(f, imagenet.VALIDATION, 0.45), r"img_val\.tar is damaged .*end mark"),
        (lambda f: cut(f, imagenet.VALIDATION, 0.52), r"img_val\.tar is damaged"),
        (lambda f: cut(f, imagenet.DEVKIT, 0.7), "devkit_t12.tar.gz is damaged"),
        (lambda f: pack(f / imagenet.DEVKIT, {"data/x": b""}, "w:gz"), "expected data/.* in it"),
        (lambda f: pack(f / imagenet.TRAIN, {"a.JPEG": b"1"}), "holds no tars n"),
        (lambda f: pack(f / imagenet.TRAIN, {"n1.tar": packed({})}), "no image in .*n1.tar"),
        (lambda f: devkit(f, TRUTH[:4]), "ILSVRC2012_val_00000005.JPEG; expected .* up to 4"),
        (lambda f: devkit(f, (*TRUTH, 1)), "holds 5 images, .* labels of 6"),
        (lambda f: devkit(f, TRUTH, ("n1", "n2", "n3")), "images of n3, of which .* has none"),
    ],
)
def test_damaged_imagenet_is_named(tmp_path, spoil, message):
    tars(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        imagenet.list_tars(tmp_path)


def test_class_tar_cut_short_inside_a_whole_tar_is_named(tmp_path):
    tars(tmp_path)
    classes = {"n1.tar": packed({"0.JPEG": jpeg(0)})[:1000], "n2.tar": packed({"1.JPEG": jpeg(1)})}
    pack(tmp_path / imagenet.TRAIN, classes)
    with pytest.raises(DataError, match=r"img_train.tar/n1.tar is damaged \(0.JPEG is cut off\)"):
        imagenet.list_tars(tmp_path)
