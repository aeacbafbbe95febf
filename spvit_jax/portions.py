"""Which of a run's training images do what: some are scored and repaired on, others judge."""

import numpy as np

from spvit_jax.config import Config

TRIAL_IMAGES = 512  # that candidates are repaired on: which is the best, fewer tell than how good


def calibration_indices(config: Config, images: int) -> np.ndarray:
    """Which of the training images are scored and repaired on: some, evenly spread."""
    count = min(config.score.images, images - len(held_indices(config, images)))
    return np.linspace(0, images - 1, count).round().astype(int)


def views(config: Config, images: int) -> int:
    """How many views of each of them are scored and repaired on: more, where images are few."""
    return max(config.score.images // max(len(calibration_indices(config, images)), 1), 1)


def held_indices(config: Config, images: int) -> np.ndarray:
    """Which of the training images judge candidates; none where there is only one.

    They are spread evenly among those that are not scored; a fifth of the images at most.
    """
    if not config.judges:
        return np.zeros(0, int)
    count = max(min(config.shortlist.images, images // 5), 1)
    scored = np.linspace(0, images - 1, min(config.score.images, images - count))
    others = np.setdiff1d(np.arange(images), scored.round().astype(int))
    return others[np.linspace(0, len(others) - 1, count).round().astype(int)]


def trial_indices(config: Config, images: int) -> np.ndarray:
    """Which of the scored images candidates are repaired on while they are compared."""
    scored = calibration_indices(config, images)
    some = np.linspace(0, len(scored) - 1, min(len(scored), TRIAL_IMAGES))
    return scored[some.round().astype(int)]
