"""Written files beside the model: how good on test images, how large, how fast here."""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from spvit_jax.data.sources import Source
from spvit_jax.export.export import Exported, exportable
from spvit_jax.export.litert import run_litert
from spvit_jax.export.near import Outputs, Run, batched, near, runner
from spvit_jax.export.photographs import pixels
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.export.runtimes import run_onnx, run_stablehlo
from spvit_jax.models import Classifier
from spvit_jax.text import aligned

CHUNK = 256  # images in memory
SECONDS = 3.0  # of all calls that are timed
TURNS = 5  # at least
WARM_UP = 2
THREADS = "ONNX runs on one thread here; python -m spvit_jax.measure gives each file all cores"
MODEL = "the model, in JAX"


def table(
    files: Mapping[str, Exported], model: Classifier, preprocess: Preprocess, test: Source
) -> str:
    """Runs files and model on all test images, and in turns on one.

    Args:
      files: by their name; weights for PyTorch are left out.
      model: what they were written from.
      preprocess: its preprocessing.
      test: images with labels; without, or of a model without classes, outputs are compared with
        the model's by their cosine.

    Returns:
      A table: top-1 or cosine, size, and the median time of a call with one image; under it that
      onnxruntime took one thread, where it ran.
    """
    runs: dict[str, Run] = {MODEL: runner(exportable(model), preprocess)}
    for name in files:
        if name.endswith(".onnx"):  # of one thread: those of several files would meet
            runs[name] = run_onnx(Path(name), preprocess, threads=1)
        elif name.endswith(".stablehlo"):
            runs[name] = run_stablehlo(Path(name), preprocess)
        elif name.endswith(".tflite"):
            runs[name] = run_litert(Path(name), preprocess)
    labelled = bool(test.class_names) and bool(model.spec.classes)
    scores = _scores(runs, preprocess, test, labelled)
    times = _times(runs, pixels(test, preprocess, [0]))
    rows = [("", "top-1 (%)" if labelled else "cosine", "MB", "latency, batch 1 (ms)")]
    for name, score, took in zip(runs, scores, times, strict=True):
        good = f"{100 * score:.2f}" if labelled else f"{score:.5f}"
        size = f"{files[name].size / 1e6:,.2f}" if name in files else ""
        rows.append((name, good, size, f"{1e3 * took:.2f}"))
    onnx = any(name.endswith(".onnx") for name in runs)
    return aligned(rows) + (f"\n{THREADS}" if onnx else "")


def _scores(
    runs: dict[str, Run], preprocess: Preprocess, test: Source, labelled: bool
) -> list[float]:
    """The share of images that each gets right, or its mean cosine to the first."""
    sums = np.zeros(len(runs))
    for start in range(0, len(test), CHUNK):
        some = range(start, min(start + CHUNK, len(test)))
        images = pixels(test, preprocess, some)
        outputs: list[Outputs] = [batched(run, images) for run in runs.values()]
        if labelled:
            labels = np.array([test[i]["label"] for i in some])
            sums += [np.sum(one["logits"].argmax(-1) == labels) for one in outputs]
        else:
            sums += [len(some) * near(one, outputs[0]).cosine for one in outputs]
    return (sums / len(test)).tolist()


def _times(runs: dict[str, Run], image: np.ndarray) -> np.ndarray:
    """Median seconds of a call of each; they take turns, since a machine's speed drifts."""
    for run in list(runs.values()) * WARM_UP:
        run(image)
    rows: list[list[float]] = []
    end = time.perf_counter() + SECONDS
    while len(rows) < TURNS or time.perf_counter() < end:
        row = []
        for run in runs.values():
            start = time.perf_counter()
            run(image)
            row.append(time.perf_counter() - start)
        rows.append(row)
    return np.median(rows, axis=0)
