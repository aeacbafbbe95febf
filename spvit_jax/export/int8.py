"""int8 ONNX files by onnxruntime: products and convolutions quantised, but what costs accuracy.

Activations are uint8, weights int8 with a scale for each channel. Of these, seven bits are used:
processors without VNNI add pairs of products in 16 bits, which saturate with eight. Statically,
QuantizeLinear and DequantizeLinear stand around what is quantised, with ranges found on
photographs: a part of the network that costs too much alone stays in float. Dynamically, ranges are
found as the file runs.
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import (
    CalibrationDataReader,
    PercentileCalibrater,
    TensorsData,
)
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.shape_inference import quant_pre_process

from spvit_jax.export.errors import CheckFailed, ExportError
from spvit_jax.export.near import COSINE, SAME, Near
from spvit_jax.export.onnx import LIMIT

PERCENTILE = 99.999  # of an activation's values, within its range
PRODUCTS = ("MatMul", "Gemm")  # whose results stay float: runtimes add biases to them
KINDS = {  # parts of a network, by the names that the emitted nodes have
    "patches": "the patch embedding",
    "qkv": "qkv",
    "products": "attention's products",
    "out": "attention's output projection",
    "fc1": "fc1",
    "gate": "the gate",
    "fc2": "fc2",
    "convolution": "the convolution",
    "merging": "patch merging",
    "head": "the head",
}
Parts = dict[str, list[str]]  # nodes by what they are, such as "fc2 of block 3"
Judge = Callable[[Path], Near]


def static(
    made: onnx.ModelProto, inputs: Iterable[np.ndarray], judge: Judge, path: Path
) -> tuple[str, list[str]]:
    """Writes ``made`` quantised, with as few parts in float as it takes to stay near.

    Each kind of part is quantised alone, of a kind that costs more than its share each block, and
    of these the costliest stay float, as few as leave the file ``Near.enough``.

    Args:
      made: a float32 model as it is emitted.
      inputs: what it is calibrated on, batch by batch.
      judge: says how near a file comes to the model, on other photographs.
      path: to write.

    Returns:
      How much is quantised, and a sentence for each part that stays float.

    Raises:
      CheckFailed: no part can be quantised.
      ExportError: the model is too large.
    """
    with _prepared(made) as file:
        parts = _parts(onnx.load(file), ("Conv", *PRODUCTS))
        nodes = _nodes(parts)
        ranges = _ranges(file, nodes, inputs)

        def near(some: Parts, floats: Iterable[str] = ()) -> Near:
            _save(_quantised(file, ranges, _nodes(some)), made, path, list(floats))
            return judge(path)

        if near(parts).enough:
            return _amount(nodes, nodes), []
        costs: dict[str, Near] = {}
        parts = _divided(parts, near, costs)
        order = sorted(parts, key=lambda name: -_loss(costs[name]))

        def without(count: int) -> Near:
            return near({name: parts[name] for name in order[count:]}, order[:count])

        low, high = 1, len(order)  # how many of the costliest stay float
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if without(middle).enough else (middle + 1, high)
        if low == len(order):
            raise CheckFailed("whatever is quantised of this model takes it too far away")
        without(low)
    quantised = _nodes({name: parts[name] for name in order[low:]})
    notes = [
        f"{name} stays float: quantised alone, {costs[name].summary()}" for name in order[:low]
    ]
    return _amount(quantised, nodes), notes


def _nodes(parts: Parts) -> list[str]:
    return [node for nodes in parts.values() for node in nodes]


def _amount(quantised: list[str], nodes: list[str]) -> str:
    return f"{len(quantised)} of {len(nodes)} products and convolutions in int8"


def dynamic(made: onnx.ModelProto, path: Path) -> None:
    """Writes ``made`` with quantised weights of products; ranges are found as it runs."""
    with _prepared(made) as file:
        nodes = [n for part in _parts(onnx.load(file), PRODUCTS).values() for n in part]
        with _quiet():
            quantize_dynamic(
                file,
                path,
                op_types_to_quantize=list(PRODUCTS),
                nodes_to_quantize=nodes,
                per_channel=True,
                reduce_range=True,
                weight_type=QuantType.QInt8,
            )
    _save(onnx.load(path), made, path, [])


def _divided(parts: Parts, near: Callable[[Parts], Near], costs: dict[str, Near]) -> Parts:
    """Kinds of parts, and those that cost more than their share block by block.

    ``costs`` gets how near the file stays with each of them quantised alone.
    """
    kinds: dict[str, Parts] = {}
    for name, nodes in parts.items():
        kinds.setdefault(name.split(" of block")[0], {})[name] = nodes
    division: Parts = {}
    for kind, blocks in kinds.items():
        costs[kind] = near(blocks)
        if len(blocks) > 1 and _loss(costs[kind]) > 1 / len(kinds):
            costs |= {name: near({name: nodes}) for name, nodes in blocks.items()}
            division |= blocks
        else:
            division[kind] = _nodes(blocks)
    return division


def _loss(nearness: Near) -> float:
    """What is lost, in units of what may be."""
    lost = max((1 - nearness.cosine) / (1 - COSINE), (1 - nearness.same) / (1 - SAME))
    return lost if np.isfinite(lost) else np.inf


def _parts(prepared: onnx.ModelProto, ops: tuple[str, ...]) -> Parts:
    """What may be quantised; index arithmetic, merging and turning of positions is not."""
    parts: Parts = {}
    for node in prepared.graph.node:
        *where, kind = node.name.split("/")[0].rpartition(".")[0].split(".")
        if node.op_type in ops and kind in KINDS:
            block = f" of block {'.'.join(where[1:])}" if where else ""
            parts.setdefault(KINDS[kind] + block, []).append(node.name)
    return parts


@contextlib.contextmanager
def _prepared(made: onnx.ModelProto) -> Iterator[Path]:
    """A file of the model with constants folded and shapes inferred, as quantising expects it."""
    if made.ByteSize() > LIMIT:
        raise ExportError("int8 takes models of up to 2 GB of weights; this one is larger")
    with tempfile.TemporaryDirectory() as folder:
        plain, prepared = Path(folder, "plain.onnx"), Path(folder, "prepared.onnx")
        onnx.save(made, plain)
        with _quiet():
            quant_pre_process(plain, prepared, skip_symbolic_shape=True)  # the batch is free
        yield prepared


class _Calibrater(PercentileCalibrater):
    """Collects histograms of the tensors that will be quantised, and of no others."""

    nodes: frozenset[str] = frozenset()

    def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict]:
        """Inputs of the nodes that are no weights, and outputs of convolutions."""
        known, infos = super().select_tensors_to_calibrate(model)
        wanted: set[str] = set()
        for node in model.graph.node:
            if node.name in self.nodes:
                wanted.update(node.input, node.output if node.op_type == "Conv" else ())
        return known & wanted, infos


class _Batch(CalibrationDataReader):
    """One batch: of several, all activations would be kept."""

    def __init__(self, images: np.ndarray):
        self._left = [{"images": images}]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Gives the batch, then None."""
        return self._left.pop() if self._left else None


def _ranges(file: Path, nodes: list[str], inputs: Iterable[np.ndarray]) -> TensorsData:
    """Ranges of activations; memory is that of one batch."""
    with tempfile.TemporaryDirectory() as folder, _quiet():
        calibrater = _Calibrater(
            file,
            ["Conv", *PRODUCTS],
            str(Path(folder, "augmented.onnx")),
            symmetric=False,
            num_bins=2048,
            percentile=PERCENTILE,
        )
        calibrater.nodes = frozenset(nodes)
        calibrater.augment_graph()
        calibrater.create_inference_session()
        for batch in inputs:
            calibrater.collect_data(_Batch(batch))
        return calibrater.compute_data()


def _quantised(file: Path, ranges: TensorsData, nodes: list[str]) -> onnx.ModelProto:
    with _quiet():
        quantizer = QDQQuantizer(
            onnx.load(file),
            per_channel=True,
            reduce_range=True,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=nodes,
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv", *PRODUCTS],
            extra_options={"OpTypesToExcludeOutputQuantization": [*PRODUCTS]},
        )
        quantizer.quantize_model()
    return quantizer.model.model


def _save(model: onnx.ModelProto, made: onnx.ModelProto, path: Path, floats: list[str]) -> None:
    """Saves a quantised model with what the float one says of itself, and what stays float."""
    used = {node.domain for node in model.graph.node}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:], model.metadata_props[:]
    model.opset_import.extend(opsets)
    metadata = {entry.key: entry.value for entry in made.metadata_props}
    onnx.helper.set_model_props(model, metadata | ({"float": json.dumps(floats)} if floats else {}))
    model.producer_name = made.producer_name
    onnx.save(model, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what onnxruntime's tools print and log of their progress to themselves."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
