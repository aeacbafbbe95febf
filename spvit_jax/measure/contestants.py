"""``Contestant``: a model in one runtime, from whatever file it is in."""

import contextlib
import dataclasses
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from spvit_jax import pretrained
from spvit_jax.convert import USUAL, About, Facts, about_of, load, save
from spvit_jax.convert.fetch import fetch
from spvit_jax.export.export import exportable, macs, preprocess_beside
from spvit_jax.export.outputs import named_outputs
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.export.runtimes import (
    arranged,
    onnx_session,
    read_stablehlo,
    stablehlo_input,
)
from spvit_jax.measure.errors import MeasureError
from spvit_jax.measure.turns import compiled
from spvit_jax.remote import public, raise_transient

Outputs = dict[str, Any]  # logits [batch, classes], features [batch, D], …
Bind = Callable[[np.ndarray], Callable[[], Outputs]]


class Runtime(NamedTuple):
    """What a person calls a runtime, the modules it takes, itself the first, and their extra."""

    title: str
    modules: tuple[str, ...]
    extra: str = ""


RUNTIMES = {
    "jax": Runtime("JAX", ("jax",)),
    "onnxruntime": Runtime("onnxruntime", ("onnxruntime", "onnx"), "export"),
    "openvino": Runtime("OpenVINO", ("openvino", "onnx"), "openvino"),
    "torch": Runtime("PyTorch", ("torch",), "torch"),
    "litert": Runtime("LiteRT", ("ai_edge_litert",), "litert"),
}
FILES = {".onnx": ("onnxruntime", "openvino"), ".stablehlo": ("jax",), ".tflite": ("litert",)}
CHECKPOINT = ("jax", "torch")
UNSAID = About()


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A model in a runtime.

    Attributes:
      name: the file's, or whatever it was given by.
      runtime: one of ``RUNTIMES``.
      size: bytes on disk; 0: it is no file here.
      macs: multiply-accumulates per image; 0: nobody says.
      preprocess: how images become its input.
      bind: makes, of uint8 pixels ``[batch, height, width, channels]``, the call that is timed:
        it waits for the outputs, and the pixels are where and as it takes them.
    """

    name: str
    runtime: str
    size: int
    macs: int
    preprocess: Preprocess
    bind: Bind


def runtimes(name: str, asked: Sequence[str]) -> tuple[str, ...]:
    """What a file runs in: those asked for that can, else JAX, or what is installed for ONNX."""
    able = FILES.get(Path(name).suffix, CHECKPOINT)
    choice = tuple(runtime for runtime in able if runtime in asked)
    if choice:
        return choice
    return able[:1] + tuple(r for r in able[1:] if able is not CHECKPOINT and not _missing(r))


def _missing(runtime: str) -> list[str]:
    modules = RUNTIMES[runtime].modules
    return sorted(name for name in modules if importlib.util.find_spec(name) is None)


def open_contestants(
    name: str,
    in_runtimes: Sequence[str],
    threads: int,
    facts: Facts,
    notes: list[str],
    about: About = UNSAID,
) -> Iterator[Contestant]:
    """Opens a model in each of the runtimes.

    Args:
      name: a file, or a checkpoint of any form as ``predict`` takes it.
      in_runtimes: keys of ``RUNTIMES``.
      threads: of one call.
      facts: what a user says of checkpoints.
      notes: gets a sentence for what had to be assumed.
      about: mean, std and crop ratio of checkpoints that do not say them.

    Raises:
      MeasureError: it cannot be read or run, or a runtime is not installed.
      CheckpointError: a checkpoint that does not convert.
      ExportError: a model that is none to run.
    """
    for runtime in in_runtimes:
        if missing := _missing(runtime):
            are = "is" if len(missing) == 1 else "are"
            raise MeasureError(
                f"{name}: {', '.join(missing)} {are} not installed; pip install"
                f" 'spvit_jax[{RUNTIMES[runtime].extra}]'"
            )
    if Path(name).suffix not in FILES:
        yield from _checkpoint(name, in_runtimes, threads, facts, notes, about)
        return
    path = Path(name)
    if not path.is_file():
        raise MeasureError(f"no file at {name}; python -m spvit_jax.export writes one of a model")
    if path.suffix == ".stablehlo":
        yield _stablehlo(path, notes)
    if path.suffix == ".tflite":
        yield _litert(path, threads, notes)
    for runtime in in_runtimes if path.suffix == ".onnx" else ():
        yield _onnx(path, runtime, threads, notes)


def _checkpoint(
    name: str,
    in_runtimes: Sequence[str],
    threads: int,
    facts: Facts,
    notes: list[str],
    about: About,
) -> Iterator[Contestant]:
    network = load(name, facts=facts, notes=notes)
    model = exportable(pretrained.decided(network, notes))
    known, fields = about_of(name), ("mean", "std", "crop_ratio")
    preprocessing = {field: getattr(known, field) or getattr(about, field) for field in fields}
    preprocess = Preprocess.of(model, dataclasses.replace(known, **preprocessing), notes)
    size = os.path.getsize(fetch(name))
    for runtime in in_runtimes:
        bind = _jax(model, preprocess) if runtime == "jax" else _torch(model, preprocess, threads)
        yield Contestant(public(name), runtime, size, macs(model), preprocess, bind)


def of_model(name: str, model: Any, about: About) -> Contestant:
    """A model in memory, dense or folded, in JAX; it has no size on a disk."""
    preprocess = Preprocess.of(model, about, [])
    return Contestant(name, "jax", 0, macs(model), preprocess, _jax(model, preprocess))


def _jax(model: Any, preprocess: Preprocess) -> Bind:
    graph, state = nnx.split(model)

    def run(images: jax.Array) -> Outputs:
        return named_outputs(nnx.merge(graph, state, copy=True), images)

    return _compiling(run, lambda pixels: arranged(pixels, preprocess, False, "NHWC"))


def _compiling(
    run: Callable[[jax.Array], Outputs], arrange: Callable[[np.ndarray], np.ndarray]
) -> Bind:
    """Binds a function of JAX's, compiled once for each batch size."""
    programs: dict[int, Callable] = {}

    def bind(pixels: np.ndarray) -> Callable[[], Outputs]:
        images = jax.device_put(arrange(pixels), jax.local_devices()[0])
        program = programs.get(len(pixels)) or compiled(run, images)
        programs[len(pixels)] = program
        return lambda: jax.block_until_ready(program(images))

    return bind


def _torch(model: Any, preprocess: Preprocess, threads: int) -> Bind:
    import torch

    from spvit_jax.export import spvit_torch

    with tempfile.TemporaryDirectory() as folder:
        save(model, os.path.join(folder, "model.safetensors"))
        network = spvit_torch.load(os.path.join(folder, "model.safetensors"))
    torch.set_num_threads(threads)
    name = "logits" if model.spec.classes else "features"

    def bind(pixels: np.ndarray) -> Callable[[], Outputs]:
        images = torch.from_numpy(arranged(pixels, preprocess, False, "NCHW"))

        def call() -> Outputs:
            with torch.inference_mode():
                return {name: network(images)}

        return call

    return bind


def _stablehlo(path: Path, notes: list[str]) -> Contestant:
    with _reading(path, "JAX"):
        program = read_stablehlo(path)
    preprocess = _preprocess(path, program.images.shape, {}, notes)
    size = sum(file.stat().st_size for file in program.files)
    bind = _compiling(program.run, lambda x: stablehlo_input(program.images, x, preprocess))
    return Contestant(public(path), "jax", size, 0, preprocess, bind)


def _litert(path: Path, threads: int, notes: list[str]) -> Contestant:
    from spvit_jax.export.litert import read_litert

    with _reading(path, "LiteRT"):
        program = read_litert(path, threads)
    preprocess = _preprocess(path, program.shape, {}, notes)
    layout = "NHWC" if program.shape[3] == preprocess.channels else "NCHW"

    def bind(pixels: np.ndarray) -> Callable[[], Outputs]:
        images = arranged(pixels, preprocess, program.raw, layout)
        return lambda: program.run(images)

    return Contestant(public(path), "litert", path.stat().st_size, 0, preprocess, bind)


def _onnx(path: Path, runtime: str, threads: int, notes: list[str]) -> Contestant:
    import onnx

    with _reading(path, "ONNX"):
        made = onnx.load(path, load_external_data=False)
        metadata = {entry.key: entry.value for entry in made.metadata_props}
        weights = {weight.name for weight in made.graph.initializer}
        (images,) = (i for i in made.graph.input if i.name not in weights)
        shape = [d.dim_value for d in images.type.tensor_type.shape.dim]  # 0: any
        raw = images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    if len(shape) != 4 or shape[0]:
        raise MeasureError(
            f"{path} takes input {shape}, 0 being any number; expected a batch of any number of"
            " images, as python -m spvit_jax.export writes it"
        )
    preprocess = _preprocess(path, shape, metadata, notes)
    layout = "NHWC" if shape[3] == preprocess.channels != shape[1] else "NCHW"
    with _reading(path, RUNTIMES[runtime].title):
        run = (_onnxruntime if runtime == "onnxruntime" else _openvino)(path, threads)
    data = path.with_name(f"{path.name}.data")
    size = path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    count = metadata.get("macs", "")
    return Contestant(
        public(path),
        runtime,
        size,
        int(count) if count.isdecimal() else 0,
        preprocess,
        lambda pixels: run(arranged(pixels, preprocess, raw, layout)),
    )


def _onnxruntime(path: Path, threads: int) -> Callable[[np.ndarray], Callable[[], Outputs]]:
    session = onnx_session(path, threads)
    images = session.get_inputs()[0].name
    names = [output.name for output in session.get_outputs()]
    return lambda x: lambda: dict(zip(names, session.run(names, {images: x}), strict=True))


def _openvino(path: Path, threads: int) -> Callable[[np.ndarray], Callable[[], Outputs]]:
    import openvino

    core, programs = openvino.Core(), {}
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # as the file says; its default is less on new CPUs
    }

    def run(x: np.ndarray) -> Callable[[], Outputs]:
        if x.shape not in programs:
            network = core.read_model(path)
            network.reshape(list(x.shape))
            programs[x.shape] = core.compile_model(network, "CPU", options)
        program = programs[x.shape]
        request = program.create_infer_request()
        names = [output.get_any_name() for output in program.outputs]

        def call() -> Outputs:
            results = request.infer([x], share_inputs=True)
            return dict(zip(names, results.values(), strict=True))

        return call

    core.read_model(path)  # whether it can be read is said now
    return run


def _preprocess(
    path: Path, shape: Sequence[Any], metadata: dict[str, str], notes: list[str]
) -> Preprocess:
    """What lies beside a file, or it says, of how images become its input; else ImageNet's usual.

    Args:
      path: of the file.
      shape: of its input, NCHW or NHWC.
      metadata: of the file, values that are no text in JSON.
      notes: gets a sentence where nothing says it.
    """
    first = shape[1] in (1, 3)
    channels, sides = (shape[1], shape[2:]) if first else (shape[3], shape[1:3])
    beside = preprocess_beside(path)
    try:
        if beside.is_file():
            preprocess = Preprocess.from_json(beside.read_text(encoding="utf-8"))
        elif {"mean", "std", "resize", "crop"} <= set(metadata):
            numbers = {
                name: json.loads(metadata[name]) for name in ("mean", "std", "resize", "crop")
            }
            names = json.loads(metadata.get("class_names", "[]"))
            text = {"interpolation": metadata.get("interpolation", ""), "class_names": names}
            preprocess = Preprocess.from_json(json.dumps({"channels": channels, **numbers, **text}))
        else:
            size = int(sides[0]), int(sides[1])
            usual = USUAL.mean[:channels], USUAL.std[:channels]
            ratio = USUAL.crop_ratio or 1
            resize = round(size[0] / ratio), round(size[1] / ratio)
            preprocess = Preprocess(resize, size, "bicubic", int(channels), *usual, ())
            notes.append(
                f"{path}: neither its metadata nor a {beside.name} beside it says mean, std and"
                f" resizing: ImageNet's usual, taken here"
            )
    except (ValueError, TypeError, OSError) as error:
        raise_transient(error)
        raise MeasureError(
            f"{path}: its preprocessing cannot be read: {error}; export the model again"
        ) from error
    if preprocess.crop != tuple(sides) or preprocess.channels != channels:
        raise MeasureError(
            f"{path} takes images of {sides} pixels and {channels} channels, its preprocessing"
            f" gives {preprocess.crop} and {preprocess.channels}; export the model again"
        )
    return preprocess


@contextlib.contextmanager
def _reading(path: Path, reader: str) -> Iterator[None]:
    """Whatever a runtime runs into in the bytes of a file becomes one error."""
    try:
        yield
    except Exception as error:
        raise_transient(error)
        said = str(error).strip() or type(error).__name__
        raise MeasureError(
            f"{path}: {reader} cannot read it: {said.splitlines()[0]}; export the model again"
        ) from error
