"""ONNX files against the models they were written from, in onnxruntime."""

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

from spvit_jax.convert import About
from spvit_jax.export import export
from spvit_jax.export import onnx as onnx_files
from spvit_jax.export.onnx import onnx_model
from spvit_jax.export.outputs import named_outputs
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.models import VARIANTS, Swin, ViT
from spvit_jax.single_path import architecture
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.sizes import sides
from tests.export.conftest import SPECS

CUTS = {"swin": ["", ", pruned", ", narrow"], "oblong_swin": ["", ", pruned"], "regnet": [""]}
MODELS = [kind + cut for kind in SPECS for cut in CUTS.get(kind, ["", ", pruned", ", merged"])]
ABOUT = About(("cat", "dog"), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), 0.9)


def preprocess(model, about=ABOUT):
    if getattr(model.spec, "channels", 3) == 1:
        about = About(about.class_names, (0.4,), (0.2,), 0.9)
    return Preprocess.of(model, about, [])


def folded(model):
    return model if model.architecture is None else fold(model, batch_norm=True)


def pixels(model, batch, seed=0):
    spec = model.spec
    shape = (batch, *sides(spec.image_size), getattr(spec, "channels", 3))
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def normalised(model, images):
    used = preprocess(model)
    return ((images / 255 - used.mean) / used.std).astype(np.float32)


def compare(made, model, batches=(1, 3, 16)):
    """Runs a file at several batch sizes on the same images, which the model sees at once."""
    session = onnxruntime.InferenceSession(made.SerializeToString())
    names = [output.name for output in session.get_outputs()]
    x = normalised(model, pixels(model, max(batches)))
    expected = nnx.jit(named_outputs)(model, x)
    assert sorted(expected) == sorted(names)
    for batch in batches:
        found = session.run(names, {"images": x[:batch].transpose(0, 3, 1, 2)})
        for name, value in zip(names, found, strict=True):
            np.testing.assert_allclose(value, expected[name][:batch], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_computes_in_onnxruntime_what_it_does_here(name, made):
    model = folded(made(name))
    file = onnx_model(model, preprocess(model))
    onnx.checker.check_model(file, full_check=True)
    compare(file, model)


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize(
    "name", ["vit", "siglip, merged", "clip, pruned", "swin, pruned", "siglip, narrow"]
)
def test_newer_operators_compute_the_same(name, opset, made):
    model = folded(made(name))
    file = onnx_model(model, preprocess(model), opset=opset)
    onnx.checker.check_model(file, full_check=True)
    kinds = {node.op_type for node in file.graph.node}
    assert ("Gelu" in kinds) == (name != "clip, pruned")
    assert ("Attention" in kinds) == (
        opset == 23 and name in ("vit", "siglip, merged", "siglip, narrow")
    )
    compare(file, model, batches=(2,))


@pytest.mark.parametrize("pixel_kind", ["float32", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_go_in_as_they_were_asked_for(pixel_kind, layout, made):
    model = made("vit")
    file = onnx_model(model, preprocess(model), pixels=pixel_kind, layout=layout)
    session = onnxruntime.InferenceSession(file.SerializeToString())
    raw = pixels(model, 2)
    x = raw if pixel_kind == "uint8" else normalised(model, raw)
    (found,) = session.run(None, {"images": x if layout == "NHWC" else x.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, model(normalised(model, raw)), atol=1e-5)


def test_half_precision_is_near_and_half_as_large(made):
    model = folded(made("dinov3, merged"))
    whole, half = (onnx_model(model, preprocess(model), dtype=d) for d in (np.float32, np.float16))
    sizes = [
        sum(len(w.raw_data) for w in f.graph.initializer if w.data_type in (1, 10))
        for f in (whole, half)
    ]
    assert sizes[1] < 0.51 * sizes[0]
    x = normalised(model, pixels(model, 2))
    (found,) = onnxruntime.InferenceSession(half.SerializeToString()).run(
        None, {"images": x.transpose(0, 3, 1, 2)}
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, model(x), atol=1e-2)


def built(kind, spec, found=None):
    model = kind(spec, rngs=nnx.Rngs(0))
    return model if found is None else fold(prune(model, found), batch_norm=True)


@pytest.mark.parametrize(
    ("variant", "published", "most"),
    [("deit_base_patch16_224", "spvit_deit_base", 400), ("swin_tiny_patch4_window7_224", "", 550)],
)
def test_published_sizes_have_few_nodes(variant, published, most):
    """Counted on models of few features: nodes do not know how wide they are."""
    spec = VARIANTS[variant]
    if isinstance(spec, type(VARIANTS["deit_base_patch16_224"])):
        narrow = dataclasses.replace(spec, width=24, hidden=24)
        found = architecture.load(f"configs/architectures/{published}.json")
        found = dataclasses.replace(found, ffn=tuple(min(w, 24) for w in found.widths))
        model = built(ViT, narrow, found)
    else:
        narrow = dataclasses.replace(spec, width=24, hidden=(8,) * 4)
        model = built(Swin, narrow)
    file = onnx_model(model, Preprocess.of(model, About(), []))
    assert len(file.graph.node) <= most
    kinds = {node.op_type for node in file.graph.node}
    assert {"Conv", "LayerNormalization", "Gemm", "Softmax"} <= kinds


def test_a_file_says_what_it_is(made, tmp_path):
    model, path = made("vit, merged"), tmp_path / "small.onnx"
    done = export(model, path, about=ABOUT, source="here")
    assert done.files == (path, tmp_path / "small.preprocess.json")
    said = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(said["class_names"]) == ["cat", "dog"]
    assert json.loads(said["mean"]) == [0.4, 0.5, 0.6] and said["source"] == "here"
    assert json.loads(said["architecture"])["merges"] == [5, 3, 0]
    assert int(said["macs"]) == model.architecture.macs(model.spec)
    session = onnxruntime.InferenceSession(path)
    assert [i.name for i in session.get_inputs()] == ["images"]
    assert session.get_outputs()[0].shape == ["batch", 7]
    beside = json.loads((tmp_path / "small.preprocess.json").read_text())
    assert beside["resize"] == [round(16 / 0.9)] * 2 and beside["crop"] == [16, 16]


def test_large_weights_lie_beside_the_file(made, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files.file, "LIMIT", 10_000)
    model, path = made("vit"), tmp_path / "large.onnx"
    done = export(model, path, about=ABOUT)
    beside = tmp_path / "large.onnx.data"
    assert beside in done.files and path.stat().st_size < beside.stat().st_size
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for file in (path, beside):
        file.rename(moved / file.name)
    x = normalised(model, pixels(model, 2))
    session = onnxruntime.InferenceSession(moved / "large.onnx")
    (found,) = session.run(None, {"images": x.transpose(0, 3, 1, 2)})
    np.testing.assert_allclose(found, model(x), atol=1e-5)
