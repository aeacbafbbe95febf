import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from spvit_jax.convert import forms, load_model, released_from_state
from spvit_jax.convert.__main__ import main
from spvit_jax.single_path.prune import fold


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
            ["msa conv3x3 conv1x1 skip", "2,177,064 of", "gate logits"],
        ),
        ("deit_a_finetune", [], "shared", ["norm_skip", "48 59 53 62 57 55", "28,598"]),
        ("deit_a_folded", [], "folded", ["form        folded"]),
        ("deit_a_finetune", ["--fold"], "folded", ["form        shared", ": folded"]),
        ("deit_a_finetune", ["--fold", "--batch-norm"], "deploy", [": deploy"]),
    ],
)
def test_converts_and_says_what_it_was(source, tmp_path, capsys, stem, options, form, facts):
    target = tmp_path / "out.safetensors"
    assert main([source(stem), str(target), *options]) == 0
    out = capsys.readouterr().out
    for fact in facts:
        assert fact in out
    assert load_model(target).form == form


def test_folds_our_own_files_too(source, released, tmp_path):
    first, second = str(tmp_path / "first.safetensors"), str(tmp_path / "second.safetensors")
    assert main([source("deit_a_finetune"), first]) == 0
    assert main([first, second, "--fold"]) == 0
    expected = forms.variables(fold(released_from_state(released("deit_a_finetune")).model))
    for name, value in forms.variables(load_model(second).model).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(
    ("stem", "options", "said"),
    [
        ("vit_dense_a", [], "--heads N"),
        ("vit_dense_a", ["--heads", "3", "--fold"], "--fold needs a pruned model"),
        ("deit_a_finetune", ["--heads", "4"], "wrong shape"),
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


def test_from_the_shell(tmp_path):
    command = [sys.executable, "-m", "spvit_jax.convert"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "example:" in shown.stdout
    failed = subprocess.run([*command, "no.pth", "x"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: no file at no.pth")
    alone = subprocess.run([*command, "a", "b", "--batch-norm"], capture_output=True, text=True)
    assert alone.returncode == 2
    assert "--batch-norm goes with --fold" in alone.stderr
