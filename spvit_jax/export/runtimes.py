"""Running exported files: from uint8 pixels ``[batch, height, width, channels]`` to outputs."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from spvit_jax.export.preprocess import Preprocess

Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def run_onnx(path: Path, preprocess: Preprocess, *, threads: int = 0) -> Run:
    """Loads an ONNX file into onnxruntime, on CPUs; the file says what it takes.

    Args:
      path: the file.
      preprocess: how pixels become its input.
      threads: of one call; 0: all cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]
    layout = "NHWC" if images.shape[3] == preprocess.channels != images.shape[1] else "NCHW"
    raw = images.type == "tensor(uint8)"

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        given = arranged(pixels, preprocess, raw, layout)
        return dict(zip(names, session.run(names, {images.name: given}), strict=True))

    return run


def run_stablehlo(path: Path, preprocess: Preprocess) -> Run:
    """Loads a StableHLO file, and its weights if they lie beside it."""
    import safetensors.numpy
    from jax import export as exporting

    from spvit_jax.export.stablehlo import weights_beside

    program = exporting.deserialize(bytearray(path.read_bytes()))
    images = program.in_avals[-1]
    first: tuple = ()
    if len(program.in_avals) > 1:
        first = (safetensors.numpy.load_file(weights_beside(path)),)
    layout = "NHWC" if images.shape[3] == preprocess.channels else "NCHW"

    def run(pixels: np.ndarray) -> dict[str, np.ndarray]:
        given = arranged(pixels, preprocess, images.dtype == np.uint8, layout)
        return {name: np.asarray(value) for name, value in program.call(*first, given).items()}

    return run


def arranged(pixels: np.ndarray, preprocess: Preprocess, raw: bool, layout: str) -> np.ndarray:
    """Pixels as a file takes them: normalised unless it does that, channels first or last."""
    x = pixels
    if not raw:
        mean, std = (np.asarray(v, np.float32) for v in (preprocess.mean, preprocess.std))
        x = ((pixels / np.float32(255) - mean) / std).astype(np.float32)
    return np.ascontiguousarray(x if layout == "NHWC" else x.transpose(0, 3, 1, 2))
