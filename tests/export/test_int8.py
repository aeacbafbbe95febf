"""int8 files: what is quantised, how near it stays, what stays float, what is refused."""

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx
from PIL import Image

from spvit_jax.convert import About, save
from spvit_jax.export import CheckFailed, ExportError, __main__, export
from spvit_jax.export.images import as_seen
from spvit_jax.export.int8 import KINDS
from spvit_jax.export.near import Near, near
from spvit_jax.export.photographs import open_images, open_test, pixels
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.models import ViT
from spvit_jax.sizes import sides
from spvit_jax.training.normalise import Normalise
from tests.export.conftest import SPECS

PLAIN = About((), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 1.0)
ABOUT = About(("cat", "dog"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 1.0)
GREY = About(("cat", "dog"), (0.4,), (0.2,), 1.0)


def photographs(count=64, channels=3, size=16, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, channels))
    height, width = sides(size)
    return coarse.astype(np.uint8).repeat(height // 4, 1).repeat(width // 4, 2)


@pytest.fixture
def folder(tmp_path):
    """Photographs of two classes."""
    for i, image in enumerate(photographs(64, size=32)):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "photos"


PRODUCTS = {"MatMul", "Gemm", "Conv"}


def largest(graph):
    """The largest weight in int8: where it has seven bits of them, no processor's sums overflow."""
    weights = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT8]
    return max(abs(onnx.numpy_helper.to_array(t).astype(int)).max() for t in weights)


def quantised(path):
    """How many of each operator have all that is multiplied dequantised, and how many there are.

    Fails where something else is quantised.
    """
    graph = onnx.load(path).graph
    assert largest(graph) <= 64
    nodes = graph.node
    dequantised = {n.output[0]: n for n in nodes if n.op_type == "DequantizeLinear"}
    read = {i for n in nodes if n.op_type in PRODUCTS for i in n.input}
    convolved = {n.output[0] for n in nodes if n.op_type == "Conv"}
    for node in nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] not in convolved:
            (after,) = (n for n in dequantised.values() if n.input[0] == node.output[0])
            assert after.output[0] in read
    products = [n for n in nodes if n.op_type in PRODUCTS]
    inside = Counter(n.op_type for n in products if dequantised.keys() >= set(n.input[:2]))
    return inside, Counter(n.op_type for n in products)


def scale_sizes(path):
    """How many numbers each scale of a weight has."""
    weights = onnx.load(path).graph.initializer
    return [np.prod(w.dims, dtype=int) for w in weights if w.name.endswith("_scale")]


@pytest.mark.parametrize(
    ("name", "opset", "others"),
    [("vit, pruned", 17, 0), ("dinov3, merged", 23, 8), ("swin, pruned", 20, 0), ("regnet", 17, 6)],
)
def test_products_and_convolutions_alone_are_quantised(
    name, opset, others, made, tmp_path, monkeypatch
):
    """``others``: what two merges compare and add, one turning positions; squeeze-excitation."""
    monkeypatch.setattr("spvit_jax.export.near.COSINE", 0.9)
    monkeypatch.setattr("spvit_jax.export.near.SAME", 0.0)  # random models
    path = tmp_path / "small.int8.onnx"
    size = made(name).spec.image_size
    done = export(made(name), path, about=ABOUT, images=photographs(size=size), opset=opset)
    inside, all_ops = quantised(path)
    assert inside["Conv"] == all_ops["Conv"] > 0 and inside["Gemm"] > 0
    assert all_ops.total() - inside.total() == others
    file = onnx.load(path)
    assert [(one.domain, one.version) for one in file.opset_import] == [("", opset)]
    assert max(scale_sizes(path)) >= 32
    large = [w for w in file.graph.initializer if len(w.dims) > 1 and w.data_type == 3]
    assert large and max(len(w.raw_data) for w in large) > 100  # int8
    said = {entry.key: entry.value for entry in file.metadata_props}
    assert json.loads(said["class_names"]) == ["cat", "dog"] and "float" not in said
    assert "cosine 0.9" in done.facts[-1]
    x = np.random.default_rng(1).standard_normal((3, 3, *sides(size))).astype(np.float32)
    assert len(onnxruntime.InferenceSession(path).run(None, {"images": x})[0]) == 3


@pytest.mark.parametrize("images", [None, photographs()])
def test_dynamic_weights_are_a_quarter_and_stay_near(images, made, tmp_path):
    path = tmp_path / "small.dynamic.onnx"
    done = export(made("siglip"), path, about=ABOUT, images=images, opset=20)
    graph = onnx.load(path).graph
    assert largest(graph) <= 64
    ops = Counter(node.op_type for node in graph.node)
    assert ops["MatMulInteger"] and ops["Conv"] == 1 and "DequantizeLinear" not in ops
    assert float(done.facts[-1].split()[1].rstrip(",")) > 0.995
    assert max(scale_sizes(path)) == 72  # q, k and v of each unit


def outlying(unit=1e4):
    """A model one of whose FFN units is large, and read by nobody."""
    model = ViT(SPECS["siglip"], rngs=nnx.Rngs(0))
    ffn = model.blocks[1].ffn
    ffn.fc1.bias[...] = ffn.fc1.bias[...].at[3].set(unit)
    ffn.fc2.kernel[...] = ffn.fc2.kernel[...].at[3].set(0.0)
    return model


def test_a_layer_that_costs_the_accuracy_stays_float_and_is_named(tmp_path):
    path, notes = tmp_path / "small.int8.onnx", []
    export(outlying(), path, about=ABOUT, images=photographs(), notes=notes)
    assert len(notes) == 1 and notes[0].startswith("fc2 of block 1 stays float: quantised alone,")
    assert float(notes[0].split("cosine ")[1].split(",")[0]) < 0.995
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(said["float"]) == ["fc2 of block 1"]
    inside, ops = quantised(path)
    assert ops["MatMul"] - inside["MatMul"] == 1


def test_a_model_of_which_nothing_can_be_quantised_is_kept_aside(made, tmp_path, monkeypatch):
    monkeypatch.setattr(Near, "enough", property(lambda self: False))
    with pytest.raises(CheckFailed, match=r"\.failed"):
        export(made("vit"), tmp_path / "small.int8.onnx", about=ABOUT, images=photographs())
    assert (tmp_path / "small.int8.onnx.failed").exists()
    assert not (tmp_path / "small.int8.onnx").exists()
    with pytest.raises(CheckFailed, match="not near enough"):
        export(made("vit"), tmp_path / "small.dynamic.onnx", about=ABOUT)


def test_nearness_is_of_the_worst_output_and_of_classes():
    one, other = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    other[3] = [1, 0, 0, 1]
    found = near({"logits": one, "patches": one}, {"logits": one, "patches": other})
    assert found.same == 1 and found.cosine == pytest.approx((3 + 0.5**0.5) / 4)
    assert near({"logits": one}, {"logits": other}).same == 0.75
    assert not Near(float("nan"), 1.0).enough and not Near(1.0, 0.9).enough
    assert Near(0.996, 0.96).enough


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (None, "--images FOLDER"),
        (photographs(20), "64 images or more.* got 20"),
        (photographs(64, size=32), r"\[n, 16, 16, 3\].* got uint8 \[64, 32, 32, 3\]"),
        (photographs(64, channels=1), r"got uint8 \[64, 16, 16, 1\]"),
        (photographs(64).astype(np.float32), "got float32"),
    ],
)
def test_what_cannot_calibrate_is_refused(images, said, made, tmp_path):
    with pytest.raises(ExportError, match=said):
        export(made("vit"), tmp_path / "small.int8.onnx", about=ABOUT, images=images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "about"), [("vit, pruned", ABOUT), ("grey", GREY)])
def test_the_command_calibrates_on_a_folder_and_compares_on_another(
    name, about, made, folder, tmp_path, capsys
):
    model = tmp_path / "model.safetensors"
    save(made(name), model, about=about)
    outs = [str(tmp_path / file) for file in ("a.onnx", "a.int8.onnx", "a.stablehlo")]
    given = ["--images", str(folder), "--test", str(folder)]
    assert __main__.main([str(model), *outs, *given]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.rsplit(maxsplit=3) for line in lines[-4:-1]]
    assert [row[0] for row in table] == outs and "top-1 (%)" in lines[-7]
    assert lines[-1].startswith("ONNX runs on one thread here; python -m spvit_jax.measure")
    float32, int8, stablehlo = (float(row[1]) for row in table)
    test = open_test(str(folder))
    images = np.stack([np.asarray(test[i]["image"].centre(16, 16)) for i in range(len(test))])
    normalised = Normalise(about.mean, about.std)(images)
    right = nnx.jit(lambda m, x: m(x))(made(name), normalised).argmax(-1)
    right = right == np.array([test[i]["label"] for i in range(len(test))])
    assert float32 == pytest.approx(100 * float(right.mean()), abs=0.01)
    assert float32 == stablehlo and abs(float32 - int8) < 10
    assert all(float(row[3]) > 0 for row in table)


def test_without_labels_the_table_has_cosines(made, folder, tmp_path, capsys):
    model = tmp_path / "model.safetensors"
    save(made("siglip"), model, about=PLAIN)
    for file in (folder / "b").iterdir():
        file.rename(folder / "a" / file.name)
    out = str(tmp_path / "a.dynamic.onnx")
    assert __main__.main([str(model), out, "--test", str(folder / "a")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cosine" in lines[-5] and float(lines[-3].split("JAX")[1].split()[0]) == 1
    assert 0.99 < float(lines[-2].split()[1]) < 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.int8.onnx"], "--images FOLDER"),
        (["a.int8.onnx", "--images", "nowhere"], "nowhere: there is no such folder"),
        (["a.onnx", "--test", "packaged:fashion_mnist"], "10 classes, the model 7"),
    ],
)
def test_the_command_refuses_before_it_writes(arguments, said, made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(made("vit"), tmp_path / "model.safetensors", about=ABOUT)
    assert __main__.main(["model.safetensors", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_grey_is_the_luma_that_training_sees():
    images = photographs()
    used = Preprocess.of(ViT(SPECS["grey"], rngs=nnx.Rngs(0)), GREY, [])
    expected = 255 * np.asarray(Normalise((0.0,), (1.0,))(images))
    np.testing.assert_allclose(as_seen(images, used), expected, atol=0.51)
    assert as_seen(images, used).shape == (64, 16, 16, 1)


def test_photographs_are_as_oblong_as_the_model_sees(folder):
    used = Preprocess.of(ViT(SPECS["average"], rngs=nnx.Rngs(0)), PLAIN, [])
    found = pixels(open_images(str(folder)), used, range(3))
    assert found.shape == (3, 32, 8, 3) and found.dtype == np.uint8


def test_every_part_of_a_network_has_a_name(made, tmp_path):
    named = set()
    for name in ("dinov3, pruned", "swin"):
        export(made(name), tmp_path / "small.onnx", about=ABOUT)
        nodes = onnx.load(tmp_path / "small.onnx").graph.node
        paths = [n.name.split(".") for n in nodes if n.op_type in ("MatMul", "Gemm", "Conv")]
        assert all(len(path) > 1 for path in paths)
        named |= {path[-2] for path in paths}
    assert named == set(KINDS)
