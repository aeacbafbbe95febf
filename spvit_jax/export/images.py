"""Arrays of photographs by which int8 is calibrated and judged, as a model sees them."""

import numpy as np

from spvit_jax.export.errors import ExportError
from spvit_jax.export.preprocess import Preprocess

LEAST = 64  # half of them judge
CALIBRATED, JUDGED = 128, 64  # at most
MOST = 2 * CALIBRATED  # that are read
LUMA = (299, 587, 114)  # thousandths of R, G and B in grey, ITU-R 601


def as_seen(images: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """RGB images ``[n, h, w, 3]``, or of a model that sees grey their luma ``[n, h, w, 1]``."""
    if preprocess.channels == 3:
        return images
    return ((images @ np.array(LUMA) + 500) // 1000).astype(np.uint8)[..., None]


def halves(images: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, np.ndarray]:
    """Those that calibrate and those that judge.

    Raises:
      ExportError: they are too few, or not what the model sees.
    """
    images = np.asarray(images)
    wanted = (*preprocess.crop, preprocess.channels)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != wanted:
        raise ExportError(
            f"images must be uint8 [n, {', '.join(map(str, wanted))}], as the model sees them; got"
            f" {images.dtype} {list(images.shape)}"
        )
    if len(images) < LEAST:
        raise ExportError(
            f"int8 needs {LEAST} images or more: half of them calibrate, the others judge; got"
            f" {len(images)}"
        )
    half = len(images) // 2
    return images[:half][:CALIBRATED], images[half:][:JUDGED]
