"""What a run does with its calibration images: score every choice, repair, judge a candidate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from spvit_jax import hosts
from spvit_jax.context import USER_ERRORS, Context
from spvit_jax.models import Classifier
from spvit_jax.single_path import score as scoring
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.repair import repair, repaired_error


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
    context.announce("score", f"{context.config.score.images:,} images without labels")
    steps = len(calibration.batches) + len(context.spec.blocks)
    with _watched(context, "score", steps, "scoring") as after:
        found = scoring.score(dense, calibration, context.config.search.ops, after, after)
    context.workdir.write("scores.json", found.save)
    return found


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
