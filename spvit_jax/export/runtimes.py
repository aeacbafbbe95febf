"""Running exported files: from uint8 pixels ``[batch, height, width, channels]`` to outputs."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from spvit_jax.export.near import Run
from spvit_jax.export.preprocess import Preprocess


def onnx_session(path: Path, threads: int = 0) -> Any:
    """Loads an ONNX file into onnxruntime, on CPUs.

    Args:
      path: the file.
      threads: of one call; 0: all cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")  # others run in between
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(path: Path, preprocess: Preprocess, *, threads: int = 0) -> Run:
    """Loads an ONNX file into onnxruntime; the file says what it takes. Arguments as above."""
    session = onnx_session(path, threads)
    (images,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    layout = "NHWC" if images.shape[3] == preprocess.channels != images.shape[1] else "NCHW"
    raw = images.type == "tensor(uint8)"

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        batch = arranged(pixels, preprocess, raw, layout)
        return dict(zip(names, session.run(names, {images.name: batch}), strict=True))

    return run


class Program(NamedTuple):
    """A StableHLO file as a function.

    Attributes:
      run: gives outputs by name, of images.
      images: their shape and dtype.
      files: it was read from.
    """

    run: Callable[[jax.Array], dict[str, jax.Array]]
    images: Any
    files: tuple[Path, ...]


def read_stablehlo(path: Path) -> Program:
    """Loads a StableHLO file, and its weights if they lie beside it."""
    import safetensors.numpy
    from jax import export as exporting

    from spvit_jax.export.stablehlo import weights_beside

    program = exporting.deserialize(bytearray(path.read_bytes()))
    if len(program.in_avals) == 1:
        return Program(program.call, program.in_avals[0], (path,))
    beside = weights_beside(path)
    weights = jax.tree.map(jax.numpy.asarray, safetensors.numpy.load_file(beside))
    run = functools.partial(program.call, weights)
    return Program(run, program.in_avals[-1], (path, beside))


def stablehlo_input(images: Any, pixels: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Pixels as a program of ``read_stablehlo`` takes its ``images``."""
    layout = "NHWC" if images.shape[3] == preprocess.channels else "NCHW"
    return arranged(pixels, preprocess, images.dtype == np.uint8, layout)


def run_stablehlo(path: Path, preprocess: Preprocess) -> Run:
    """Loads a StableHLO file, and its weights if they lie beside it."""
    program = read_stablehlo(path)

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        batch = stablehlo_input(program.images, pixels, preprocess)
        outputs = program.run(jax.numpy.asarray(batch))
        return {name: np.asarray(value) for name, value in outputs.items()}

    return run


def arranged(pixels: np.ndarray, preprocess: Preprocess, raw: bool, layout: str) -> np.ndarray:
    """Pixels as a file takes them: normalised unless it does that, channels first or last."""
    x = pixels
    if not raw:
        mean, std = (np.asarray(v, np.float32) for v in (preprocess.mean, preprocess.std))
        x = ((pixels / np.float32(255) - mean) / std).astype(np.float32)
    return np.ascontiguousarray(x if layout == "NHWC" else x.transpose(0, 3, 1, 2))
