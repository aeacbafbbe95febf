"""What a run does with its calibration images: score every choice, repair, judge a candidate."""

from spvit_jax import hosts
from spvit_jax.context import USER_ERRORS, Context
from spvit_jax.models import Classifier
from spvit_jax.single_path import score as scoring
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.repair import repair, repaired_error


def score(context: Context, dense: Classifier, calibration: Calibration) -> scoring.Scores:
    """Scores every choice, or reads the scores of an earlier start from ``scores.json``."""
    file = context.workdir / "scores.json"
    if context.workdir.exists("scores.json"):
        with hosts.together(*USER_ERRORS):
            return scoring.load(file)
    context.announce("score", f"{context.config.score.images:,} images without labels")
    blocks = len(context.spec.blocks)
    with context.console.bar(len(calibration.batches) + blocks, 0, "score") as bar:

        def after() -> None:
            context.go_on("scoring")
            bar.update()

        found = scoring.score(dense, calibration, context.config.search.ops, after, after)
    context.workdir.write("scores.json", found.save)
    return found


def repaired(
    context: Context, dense: Classifier, architecture: Architecture, calibration: Calibration
) -> Classifier:
    """Prunes the dense model and repairs it."""
    with context.console.bar(len(context.spec.blocks), 0, "repair") as bar:

        def after() -> None:
            context.go_on("a repair")
            bar.update()

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
    weight = context.config.score.patch_weight
    with context.console.bar(len(context.spec.blocks), 0, "repair") as bar:

        def after() -> None:
            context.go_on("a trial")
            bar.update()

        return repaired_error(dense, calibration, judges, architecture, weight, after)
