"""A model as StableHLO, by ``jax.export``: one file for CPUs, GPUs and TPUs, any batch size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors.numpy
from flax import nnx
from jax import export as exporting

from spvit_jax.convert import forms
from spvit_jax.export.outputs import named_outputs
from spvit_jax.export.preprocess import Preprocess

PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS = ".weights.safetensors"


def save_stablehlo(
    model: Any,
    preprocess: Preprocess,
    path: Path,
    *,
    pixels: str = "float32",
    layout: str = "NHWC",
    beside: bool = False,
) -> None:
    """Writes the compiled-to-be program of ``images``, which gives outputs by name.

    ``jax.export.deserialize`` reads it. With the weights ``beside`` it is a program of
    ``(weights, images)``, and the weights, by name, are in a safetensors file next to it.

    Args:
      model: dense or folded.
      preprocess: how images become its input.
      path: conventionally ``….stablehlo``.
      pixels: "float32", normalised, or "uint8", as they are decoded.
      layout: of the images, "NHWC" or "NCHW".
      beside: whether the weights lie beside the program.
    """
    (batch,) = exporting.symbolic_shape("batch")
    images = input_struct(preprocess, batch, pixels, layout)
    weights = forms.variables(model)
    run = program(model, preprocess, pixels, layout)
    if beside:
        shapes = {name: jax.ShapeDtypeStruct(w.shape, w.dtype) for name, w in weights.items()}
        made = exporting.export(jax.jit(run), platforms=PLATFORMS)(shapes, images)
        arrays = {name: jax.device_get(value) for name, value in weights.items()}
        weights_beside(path).write_bytes(safetensors.numpy.save(arrays))
    else:
        whole = jax.jit(lambda images: run(weights, images))
        made = exporting.export(whole, platforms=PLATFORMS)(images)
    path.write_bytes(made.serialize())


def input_struct(
    preprocess: Preprocess, batch: Any, pixels: str, layout: str
) -> jax.ShapeDtypeStruct:
    """The shape and dtype of what goes in; ``batch`` is a number, or a symbol for any."""
    height, width = preprocess.crop
    shape = (height, width, preprocess.channels)
    shape = shape if layout == "NHWC" else (shape[2], *shape[:2])
    return jax.ShapeDtypeStruct((batch, *shape), jnp.uint8 if pixels == "uint8" else jnp.float32)


def weights_beside(path: Path) -> Path:
    """Names the file of a program's weights."""
    return path.with_name(path.stem + WEIGHTS)


def program(model: Any, preprocess: Preprocess, pixels: str, layout: str) -> Callable:
    """A model as a function of weights by name and images, see ``input_struct``."""
    graph, state = nnx.split(model)
    paths = [path for path, _ in nnx.to_flat_state(state)]
    mean, std = jnp.asarray(preprocess.mean), jnp.asarray(preprocess.std)

    def run(weights: dict[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        filled = [
            (path, leaf.replace(weights.get(".".join(map(str, path)), leaf.get_value())))
            for path, (_, leaf) in zip(paths, nnx.to_flat_state(state), strict=True)
        ]
        x = images if layout == "NHWC" else images.transpose(0, 2, 3, 1)
        if pixels == "uint8":
            x = (x.astype(jnp.float32) / 255 - mean) / std
        return named_outputs(nnx.merge(graph, nnx.from_flat_state(filled)), x)

    return run
