"""``export`` and its command: suffixes, what is refused, what is kept of a failure."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from flax import nnx

import spvit_jax as spvit
from spvit_jax.convert import About, CheckpointError, load, save
from spvit_jax.export import CheckFailed, ExportError, __main__, export
from spvit_jax.export.onnx import layers
from spvit_jax.export.outputs import named_outputs
from spvit_jax.single_path.supernet import supernet
from spvit_jax.sizes import sides

ABOUT = About(("cat", "dog"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.9)
LOADER = """
import sys
import jax
import numpy as np
from jax import export

program = export.deserialize(bytearray(open("small.stablehlo", "rb").read()))
inputs = [np.load("images.npy")]
if len(program.in_avals) > 1:
    import safetensors.numpy
    inputs.insert(0, safetensors.numpy.load_file("small.weights.safetensors"))
np.savez("outputs.npz", **program.call(*inputs))
assert "spvit_jax" not in sys.modules and "flax" not in sys.modules
"""


@pytest.mark.parametrize(
    ("name", "beside"), [("vit, merged", False), ("patches", True), ("oblong_swin, pruned", False)]
)
def test_stablehlo_runs_in_a_process_with_jax_alone(name, beside, made, tmp_path):
    model = made(name)
    done = spvit.export(model, tmp_path / "small.stablehlo", about=ABOUT, beside=beside)
    names = {file.name for file in done.files}
    weights = {"small.weights.safetensors"} if beside else set()
    assert names == {"small.stablehlo", "small.preprocess.json"} | weights
    shape = (2, *sides(model.spec.image_size), 3)
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.save(tmp_path / "images.npy", x)
    subprocess.run([sys.executable, "-I", "-c", LOADER], check=True, cwd=tmp_path)
    found, expected = np.load(tmp_path / "outputs.npz"), nnx.jit(named_outputs)(model, x)
    assert sorted(found) == sorted(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("small.pdf", {}, "one of .onnx, .fp16.onnx"),
        (".onnx", {}, "the suffix"),
        ("nowhere/small.onnx", {}, "no such folder"),
        ("small.onnx", {"opset": 16}, "17, 20, 23; got 16"),
        ("small.onnx", {"pixels": "int8"}, "float32, uint8"),
        ("small.onnx", {"layout": "HWC"}, "NCHW, NHWC"),
        ("small.onnx", {"beside": True}, ".stablehlo"),
        ("small.onnx", {"about": About(mean=(0.5,), std=(0.5,))}, "3 channels"),
    ],
)
def test_what_cannot_be_is_said(name, options, said, made, tmp_path):
    with pytest.raises(ExportError, match=said):
        export(made("vit"), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_links_stay_and_pipes_are_refused(made, tmp_path):
    folder, link, pipe = (tmp_path / name for name in ("there", "a.safetensors", "b.safetensors"))
    folder.mkdir()
    link.symlink_to(folder / "real.safetensors")
    export(made("vit"), link, about=ABOUT)
    assert link.is_symlink() and [file.name for file in folder.iterdir()] == ["real.safetensors"]
    os.mkfifo(pipe)
    with pytest.raises(ExportError, match="is a folder, a pipe, a device"):
        export(made("vit"), pipe, about=ABOUT)
    pipe.unlink()
    pipe.symlink_to(pipe)
    with pytest.raises(ExportError, match="or a link that leads back to itself; give the name of"):
        export(made("vit"), pipe, about=ABOUT)


def test_a_supernet_is_no_model_to_run(made, tmp_path):
    with pytest.raises(ExportError, match=r"pruned\.safetensors"):
        export(supernet(made("vit")), tmp_path / "small.onnx")


def test_a_file_that_fails_its_check_is_kept_aside(made, tmp_path, monkeypatch):
    path = tmp_path / "small.onnx"
    path.write_text("the one before")
    other = made("distilled")
    right = layers.ffn
    monkeypatch.setattr(layers, "ffn", lambda g, layer, x: right(g, layer, g.op("Neg", x)))
    with pytest.raises(CheckFailed, match=r"small\.onnx\.failed"):
        export(other, path, about=ABOUT)
    assert path.read_text() == "the one before"
    assert (tmp_path / "small.onnx.failed").stat().st_size > 1000
    model = tmp_path / "model.safetensors"
    save(other, model, about=ABOUT)
    assert __main__.main([str(model), str(path)]) == 1
    found = {file.name for file in tmp_path.iterdir()}
    assert found == {"model.safetensors", "small.onnx", "small.onnx.failed"}


def test_a_place_that_cannot_be_written_is_left_as_it_was(made, tmp_path, monkeypatch):
    (tmp_path / "small.stablehlo").mkdir()
    with pytest.raises(ExportError, match="is a folder"):
        export(made("vit"), tmp_path / "small.stablehlo", about=ABOUT)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as sealed:
        sealed.setattr("tempfile.mkdtemp", lambda **_: full())
        with pytest.raises(OSError, match=r"No space left on device: .*/small\.onnx'"):
            export(made("vit"), tmp_path / "small.onnx", about=ABOUT)
    monkeypatch.setattr("spvit_jax.export.onnx.save_onnx", full)
    with pytest.raises(OSError, match=r"No space left on device: .*/small\.onnx"):
        export(made("vit"), tmp_path / "small.onnx", about=ABOUT)
    assert [file.name for file in tmp_path.iterdir()] == ["small.stablehlo"]


def test_the_command_writes_every_format_it_is_asked_for(made, tmp_path, capsys):
    model = tmp_path / "model.safetensors"
    save(made("vit, pruned"), model)
    outs = [str(tmp_path / name) for name in ("a.onnx", "a.fp16.onnx", "b.safetensors")]
    assert __main__.main([str(model), *outs, "--pixels", "uint8", "--crop-ratio", "0.5"]) == 0
    said = capsys.readouterr()
    assert said.err.count("ImageNet's usual") == 3 and "crop_ratio" not in said.err
    assert [line.split(":")[0] for line in said.out.splitlines()] == [f"wrote {o}" for o in outs]
    assert "largest error" in said.out and "nodes" in said.out
    beside = json.loads((tmp_path / "a.preprocess.json").read_text())
    assert beside["resize"] == [32, 32] and (tmp_path / "spvit_torch.py").exists()
    assert load(outs[-1]).architecture.ops == ("msa", "conv3x3", "msa")


def test_formats_by_their_names_are_written_beside_each_other(made, tmp_path, capsys):
    """The names are those of ``export.formats``; a suffix that is there is not said twice."""
    model = tmp_path / "model.safetensors"
    save(made("vit, pruned"), model, about=ABOUT)
    given = [str(model), str(tmp_path / "a.b")]
    assert __main__.main([*given, "--format", "torch", "fp16.onnx"]) == 0
    files = {"a.b.safetensors", "spvit_torch.py", "a.b.fp16.onnx", "a.b.preprocess.json"}
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", *files}
    assert __main__.main([str(model), str(tmp_path / "c.safetensors"), "--format", "torch"]) == 0
    assert (
        capsys.readouterr().out.splitlines()[2].startswith(f"wrote {tmp_path / 'c.safetensors'}:")
    )
    with pytest.raises(SystemExit):
        __main__.main([*given, "--format", "pdf"])
    assert "torch" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.safetensors", "a.onnx"], "missing"),
        (["missing.safetensors", "a.xyz"], "suffix"),
        (["missing.safetensors", "a", "--format", "torch", "onnx"], "missing"),
        (["missing.safetensors", "\udce9.onnx"], "%DCE9.onnx is not UTF-8"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert __main__.main(arguments) == 2
    assert said in capsys.readouterr().err


def test_without_onnx_the_error_names_what_to_install(made, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install 'spvit_jax\[export\]'"):
        export(made("vit"), tmp_path / "small.onnx")


def test_weights_that_are_no_numbers_are_refused_before_work(made, tmp_path):
    model = nnx.clone(made("vit"))
    model.norm.scale[...] = np.nan
    with pytest.raises(CheckpointError, match=r"norm\.scale"):
        export(model, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
