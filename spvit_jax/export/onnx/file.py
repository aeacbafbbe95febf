"""A model as an ONNX file: what goes in, what comes out, what it says of itself."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from spvit_jax.export.onnx.graph import Graph
from spvit_jax.export.onnx.networks import outputs
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.models import RegNet

OPSETS = {17: 8, 20: 9, 23: 11}  # and the version of the format that came with each
LIMIT = 2**31 - 2**20  # bytes: what a file of one part may be; larger weights lie beside it
BATCH = "batch"


def onnx_model(
    model: Any,
    preprocess: Preprocess,
    *,
    opset: int = 17,
    pixels: str = "float32",
    layout: str = "NCHW",
    dtype: Any = np.float32,
    metadata: dict[str, Any] | None = None,
) -> onnx.ModelProto:
    """Makes the ONNX model of a dense or folded one.

    Input ``images``; outputs ``logits [batch, classes]``, or of a model without a head
    ``features [batch, D]``; where patches are read ``patches [batch, S*S, D]``.

    Args:
      model: to export.
      preprocess: how images become its input.
      opset: one of ``OPSETS``.
      pixels: "float32", normalised, or "uint8", as they are decoded.
      layout: of the images, "NCHW" or "NHWC".
      dtype: of weights and computation, float32 or float16; input and output stay as they are.
      metadata: more to say in the file, by name.
    """
    graph = Graph(opset, dtype)
    values = outputs(graph, model, _images(graph, preprocess, pixels, layout))
    height, width = preprocess.crop
    shape = (preprocess.channels, height, width)
    shape = shape if layout == "NCHW" else (*shape[1:], shape[0])
    kind = TensorProto.UINT8 if pixels == "uint8" else TensorProto.FLOAT
    images = helper.make_tensor_value_info("images", kind, [BATCH, *shape])
    shown = {}
    for name, value in values.items():
        info = helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *_shape(model, name)])
        shown[name] = (value if graph.dtype == np.float32 else graph.cast(value, np.float32), info)
    made = helper.make_model(
        graph.built([images], shown),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=OPSETS[opset],
        producer_name="spvit_jax",
    )
    helper.set_model_props(made, _metadata(model, preprocess, metadata or {}))
    return made


def _images(graph: Graph, preprocess: Preprocess, pixels: str, layout: str) -> str:
    """The input as normalised NCHW images in the computation's dtype."""
    x = "images"
    if pixels == "uint8":
        x = graph.cast(x, np.float32)
    if layout == "NHWC":
        x = graph.transpose(x, 0, 3, 1, 2)
    if pixels == "uint8":
        mean, std = (
            np.array(v, np.float64)[:, None, None] for v in (preprocess.mean, preprocess.std)
        )
        x = graph.op("Mul", x, (1 / (255 * std)).astype(np.float32))
        x = graph.op("Sub", x, (mean / std).astype(np.float32))
    return x if graph.dtype == np.float32 else graph.cast(x, graph.dtype)


def _shape(model: Any, name: str) -> tuple[int, ...]:
    spec = model.spec
    if name == "logits":
        return (spec.classes,)
    last = spec.blocks[-1]
    return (last.width,) if name == "features" else (math.prod(last.grid), last.width)


def _metadata(model: Any, preprocess: Preprocess, extra: dict[str, Any]) -> dict[str, str]:
    """What a file says of itself; values that are no text are JSON."""
    architecture = None if isinstance(model, RegNet) else model.architecture
    known = {
        **extra,
        "class_names": preprocess.class_names,
        "mean": preprocess.mean,
        "std": preprocess.std,
        "resize": preprocess.resize,
        "crop": preprocess.crop,
        "interpolation": preprocess.interpolation,
        "architecture": architecture and json.loads(architecture.to_json()),
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in known.items()
        if value or value == 0
    }


def save_onnx(made: onnx.ModelProto, path: Path) -> None:
    """Writes it; weights of more than ``LIMIT`` bytes go beside it, into ``NAME.data``."""
    beside = made.ByteSize() > LIMIT
    options: dict[str, Any] = {"save_as_external_data": True, "location": f"{path.name}.data"}
    onnx.save(made, path, **(options if beside else {}))
    onnx.checker.check_model(path, full_check=True)
