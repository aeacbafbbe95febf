"""Trying candidates: each repaired, trained for a short while, judged on held-out training images.

All train on the same batches and by the recipe of fine-tuning. Who judges is the dense model: the
less the features differ from its own, the better, so no label is needed. The images that judge are
of the training split, and neither scored, repaired nor trained on here.
"""

import dataclasses

import numpy as np

from spvit_jax.calibrated import calibrate, repaired, trial_error
from spvit_jax.context import Context, Inputs
from spvit_jax.data.sources import Some
from spvit_jax.models import Classifier
from spvit_jax.portions import held_indices, trial_indices
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.features import feature_error
from spvit_jax.trained import fit
from spvit_jax.trials import Trial, Tried, table

NEAR = 1.5  # times the least error once repaired: what is farther off does not catch up in training


def shortlist(
    context: Context, dense: Classifier, candidates: dict[str, Architecture]
) -> tuple[str, Architecture]:
    """Repairs candidates, trains the best of them, and picks the one nearest to the dense model.

    What is far behind the best once repaired, by ``NEAR``, is not trained; if all others are,
    nothing is. Every trial is saved when it ends, in ``shortlist/``; ``shortlist.json`` has them
    all.

    Args:
      candidates: by name, the one that stands without trials first.

    Returns:
      Its name and architecture.
    """
    count = context.config.shortlist.candidates
    if not count or len(candidates) == 1:
        return next(iter(candidates.items()))
    trying = _Trying(context, dense, candidates, *_divided(context))
    trials = {name: trying.repaired(name) for name in candidates}
    best, *others = near = nearest(trials, count)
    if others:
        errors = {}
        for name in near:
            trials[name], errors[name] = trying.trained(trials[name])
        best = min(near, key=errors.__getitem__)
    listed = list(trials.values())
    context.workdir.write_json("shortlist.json", Tried(tuple(listed)))
    context.console.say(table(listed))
    return best, candidates[best]


def nearest(trials: dict[str, Trial], count: int) -> list[str]:
    """Names the trials of the least errors once repaired, up to ``count``, within ``NEAR``."""
    names = sorted(trials, key=lambda name: trials[name].repaired)[:count]
    limit = NEAR * trials[names[0]].repaired
    return [name for name in names if trials[name].repaired <= limit]


@dataclasses.dataclass
class _Trying:
    """Candidates at work. What is trained is repaired anew, on all images."""

    context: Context
    dense: Classifier
    candidates: dict[str, Architecture]
    inner: Context  # the run as trials see it: training images that judge are its test images
    judges: Calibration
    some: Calibration  # to repair on where candidates are only compared
    calibration: Calibration

    def repaired(self, name: str) -> Trial:
        """Repairs a candidate and measures its error, or reads that."""
        known = self._read(name, "repaired")
        if known is not None:
            return known
        candidate, spec = self.candidates[name], self.context.spec
        description = architectures.describe(candidate, spec)
        self.context.announce("try", f"{name}: {description}")
        error = trial_error(self.context, self.dense, candidate, self.some, self.judges)
        return self._written("repaired", Trial(name, description, candidate.macs(spec), error))

    def trained(self, trial: Trial) -> tuple[Trial, float]:
        """Trains it for ``shortlist.steps`` and measures its error again, or reads that."""
        known = self._read(trial.name, "trained")
        if known is not None and known.trained is not None:
            return known, known.trained
        config = self.context.config
        self.context.announce("try", f"{trial.name}: {config.shortlist.steps} steps")
        model = self._model(trial.name)
        steps = config.shortlist.steps
        model, _ = fit(self.inner, self._folder(trial.name), model, config.finetune, steps=steps)
        error = feature_error(model, self.dense, self.judges, config.patch_weight)
        return self._written("trained", dataclasses.replace(trial, trained=error)), error

    def _model(self, name: str) -> Classifier:
        return repaired(self.context, self.dense, self.candidates[name], self.calibration)

    def _folder(self, name: str) -> str:
        return f"shortlist/{list(self.candidates).index(name):02d}"

    def _read(self, name: str, when: str) -> Trial | None:
        trial: Trial | None = self.context.workdir.read_json(
            f"{self._folder(name)}/{when}.json", Trial
        )
        return trial

    def _written(self, when: str, trial: Trial) -> Trial:
        file = f"{self._folder(trial.name)}/{when}.json"
        self.context.workdir.write_json(file, trial)
        return trial


def _divided(context: Context) -> tuple[Context, Calibration, Calibration, Calibration]:
    """The run as trials see it, the images that judge, and some and all of the scored ones."""
    train = context.train
    held = held_indices(context.config, len(train))
    rest = np.setdiff1d(np.arange(len(train)), held)
    inputs = Inputs(Some(train, rest), Some(train, held), context.inputs.dense)
    inner = dataclasses.replace(context, inputs=inputs)
    some = trial_indices(context.config, len(train))
    return inner, calibrate(context, held), calibrate(context, some), calibrate(context)
