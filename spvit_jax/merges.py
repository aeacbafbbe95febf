"""Choosing how many tokens each block merges away, in a run.

What merging costs depends on what else is cut, so a few schedules are tried: for each the scores
choose the rest within the budget, least squares repairs it on merged tokens, and the error of the
features on images that it was not repaired on decides. No label is read, nothing is trained.
"""

import dataclasses
from functools import cached_property

from spvit_jax.calibrated import calibrate, trial_error
from spvit_jax.config import Budget
from spvit_jax.context import Context
from spvit_jax.models import Classifier
from spvit_jax.portions import held_indices, trial_indices
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.budget import select
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.merging import Merges
from spvit_jax.single_path.schedules import saving, tried
from spvit_jax.single_path.score import Scores
from spvit_jax.trials import Trial, table


def best(errors: dict[Merges, float]) -> Merges:
    """Picks the schedule of the least error; () where nothing is to be merged."""
    return min(errors, key=errors.__getitem__)


@dataclasses.dataclass(frozen=True)
class Schedules:
    """What the schedules of one budget are tried with."""

    context: Context
    folder: str  # of the workdir: each trial is kept there, and only read from then on
    budget: Budget
    dense: Classifier
    scores: Scores

    def choose(self) -> Merges:
        """Picks the best schedule of those that are tried; raises as ``errors``."""
        return best(self.errors())

    def errors(self) -> dict[Merges, float]:
        """Measures the errors of the schedules that are tried, () among them.

        Raises:
          Interrupted: the run is to stop; trials that ended are kept.
        """
        spec, trials = self.context.spec, list[Trial]()

        def trial(name: str, merges: Merges) -> float:
            trials.append(self._trial(name, merges))
            return trials[-1].repaired

        def find(shape: str, part: float) -> Merges | None:
            return saving(spec, shape, part, lambda merges: self._gating(merges).budgets)

        errors = tried(trial, find)
        self.context.console.say(table(trials))
        return errors

    @cached_property
    def _images(self) -> tuple[Calibration, Calibration]:
        """Those that trials are repaired on, and those that judge them."""
        context, count = self.context, len(self.context.train)
        seen = (f(context.config, count) for f in (trial_indices, held_indices))
        some, judges = (calibrate(context, indices) for indices in seen)
        return some, judges

    def _gating(self, merges: Merges) -> Gating:
        context = self.context
        return Gating.of(context.config.search, self.budget, context.spec, self.dense, merges)

    def _trial(self, name: str, merges: Merges) -> Trial:
        """Repairs what is chosen beside the merges and measures its error, or reads that."""
        context = self.context
        file = f"{self.folder}/{name.replace(', ', '-').replace(' ', '_')}.json"
        known: Trial | None = context.workdir.read_json(file, Trial)
        if known is not None:
            return known
        gating, spec = self._gating(merges), context.spec
        architecture = select(gating.space, self.scores, gating.budgets)
        description = architectures.describe(architecture, spec)
        context.announce("merge", f"{name}: {description}")
        error = trial_error(context, self.dense, architecture, *self._images)
        trial = Trial(name, description, architecture.macs(spec), error)
        context.workdir.write_json(file, trial)
        return trial
