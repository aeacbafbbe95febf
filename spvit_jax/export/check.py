"""Comparing what a written file computes with what its model does."""

from typing import NamedTuple

import numpy as np

from spvit_jax.export.errors import CheckFailed
from spvit_jax.export.near import Run, runner
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.models import Classifier

BATCHES = (1, 3)


class Checked(NamedTuple):
    """How near a file comes to its model.

    Attributes:
      error: the largest difference of an output, relative to the largest output.
      agree: the share of images within the tolerance.
    """

    error: float
    agree: float

    def summary(self) -> str:
        """Says it in words."""
        if self.agree == 1:
            return f"largest error {self.error:.1e}"
        return (
            f"largest error {self.error:.1e} of {self.agree:.0%} of the images checked; in others"
            " pairs of tokens equally alike were merged in another order"
        )


def check(
    model: Classifier,
    preprocess: Preprocess,
    run: Run,
    *,
    tolerance: float,
    pixels: np.ndarray | None = None,
) -> Checked:
    """Runs a file beside its model, at several batch sizes.

    Args:
      model: what it was written from.
      preprocess: its preprocessing.
      run: the file, from uint8 pixels ``[b, h, w, c]`` to outputs by name.
      tolerance: of an error relative to the largest output. Where tokens are merged, half of the
        images may be off by more: of pairs equally alike rounding decides which goes first.
      pixels: to compare on, uint8; None: noise.

    Raises:
      CheckFailed: it computes something else.
    """
    shape = (sum(BATCHES), *preprocess.crop, preprocess.channels)
    if pixels is None or len(pixels) < shape[0]:
        coarse = np.random.default_rng(0).integers(0, 256, shape)
        pixels = coarse.astype(np.uint8)
    expect = runner(model, preprocess)
    errors: list[float] = []
    done = 0
    for batch in BATCHES:
        some = pixels[done : done + batch]
        done += batch
        wanted = expect(some)
        outputs = run(some)
        if set(outputs) != set(wanted):
            raise CheckFailed(f"the file gives {sorted(outputs)}, the model {sorted(wanted)}")
        rows = []
        for name, other in wanted.items():
            off = np.abs(np.asarray(outputs[name], np.float32) - other).reshape(batch, -1).max(1)
            rows.append(off / max(float(np.abs(other).max()), 1e-30))
        errors += np.max(rows, axis=0).tolist()
    merged = model.architecture is not None and any(model.architecture.merges)
    near = [error for error in errors if error <= tolerance]  # NaN is not
    agree = len(near) / len(errors)
    if agree < (0.5 if merged else 1):
        raise CheckFailed(
            f"outputs differ from the model's by up to {np.nanmax(errors):.1e} of the largest, more"
            f" than {tolerance:.0e}"
        )
    return Checked(max(near), agree)
