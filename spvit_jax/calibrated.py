"""What a run does with its calibration images: score every choice, repair, judge a candidate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from spvit_jax import hosts
from spvit_jax.context import USER_ERRORS, Context
from spvit_jax.data.errors import DataError
from spvit_jax.data.pipeline import eval_batches, to_device
from spvit_jax.data.sources import Some
from spvit_jax.models import Classifier
from spvit_jax.portions import calibration_indices, views
from spvit_jax.single_path import score as scoring
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.repair import repair, repaired_error
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import batch_sharded, local_rows, replicated

Pairs = tuple[tuple[jax.Array, jax.Array], ...]  # uint8 [n, height, width, 3], a mask [n]


def calibrate(context: Context, indices: np.ndarray | None = None) -> Calibration:
    """Images of the training split as evaluation sees them; their labels are left behind.

    ``indices`` says which; None: ``calibration_indices``, and crops of them where they are few.

    Raises:
      DataError: none can be decoded, or those that scores are of are all the same.
    """
    config, mesh, scored, count = context.config, context.mesh, indices is None, 1
    if indices is None:
        indices = calibration_indices(config, len(context.train))
        count = views(config, len(context.train))
    size = -(-min(config.score.batch_size, len(indices) * count) // mesh.size) * mesh.size
    batches = eval_batches(
        Some(context.train, indices),
        config.data,
        batch_size=size,
        rows=local_rows(mesh, size),
        image_size=context.spec.image_size,
        views=count,
    )
    placed = (to_device(batch, batch_sharded(mesh)) for batch in batches)
    pairs = tuple((batch["image"], batch["mask"]) for batch in placed)
    whole = np.arange(len(pairs) * size).reshape(-1, size) % count == 0  # no crops
    _check(pairs, whole, mesh, len(indices), scored)
    return Calibration(pairs, Normalise(config.data.mean, config.data.std), mesh)


def _check(pairs: Pairs, whole: np.ndarray, mesh: Mesh, images: int, scored: bool) -> None:
    """Raises DataError where the images say nothing: what varies between them is what is scored.

    ``whole [batches, n]`` are those of them that are looked at.
    """
    extremes = jax.jit(_extremes, out_shardings=replicated(mesh))
    seen = zip(pairs, whole, strict=True)
    known = [jax.device_get(extremes(shown, mask, some)) for (shown, mask), some in seen]
    if not any(count for count, _, _ in known):
        raise DataError(
            f"none of the {images:,} calibration images can be decoded; the warnings above say why"
        )
    darkest, brightest = np.min([k[1] for k in known], 0), np.max([k[2] for k in known], 0)
    if scored and (darkest == brightest).all():
        raise DataError(
            f"the {images:,} calibration images are all the same; give some hundreds of the kind"
            " that the model is for"
        )


def _extremes(
    images: jax.Array, mask: jax.Array, whole: np.ndarray
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many images count, and the least and the greatest value of each of their pixels."""
    mask = mask & whole
    counted = mask[:, None, None, None]
    return mask.sum(), jnp.where(counted, images, 255).min(0), jnp.where(counted, images, 0).max(0)


@contextmanager
def _watched(context: Context, name: str, steps: int, what: str) -> Iterator[Callable[[], None]]:
    """Shows a bar; gives what to call after each step, which raises where the run is to stop."""
    with context.console.bar(steps, 0, name) as bar:

        def after() -> None:
            context.go_on(what)
            bar.update()

        yield after


def score(context: Context, dense: Classifier, calibration: Calibration) -> scoring.Scores:
    """Scores every choice, or reads the scores of an earlier start from ``scores.json``."""
    file = context.workdir / "scores.json"
    if context.workdir.check("scores.json"):
        with hosts.together(*USER_ERRORS):
            return scoring.load(file)
    config, images = context.config, len(context.train)
    more, used = views(config, images), len(calibration_indices(config, images))
    suffix = f", {more} views of each" if more > 1 else ""
    context.announce("score", f"{used:,} images without labels{suffix}")
    steps = len(calibration.batches) + len(context.spec.blocks)
    with _watched(context, "score", steps, "scoring") as after:
        scores = scoring.score(dense, calibration, config.search.ops, after, after)
    context.workdir.write("scores.json", scores.save)
    return scores


def repaired(
    context: Context, dense: Classifier, architecture: Architecture, calibration: Calibration
) -> Classifier:
    """Prunes the dense model and repairs it."""
    with _watched(context, "repair", len(context.spec.blocks), "a repair") as after:
        return repair(dense, dense, calibration, architecture, after)


def trial_error(
    context: Context,
    dense: Classifier,
    architecture: Architecture,
    calibration: Calibration,
    judges: Calibration,
) -> float:
    """Measures how far the features of the dense model, pruned and repaired, are from its own.

    Args:
      context: of the run.
      dense: the model.
      architecture: for it.
      calibration: images to repair on.
      judges: those that are looked at.
    """
    weight = context.config.patch_weight
    with _watched(context, "repair", len(context.spec.blocks), "a trial") as after:
        return repaired_error(dense, calibration, judges, architecture, weight, after)
