"""How near the outputs of a file come to its model's: what int8 is judged by."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from spvit_jax.export.outputs import named_outputs
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.models import Classifier

BATCH = 8
COSINE, SAME = 0.995, 0.95  # the least that is near enough, on the few images that judge
Outputs = dict[str, np.ndarray]
Run = Callable[[np.ndarray], Outputs]


class Near(NamedTuple):
    """Outputs beside a model's.

    Attributes:
      cosine: to the model's, the mean over images; of several outputs the least.
      same: the share of images that both give the same class; 1 without classes.
    """

    cosine: float
    same: float

    @property
    def enough(self) -> bool:
        """Whether a file as near as that is taken for the model; NaN is not."""
        return self.cosine >= COSINE and self.same >= SAME

    def summary(self) -> str:
        """Says it in words."""
        return f"cosine {self.cosine:.4f}, the same class in {self.same:.1%}"


def runner(model: Classifier, preprocess: Preprocess) -> Run:
    """The model itself as a function of uint8 pixels ``[b, h, w, c]``, compiled for each ``b``."""
    graph, state = nnx.split(model)
    mean, std = (np.asarray(v, np.float32) for v in (preprocess.mean, preprocess.std))

    @jax.jit
    def compute(state: nnx.State, images: jax.Array) -> dict[str, jax.Array]:
        return named_outputs(nnx.merge(graph, state, copy=True), images)

    def run(pixels: np.ndarray) -> Outputs:
        images = (pixels / np.float32(255) - mean) / std
        with jax.default_matmul_precision("highest"):
            return {name: np.asarray(value) for name, value in compute(state, images).items()}

    return run


def batched(run: Run, pixels: np.ndarray) -> Outputs:
    """Runs all images, ``BATCH`` at once; what fills the last batch up is dropped."""
    rows = []
    for start in range(0, len(pixels), BATCH):
        some = pixels[start : start + BATCH]
        filled = np.concatenate([some, np.repeat(some[-1:], BATCH - len(some), 0)])
        rows.append({name: value[: len(some)] for name, value in run(filled).items()})
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def near(outputs: Outputs, wanted: Outputs) -> Near:
    """Compares outputs of the same images."""
    cosines = [_cosine(outputs[name], value) for name, value in wanted.items()]
    same = 1.0
    if "logits" in wanted:
        same = float(np.mean(outputs["logits"].argmax(-1) == wanted["logits"].argmax(-1)))
    return Near(float(np.min(cosines)), same)


def _cosine(values: np.ndarray, wanted: np.ndarray) -> float:
    one, other = (x.reshape(len(x), -1).astype(np.float64) for x in (values, wanted))
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return float(np.mean((one * other).sum(1) / np.maximum(lengths, 1e-30)))
