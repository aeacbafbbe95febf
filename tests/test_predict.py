"""``python -m spvit_jax.predict``: classes of images, from any checkpoint, with any names."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from spvit_jax import pictures
from spvit_jax.convert import save, save_torch
from spvit_jax.convert.native import About
from spvit_jax.data.decode import open_image
from spvit_jax.data.errors import DataError
from spvit_jax.data.transforms import eval_transform
from spvit_jax.models import RegNet, RegNetSpec, ViT, ViTSpec
from spvit_jax.mosaic import mosaic
from spvit_jax.predict import __main__ as predict
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.sizes import as_size
from spvit_jax.training.normalise import Normalise

SPEC = ViTSpec(width=16, depth=2, heads=2, hidden=32, patch_size=8, image_size=(16, 24), classes=3)
FOUND = Architecture(("conv3x3", "msa"), ((0, 3), (1,)))
MERGED = dataclasses.replace(FOUND, merges=(1, 0))
NAMES = ("cat", "dog", "owl")
OWN = About(NAMES, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3), 0.5)


@pytest.fixture(scope="module")
def model():
    made = ViT(SPEC, rngs=nnx.Rngs(0))
    made.head.kernel[...] = 5 * made.head.kernel[...]  # decided opinions
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images at several depths and of several sizes, and what is none."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate(("b.png", "a.JPG", "more/c.webp")):
        pixels = rng.integers(0, 256, (20 + 9 * i, 40, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def expected(model, file, normalise=None, ratio=0.5, size=None):
    """Probabilities of an image's classes."""
    normalise = normalise or Normalise(OWN.mean, OWN.std)
    image = eval_transform(
        open_image(str(file), ""), image_size=size or SPEC.image_size, crop_ratio=ratio
    )
    logits = np.asarray(model(normalise(image[None])))[0].astype(float)
    shares = np.exp(logits - logits.max())
    return shares / shares.sum()


def run(capsys, *arguments):
    """The exit code, the JSON lines, and stderr."""
    code = predict.main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, [json.loads(line) for line in out.splitlines()], err


def check(line, shares, names=NAMES):
    order = np.argsort(-shares)
    assert [one["class"] for one in line["top"]] == list(order)
    assert [one["name"] for one in line["top"]] == [names[i] for i in order]
    found = [one["probability"] for one in line["top"]]
    np.testing.assert_allclose(found, shares[order], rtol=1e-4)


def test_as_a_command(model, folder, tmp_path):
    save(model, tmp_path / "m.safetensors", about=OWN)
    command = [sys.executable, "-m", "spvit_jax.predict", tmp_path / "m.safetensors", folder]
    (folder / "more" / "bad.png").write_bytes(b"nothing")
    try:
        found = subprocess.run([*command, "--top", "2"], capture_output=True, text=True)
    finally:
        (folder / "more" / "bad.png").unlink()
    assert found.returncode == 2
    assert found.stderr.count("bad.png") == 1 and "1 of 4 images" in found.stderr
    assert "Traceback" not in found.stderr
    lines = found.stdout.splitlines()
    assert lines[::3] == [str(folder / name) for name in ("a.JPG", "b.png", "more/c.webp")]
    shares = expected(model, folder / "b.png")
    best, second = np.argsort(-shares)[:2]
    assert lines[4] == f"  {100 * shares[best]:6.2f} %  {NAMES[best]}"
    assert lines[5] == f"  {100 * shares[second]:6.2f} %  {NAMES[second]}"


def test_help_is_quick_and_has_examples():
    modules = "import sys, spvit_jax.predict.__main__ as p"
    modules += "\ntry: p.main(['--help'])\nexcept SystemExit: pass"
    code = f"{modules}\nassert not {{'jax', 'numpy'}} & set(sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for part in ("CHECKPOINT", "IMAGE", "--names", "n01440764", "--merged", "examples:"):
        assert part in found.stdout


@pytest.mark.parametrize("form", ["dense", "deploy"])
def test_a_model_file_says_names_and_normalisation(model, folder, tmp_path, capsys, form):
    path = tmp_path / "m.safetensors"
    found = model if form == "dense" else fold(prune(model, FOUND), batch_norm=True)
    save(found, path, about=OWN)
    code, lines, err = run(capsys, path, folder / "b.png", folder / "a.JPG")
    assert (code, err) == (0, "")
    assert [line["image"] for line in lines] == [str(folder / n) for n in ("b.png", "a.JPG")]
    check(lines[0], expected(found, folder / "b.png"))
    check(lines[1], expected(found, folder / "a.JPG"))


def test_a_checkpoint_that_says_nothing(model, folder, tmp_path, capsys):
    path = tmp_path / "m.safetensors"
    save_torch(model, path)
    numbers = ("class 0", "class 1", "class 2")
    size = ("--image-size", *SPEC.image_size)  # the square root of 6 patches is no number
    _, (line,), err = run(capsys, path, folder / "b.png", "--heads", 2, *size)
    assert err.startswith("note: the model's file does not say its mean (0.485, ")
    assert "crop_ratio 0.875: ImageNet's usual, taken here" in err
    imagenet = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    check(line, expected(model, folder / "b.png", imagenet, 0.875), numbers)
    given = ("--mean", 0.4, 0.5, 0.6, "--std", 0.1, 0.2, 0.3, "--crop-ratio", 0.5, "--heads", 2)
    _, (line,), err = run(capsys, path, folder / "b.png", *given, *size)
    assert err == ""
    check(line, expected(model, folder / "b.png"), numbers)
    code, _, err = run(capsys, path, folder / "b.png", *given)
    assert (
        code == 2 and "6 patches, which is no square" in err and "--image-size HEIGHT WIDTH" in err
    )


@pytest.mark.parametrize("size", [(16,), (16, 16), (24, 16)])
def test_a_regnet_at_the_size_it_is_told(folder, tmp_path, capsys, size):
    path = tmp_path / "m.safetensors"
    model = RegNet(RegNetSpec((8, 16), (1, 1), 8, classes=3), rngs=nnx.Rngs(0))
    save_torch(model, path)
    _, (line,), err = run(capsys, path, folder / "b.png", "--image-size", *size)
    imagenet = Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    shares = expected(model, folder / "b.png", imagenet, 0.875, as_size(size))
    check(line, shares, [f"class {i}" for i in range(3)])
    assert "ImageNet's usual, taken here" in err and err.count("\n") == 1


def test_more_images_than_a_batch(model, folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(model, path, about=OWN)
    monkeypatch.setattr(predict, "BATCH", 2)
    bad = tmp_path / "bad.png"
    bad.write_bytes((folder / "b.png").read_bytes()[:200])
    good = [folder / name for name in ("a.JPG", "b.png", "more/c.webp")]
    code, lines, err = run(capsys, path, tmp_path / "no.png", good[0], good[1], bad, good[2])
    assert code == 2
    assert [line["image"] for line in lines] == list(map(str, good))
    for line, file in zip(lines, good, strict=True):
        check(line, expected(model, file))
    assert str(bad) in err and "no.png" in err and "2 of 5 images could not be read" in err
    code, lines, _ = run(capsys, path, bad, bad, bad)
    assert (code, lines) == (2, [])


def test_names_from_a_file_come_first(model, folder, tmp_path, capsys):
    path, names = tmp_path / "m.safetensors", tmp_path / "names.txt"
    save(model, path, about=OWN)
    names.write_text("Katze\nHund\nEule\n")
    _, (line,), _ = run(capsys, path, folder / "b.png", "--names", names)
    check(line, expected(model, folder / "b.png"), ("Katze", "Hund", "Eule"))


@pytest.mark.parametrize(
    "text",
    [
        "tench\ngreat white shark\nhen",
        "\ufefftench\r\ngreat white shark\r\nhen\r\n\r\n",
        '["tench", "great white shark", "hen"]',
        ' {"2": "hen", "0": "tench", "1": "great white shark"}',
        '{"0": ["n1", "tench"], "1": ["n2", "great white shark"], "2": ["n3", "hen"]}',
    ],
)
def test_names_in_every_format(tmp_path, text):
    file = tmp_path / "names"
    file.write_text(text, newline="", encoding="utf-8")
    assert predict.class_names(str(file), (), 3) == ["tench", "great white shark", "hen"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"tench\nhen", "has 2 names, the model 3 classes"),
        (b"", "has 0 names"),
        (b"tench\n\nhen", "name 2 is empty"),
        (b'["a", "b"', "Expecting"),
        (b'["a", "b", 3]', "number 2 is 3, not a name"),
        (b'["a", "b", []]', r"number 2 is \[\], not a name"),
        (b'{"0": "a", "1": "b", "3": "c"}', "its numbers are not 0 to 2"),
        (b'{"0": "a", "0": "b", "1": "c"}', "its numbers are not 0 to 2, each once"),
        (b'{"0": "a", "0": "b", "1": "c", "2": "d"}', "its numbers are not 0 to 3, each once"),
        (b'["a", "b", {"2": "c"}]', "number 2 is .*, not a name"),
        (b"[" * 100_000, "recursion depth"),
        (b'{"a": "0"}', "invalid literal"),
        (b"\xff\xfe\x00", "expected a name a line in UTF-8"),
    ],
)
def test_names_that_are_none(tmp_path, text, said):
    file = tmp_path / "names"
    file.write_bytes(text)
    with pytest.raises(DataError, match=said) as error:
        predict.class_names(str(file), (), 3)
    assert f"--names {file}" in str(error.value)


def test_a_model_that_knows_more_classes_than_it_has_names_for():
    assert predict.class_names(None, ("a", "b"), 4) == ["a", "b", "class 2", "class 3"]


def test_what_cannot_work_is_said_and_nothing_is_printed(model, folder, tmp_path, capsys):
    path, empty = tmp_path / "m.safetensors", tmp_path / "empty"
    save(fold(prune(model, FOUND)), path, about=OWN)
    empty.mkdir()
    for arguments, said in (
        ([tmp_path / "none.safetensors", folder], "no file at"),
        ([folder / "notes.txt", folder], "notes.txt"),
        ([path, folder, empty], "no image (.jpg"),
        ([path, folder, "--names", tmp_path / "none.txt"], "none.txt"),
        ([path, folder, "--image-size", 32], "for images of 16x24 pixels stays so; expected 32"),
    ):
        code, lines, err = run(capsys, *arguments)
        assert (code, lines) == (2, []) and err.startswith("error: ") and "Traceback" not in err
        assert said in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--top", "0"],
        ["--crop-ratio", "1.5"],
        ["--mean", "0", "0", "0"],
        ["--mean", "0", "0", "0", "--std", "1", "1", "0"],
        ["--heads", "-4"],
        ["--epsilon", "nan"],
        ["--epsilon", "-1"],
        ["--image-size", "big"],
        ["--image-size", "0"],
        ["--image-size", "224", "10000000"],
        ["--image-size", "224", "384", "3"],
    ],
)
def test_flags_that_make_no_sense(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        predict.main(["model", "image", *arguments])
    assert stopped.value.code == 2 and arguments[0] in capsys.readouterr().err


def picture(model, file, ratio=0.5):
    """What ``--merged`` draws of an image, of 28 times its pixels a side."""
    opened = open_image(str(file), "")
    image = eval_transform(opened, image_size=SPEC.image_size, crop_ratio=ratio)
    stream = model.stream(Normalise(OWN.mean, OWN.std)(image[None]))
    sources = [tokens.sources for tokens in stream if tokens.sources is not None][-1][0]
    patches = np.asarray(sources)[model.spec.prefix :]
    assert len(set(patches.tolist())) < len(patches) == 6
    return mosaic(np.kron(image, np.ones((28, 28, 1), np.uint8)), patches, (2, 3))


@pytest.mark.parametrize(
    ("changes", "merges"),
    [
        ({}, (1, 0)),
        ({}, (2, 0)),
        ({"distilled": True}, (2, 0)),
        ({"class_token": False, "pool": "norm_average"}, (1, 1)),
    ],
    ids=["one", "two", "distilled", "in the last block too"],
)
def test_pictures_of_merged_patches(folder, tmp_path, capsys, monkeypatch, changes, merges):
    dense = ViT(dataclasses.replace(SPEC, **changes), rngs=nnx.Rngs(1))
    model = fold(prune(dense, dataclasses.replace(FOUND, merges=merges)), batch_norm=True)
    path, out = tmp_path / "m.safetensors", tmp_path / "new" / "pictures"
    save(model, path, about=OWN)
    monkeypatch.setattr(predict, "BATCH", 2)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    code, lines, err = run(capsys, path, bad, folder, "--merged", out)
    assert code == 2 and "1 of 4 images" in err
    files = [folder / name for name in ("a.JPG", "b.png", "more/c.webp")]
    assert [line["image"] for line in lines] == list(map(str, files))
    names = [out / f"{name}-merged.png" for name in "abc"]
    assert [line["merged"] for line in lines] == list(map(str, names))
    assert sorted(out.iterdir()) == names
    for line, file, name in zip(lines, files, names, strict=True):
        check(line, expected(model, file))
        with Image.open(name) as image:
            assert image.format == "PNG"
            np.testing.assert_array_equal(np.asarray(image), picture(model, file))


def test_text_says_where_a_picture_is(model, folder, tmp_path, capsys):
    path, out = tmp_path / "m.safetensors", tmp_path / "pictures"
    save(fold(prune(model, MERGED)), path, about=OWN)
    for _ in range(2):  # the second time in its place
        assert predict.main([str(path), str(folder / "b.png"), "--merged", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 5 and lines[-1] == f"  merged: {out / 'b-merged.png'}"
        assert os.listdir(out) == ["b-merged.png"]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ("/a/x.jpg /a/y.png", "x-merged.png y-merged.png"),
        ("/a/x.jpg /b/x.jpg /c/y.jpg", "a-x-merged.png b-x-merged.png y-merged.png"),
        ("/a/x.jpg /a/x.png /a/X.webp", "a-x-merged.png a-x-merged-2.png a-X-merged-3.png"),
        ("/a/q/x.jpg /b/q/x.jpg", "q-x-merged.png q-x-merged-2.png"),
        ("/a/x.jpg /b/x.jpg /c/a-x.jpg", "a-x-merged.png b-x-merged.png a-x-merged-2.png"),
        ("/a/x.png /a/x-merged.png", "x-merged-2.png x-merged-merged.png"),
    ],
)
def test_no_picture_is_written_over_another_or_an_image(files, found):
    names = pictures.picture_names(files.split())
    assert list(names) == files.split() and list(names.values()) == found.split()


def test_the_same_image_twice_has_one_picture(model, folder, tmp_path, capsys, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(fold(prune(model, MERGED)), path, about=OWN)
    monkeypatch.chdir(folder)
    _, lines, _ = run(capsys, path, "b.png", folder / "b.png", "--merged", tmp_path)
    assert [line["merged"] for line in lines] == 2 * [str(tmp_path / "b-merged.png")]


@pytest.mark.parametrize("form", ["dense", "pruned", "regnet"])
def test_a_model_that_merges_nothing_is_refused(model, folder, tmp_path, capsys, form):
    path, out = tmp_path / "m.safetensors", tmp_path / "pictures"
    if form == "regnet":
        model = RegNet(RegNetSpec((8, 16), (1, 1), 8, classes=3), rngs=nnx.Rngs(0))
    elif form == "pruned":
        model = fold(prune(model, dataclasses.replace(FOUND, merges=(0, 0))))
    save(model, path, about=OWN)
    code, lines, err = run(capsys, path, folder / "b.png", "--merged", out)
    assert (code, lines) == (2, []) and not out.exists()
    assert err == (
        "error: --merged: this model merges no tokens; leave it out, or take one that does\n"
    )


def test_pictures_that_cannot_be_written(model, folder, tmp_path, capsys, monkeypatch):
    path, file, out = tmp_path / "m.safetensors", tmp_path / "file", tmp_path / "pictures"
    save(fold(prune(model, MERGED)), path, about=OWN)
    file.write_text("a file")
    for where in (file, file / "under", ""):
        code, lines, err = run(capsys, path, folder / "b.png", "--merged", where)
        assert (code, lines) == (2, []) and err.count("\n") == 1
        assert err.startswith(f"error: --merged {where}: no files can be written there: ")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    code, lines, err = run(capsys, path, folder / "b.png", "--merged", out)
    assert (code, lines, os.listdir(out)) == (2, [], [])
    assert err == f"error: cannot write {out / 'b-merged.png'}: No space left on device\n"
