"""A model as a LiteRT (TFLite) file, from its StableHLO at one batch size: for phones."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as exporting

from spvit_jax.convert import forms
from spvit_jax.export.near import Run
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.export.runtimes import arranged
from spvit_jax.export.stablehlo import input_struct, program

INPUT = "images"
SIGNATURE = "serving_default"


def save_litert(
    model: Any,
    preprocess: Preprocess,
    path: Path,
    *,
    batch: int = 1,
    pixels: str = "float32",
    layout: str = "NHWC",
    int8: bool = False,
) -> None:
    """Writes a flatbuffer of one signature, from ``images`` to outputs by name.

    Args:
      model: dense or folded.
      preprocess: how images become its input.
      path: conventionally ``….tflite``.
      batch: images at once, always as many.
      pixels: "float32", normalised, or "uint8", as they are decoded.
      layout: of the images, "NHWC" or "NCHW".
      int8: whether weights are 8 bits; products are then computed so too, the rest in float32.
    """
    weights, run = forms.variables(model), program(model, preprocess, pixels, layout)
    images = input_struct(preprocess, batch, pixels, layout)
    made = exporting.export(jax.jit(lambda x: run(weights, x)), platforms=("cpu",))(images)
    names = list(jax.tree.unflatten(made.out_tree, range(len(made.out_avals))))
    flat = _converted(str(made.mlir_module()), names)
    path.write_bytes(_with_int8_weights(flat) if int8 else flat)


def _converted(module: str, names: list[str]) -> bytes:
    from litert_converter import converter_api_ext as converter
    from litert_converter.mlir import ir, passmanager

    context = ir.Context()
    converter.prepare_mlir_context(context)
    parsed = ir.Module.parse(module, context)
    with context:
        public = (op for op in parsed.body.operations if '"main"' in str(op.attributes["sym_name"]))
        converter.set_signature(next(public), SIGNATURE, [INPUT], names)
        passes = passmanager.PassManager()
        converter.run_convert_to_tfl_passes(parsed, passes, converter.ConvertToTFLConfig())
        return converter.export_flatbuffer_to_bytes(parsed.operation)


def _with_int8_weights(flat: bytes) -> bytes:
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(bytearray(flat))
    made.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    unheard = io.StringIO()  # its bars and sums
    with contextlib.redirect_stdout(unheard), contextlib.redirect_stderr(unheard):
        return bytes(made.quantize().quantized_model)


class Program(NamedTuple):
    """A LiteRT file as a function.

    Attributes:
      run: gives outputs by name, of any number of images; as many at once as the file takes.
      shape: of what it takes at once.
      raw: whether that is uint8.
    """

    run: Callable[[np.ndarray], dict[str, np.ndarray]]
    shape: tuple[int, ...]
    raw: bool


def read_litert(path: Path, threads: int = 0) -> Program:
    """Loads a file into LiteRT's interpreter; 0 threads: its own choice."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads or None).get_signature_runner(SIGNATURE)
    details = runner.get_input_details()[INPUT]
    shape = tuple(int(n) for n in details["shape"])
    batch = shape[0]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        rows = -(-len(images) // batch) * batch
        padded = np.concatenate([images, np.repeat(images[-1:], rows - len(images), 0)])
        # What a runner gives is its own memory, which the next call overwrites.
        parts = [
            {name: value.copy() for name, value in runner(images=padded[i : i + batch]).items()}
            for i in range(0, rows, batch)
        ]
        return {name: np.concatenate([p[name] for p in parts])[: len(images)] for name in parts[0]}

    return Program(run, shape, details["dtype"] == np.uint8)


def run_litert(path: Path, preprocess: Preprocess) -> Run:
    """Loads a file; the function takes any number of images as decoded."""
    program = read_litert(path)
    layout = "NHWC" if program.shape[3] == preprocess.channels else "NCHW"
    return lambda pixels: program.run(arranged(pixels, preprocess, program.raw, layout))
