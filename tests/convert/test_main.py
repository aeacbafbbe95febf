import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from spvit_jax.convert import About, about_of, forms, load, released_from_state, save
from spvit_jax.convert.__main__ import main
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.single_path.prune import fold
from spvit_jax.single_path.prune import form as form_of


@pytest.fixture
def source(released, tmp_path):
    def write(stem):
        path = tmp_path / f"{stem}.safetensors"
        safetensors.numpy.save_file(released(stem), path)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("stem", "options", "form", "facts"),
    [
        ("vit_dense_a", ["--heads", "3"], "dense", ["form        dense", "heads 3", "depth 3"]),
        (
            "deit_a_search",
            [],
            "supernet",
            [
                "msa conv3x3 conv1x1 skip",
                "MACs        1,868,472 of 3,418,056 dense\n",
                "MACs        2,177,064 of 3,977,448 dense (as published)\n",
                "gate logits",
            ],
        ),
        ("deit_a_finetune", [], "shared", ["norm_skip", "48 59 53 62 57 55", "28,598"]),
        ("deit_a_folded", [], "folded", ["form        folded"]),
        ("deit_a_finetune", ["--fold"], "folded", ["form        shared", ": folded"]),
        ("deit_a_finetune", ["--fold", "--batch-norm"], "deploy", [": deploy"]),
        (
            "swin_a_search",
            [],
            "supernet",
            [
                "model Swin: width 16, depths 2 4, heads 2 4, hidden 64 128, window 7",
                "2,733,248 of 5,126,016 dense (as published)",
            ],
        ),
        ("swin_a_finetune", [], "shared", ["norm_skip msa", "33 39 74 78 75 84", "40,646"]),
        ("swin_a_finetune", ["--fold", "--batch-norm"], "deploy", [": deploy"]),
        ("regnety_a", [], "dense", ["model RegNet: widths 16 24 40 64, depths 1 2 2 1, group 8"]),
        ("vit_distilled_a", ["--heads", "3"], "dense", ["class token, distilled, pool token"]),
    ],
)
def test_converts_and_says_what_it_was(source, tmp_path, capsys, stem, options, form, facts):
    target = tmp_path / "out.safetensors"
    assert main([source(stem), str(target), *options]) == 0
    out = capsys.readouterr().out
    for fact in facts:
        assert fact in out
    assert form_of(load(str(target))) == form


def test_folds_our_own_files_too(source, released, tmp_path):
    first, second = str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors")
    assert main([source("deit_a_finetune"), first]) == 0
    assert main([first, second, "--fold"]) == 0
    expected = forms.variables(fold(released_from_state(released("deit_a_finetune"))[0]))
    for name, value in forms.variables(load(second)).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("stem", "options", "form", "said"),
    [
        ("deit_a_finetune", [], "shared", "in SPViT's released names"),
        ("swin_a_finetune", ["--fold"], "folded", "in SPViT's released names"),
        ("swin_a_finetune", ["--fold", "--batch-norm"], "folded", "batch norms that do nothing"),
        ("swin_dense_a", [], "dense", "in timm's names"),
        ("regnety_a", [], "dense", "in timm's names"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_to_torch(source, tmp_path, capsys, images, run, stem, options, form, said, suffix):
    if suffix == "pth":
        pytest.importorskip("torch")
    first, second = str(tmp_path / "first.safetensors"), str(tmp_path / f"second.{suffix}")
    assert main([source(stem), first]) == 0
    assert main([first, second, "--to-torch", *options]) == 0
    assert said in capsys.readouterr().out.splitlines()[-1]
    expected, found = load(first), load(second)
    assert form_of(found) == form
    size = min(expected.spec.image_size, 64)  # a RegNet takes any
    inputs = images(dataclasses.replace(expected.spec, image_size=size))
    logits = run(expected, inputs)
    np.testing.assert_allclose(run(found, inputs), logits, atol=3e-5 * np.abs(logits).max())


def test_regnets_have_no_macs_line(source, tmp_path, capsys):
    assert main([source("regnety_a"), str(tmp_path / "out.safetensors")]) == 0
    assert "MACs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("stem", "options", "said"),
    [
        ("vit_dense_a", [], "--heads N"),
        ("vit_dense_a", ["--heads", "3", "--fold"], "only a pruned model folds"),
        ("deit_a_finetune", ["--heads", "4"], "wrong shape"),
        ("swin_a_finetune", ["--heads", "4"], "wrong shape"),
        ("swin_a_search", ["--to-torch"], "a supernet is not written for PyTorch: prune it first"),
    ],
)
def test_errors_leave_the_target_alone(source, tmp_path, capsys, stem, options, said):
    target = tmp_path / "out.safetensors"
    target.write_text("before")
    assert main([source(stem), str(target), *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert target.read_text() == "before"


def test_unwritable_target(source, tmp_path, capsys):
    target = tmp_path / "no" / "such" / "folder" / "out.safetensors"
    assert main([source("deit_a_folded"), str(target)]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("o", r"o: a model file's name ends in \.safetensors; for PyTorch .*--to-torch"),
        ("o.pth", r"o\.pth: a model file's name ends in \.safetensors; for PyTorch .*--to-torch"),
        ("o.onnx", r"o\.onnx: a model file's name .*python -m spvit_jax\.export"),
        (
            "gs://b/x.safetensors",
            "gs://b/x.safetensors is no file of this machine; write to a disk",
        ),
        ("none/x.safetensors", "there is no folder none; make it first"),
    ],
)
def test_a_target_of_another_kind_is_refused_before_a_download(target, message, capsys):
    assert main(["https://localhost:9/x.safetensors", target]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_from_the_shell_it_says_nothing_of_devices(source, tmp_path):
    command = [sys.executable, "-m", "spvit_jax.convert", source("deit_a_folded"), "x.safetensors"]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert run.returncode == 0
    assert run.stderr.startswith("note: nothing says the model's mean, std, crop_ratio, nor will x")
    assert run.stderr.count("\n") == 1


def test_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "spvit_jax.convert"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "examples:" in shown.stdout
    assert all(word in shown.stdout for word in ("Swin", "RegNetY", "--fold", "--to-torch"))
    failed = subprocess.run([*command, "no.pth", "x.safetensors"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: no file at no.pth")
    alone = subprocess.run(
        [*command, "a", "b.safetensors", "--batch-norm"], capture_output=True, text=True
    )
    assert alone.returncode == 2
    assert "--batch-norm goes with --fold" in alone.stderr


def test_what_a_model_was_trained_on_stays_with_it(released, tmp_path, capsys):
    shared, _ = released_from_state(released("deit_a_finetune"))
    about = About(("a", "b"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.9)
    save(shared, tmp_path / "shared.safetensors", about=about)
    arguments = [str(tmp_path / f"{name}.safetensors") for name in ("shared", "folded")]
    assert main([*arguments, "--fold"]) == 0
    assert about_of(str(tmp_path / "folded.safetensors")) == about
    assert capsys.readouterr().err == ""


def test_what_a_state_dict_cannot_say_is_said(tmp_path, capsys):
    spec = ViTSpec(
        width=8, depth=1, heads=2, hidden=8, patch_size=4, image_size=8, activation="quick_gelu",
        epsilon=1e-5, classes=3,
    )  # fmt: skip
    save(ViT(spec, rngs=nnx.Rngs(0)), tmp_path / "clip.safetensors")
    arguments = [str(tmp_path / "clip.safetensors"), str(tmp_path / "out.safetensors")]
    assert main([*arguments, "--to-torch"]) == 0
    assert "activation quick_gelu, epsilon 1e-05" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "state dict" not in capsys.readouterr().err
