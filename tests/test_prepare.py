"""``python -m spvit_jax.prepare``: from SRC to a set that a run reads, and its exit codes."""

import io
import re
import resource
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from scipy import io as scipy_io

from spvit_jax import prepare
from spvit_jax.config import Data
from spvit_jax.data import imagenet, records
from spvit_jax.data.folders import EXTENSIONS
from spvit_jax.data.sources import open_source


def png(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pets(tmp_path):
    """Ten images of each of two classes, without splits."""
    for label, name in enumerate(("cat", "a dog")):
        (tmp_path / "My Pets!" / name).mkdir(parents=True)
        for index in range(10):
            (tmp_path / "My Pets!" / name / f"{index}.png").write_bytes(png(10 * label + index))
    return tmp_path / "My Pets!"


def run(*arguments):
    return prepare.main([str(one) for one in arguments])


def test_folder_to_a_set_that_the_printed_flags_read(pets, tmp_path, capsys):
    assert run(pets, tmp_path / "sets") == 0
    said = capsys.readouterr()
    assert "20 images" in said.out and "SHA-256" in said.out and "100% 20/20" in said.err
    assert "--config.data.source=tfds:my_pets_ " in said.out
    assert f"--config.data.directory={tmp_path / 'sets'} " in said.out
    for split, count in (("train[:90%]", 18), ("train[90%:]", 2)):
        assert f"_split={split}'" in said.out
        source = open_source(Data(source="tfds:my_pets_", directory=f"{tmp_path}/sets"), split)
        assert len(source) == count and source.class_names == ("a dog", "cat")
    assert run(pets, tmp_path / "sets") == 0
    assert "is complete already" in capsys.readouterr().out
    assert run(pets, tmp_path / "sets", "--verify") == 0
    said = capsys.readouterr()
    assert "verified" in said.out and "100% 20/20" in said.err


def test_val_share_and_name(pets, tmp_path, capsys):
    assert run(pets, tmp_path, "--name=pets", "--val-share=0.2", "--seed=3") == 0
    said = capsys.readouterr().out
    assert "val       4 images" in said and "data.test_split=val" in said
    data = Data(source="tfds:pets", directory=str(tmp_path))
    assert len(open_source(data, "train")) == 16 and len(open_source(data, "val")) == 4
    assert run(pets, tmp_path, "--name=pets", "--val-share=0.2", "--seed=4") == 2
    assert "was made of other images" in capsys.readouterr().err


def test_verify_reads_neither_src_nor_trusts_the_shards(pets, tmp_path, capsys):
    assert run(pets, tmp_path, "--name=pets", "--verify") == 2
    assert "no finished set in" in capsys.readouterr().err
    run(pets, tmp_path, "--name=pets")
    pets.rename(tmp_path / "gone")
    assert run(pets, tmp_path, "--name=pets", "--verify") == 0
    (shard,) = tmp_path.glob("pets/1.0.0/*array_record*")
    shard.write_bytes(shard.read_bytes()[:-4000])
    assert run(pets, tmp_path, "--name=pets", "--verify") == 2
    assert "is damaged: train" in capsys.readouterr().err


def test_bad_image(pets, tmp_path, capsys):
    (pets / "cat" / "3.png").write_bytes(b"no image")
    assert run(pets, tmp_path, "--name=pets") == 2
    error = capsys.readouterr().err
    assert f"error: cannot decode the image {pets}/cat/3.png" in error and "--skip-bad" in error
    assert run(pets, tmp_path, "--name=pets", "--skip-bad") == 0
    assert "left out cat/3.png: cannot decode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{tmp}/nowhere", "{tmp}"), "nowhere is not a folder"),
        (("{pets}", "{pets}/sets"), "is inside .*; choose a DST outside it"),
        (("{pets}", "{tmp}/file", "--name=a"), "Not a directory"),
        (("{pets}/cat/3.png", "{tmp}"), "is a file; give the folder that holds it"),
        (("{pets}", "{tmp}", "--name=Pets"), "'Pets' cannot be a set's name"),
        (("{pets}", "{tmp}", "--name=mnist"), "TFDS has a set named mnist .* choose another"),
        (("{pets}", "{tmp}", "--name=imagenet2012"), "imagenet2012 with other classes"),
    ],
)
def test_mistake_is_explained(pets, tmp_path, capsys, arguments, message):
    (tmp_path / "file").touch()
    filled = [one.format(tmp=tmp_path, pets=pets) for one in arguments]
    assert run(*filled) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and re.search(message, error), error


@pytest.mark.parametrize("share", ["0", "1", "-0.1", "x"])
def test_share_is_between_0_and_1(pets, tmp_path, capsys, share):
    with pytest.raises(SystemExit) as ended:
        run(pets, tmp_path, f"--val-share={share}")
    assert ended.value.code == 2 and "--val-share" in capsys.readouterr().err


def test_a_bucket_is_neither_read_nor_mistaken_for_a_folder(pets, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ((pets, "gs://bucket/tfds"), ("gs://bucket/pets", tmp_path / "sets")):
        with pytest.raises(SystemExit) as ended:
            run(*arguments)
        assert ended.value.code == 2
        assert "gcloud storage cp --recursive DST/NAME gs://BUCKET" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["My Pets!"]


def test_ctrl_c(pets, tmp_path, capsys, monkeypatch):
    def interrupted(self, progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(records.Recorder, "run", interrupted)
        assert run(pets, tmp_path, "--name=pets") == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert run(pets, tmp_path, "--name=pets") == 0


def test_help_answers_what_a_head_depends_on(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--help")
    said = capsys.readouterr().out
    assert ended.value.code == 0
    for word in (
        "sorted class names",
        "n01440764 is 0",
        "torchvision",
        imagenet.DEVKIT,
        *EXTENSIONS,
    ):
        assert word in said


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
from spvit_jax import prepare
code = prepare.main(sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(code, prepare.main(sys.argv[1:]), "tensorflow" in sys.modules)
"""


def test_disk_that_refuses_and_no_tensorflow(pets, tmp_path):
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    result = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(pets), str(tmp_path), "--name=pets"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "error: cannot write" in result.stderr and "File too large" in result.stderr
    assert result.stdout.splitlines()[-1] == "2 0 False", result.stderr
    assert len(open_source(Data(source="tfds:pets", directory=str(tmp_path)), "train")) == 20


def pack(file, contents, mode="w"):
    with tarfile.open(fileobj=file, mode=mode) as opened:
        for name, data in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            opened.addfile(info, io.BytesIO(data))
    return file


def imagenet_tars(folder, wnids):
    """ImageNet with one training image a class and two validation images, of classes 7 and 0."""
    classes = {
        f"{wnid}.tar": pack(io.BytesIO(), {f"{wnid}_1.JPEG": png(index)}).getvalue()
        for index, wnid in enumerate(wnids)
    }
    numbered = list(reversed(wnids))  # the devkit's own numbers are in another order
    rows = [(number + 1, wnid, 0) for number, wnid in enumerate(numbered)]
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)]
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": np.array(rows, dtype=fields)})
    truth = f"{numbered.index(wnids[7]) + 1}\n{numbered.index(wnids[0]) + 1}\n"
    kit = {
        "k/data/meta.mat": meta.getvalue(),
        "k/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }
    images = {f"ILSVRC2012_val_0000000{n}.JPEG": png(5000 + n) for n in (1, 2)}
    folder.mkdir()
    for name, contents, mode in (
        (imagenet.TRAIN, classes, "w"),
        (imagenet.VALIDATION, images, "w"),
        (imagenet.DEVKIT, kit, "w:gz"),
    ):
        with open(folder / name, "wb") as file:
            pack(file, contents, mode)


def test_imagenet_takes_the_place_of_the_one_tfds_prepares(tmp_path, capsys):
    wnids = tfds.builder("imagenet2012", data_dir=tmp_path / "none").info.features["label"].names
    assert len(wnids) == 1000 and wnids[0] == "n01440764"
    imagenet_tars(tmp_path / "tars", wnids)
    assert run(tmp_path / "tars", tmp_path / "sets") == 0
    assert "data.test_split=validation" in capsys.readouterr().out
    data = Data(source="tfds:imagenet2012", directory=f"{tmp_path}/sets")
    train, validation = (open_source(data, split) for split in ("train", "validation"))
    assert train.class_names == tuple(wnids) and len(train) == 1000
    assert sorted(validation[n]["label"] for n in (0, 1)) == [0, 7]
    for index in (0, 500, 999):
        one = train[index]
        expected = np.asarray(Image.open(io.BytesIO(png(one["label"]))))
        np.testing.assert_array_equal(one["image"].full(), expected)


def test_imagenet_of_other_classes_needs_a_name(tmp_path, capsys):
    imagenet_tars(tmp_path / "tars", [f"n0{number}" for number in range(8)])
    assert run(tmp_path / "tars", tmp_path) == 2
    assert "choose another --name" in capsys.readouterr().err
    assert run(tmp_path / "tars", tmp_path, "--name=imagenet8") == 0
    assert run(tmp_path / "tars", tmp_path, "--name=imagenet8", "--val-share=0.1") == 2
