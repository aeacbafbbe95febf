"""Trying candidates: each repaired, trained for a short while, judged on held-out training images.

All train on the same batches and by the recipe of fine-tuning. Who judges is the dense model: the
less the last tokens differ from its own, the better, so no label is needed. The images that judge
are of the training split, and neither scored, repaired nor trained on here.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spvit_jax.context import Context, calibrate, fit, held_indices
from spvit_jax.data.sources import Some
from spvit_jax.frontier import repaired
from spvit_jax.models import Classifier
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration, bare
from spvit_jax.training.normalise import Normalise
from spvit_jax.trials import Trial, table

Array = jax.Array


def shortlist(
    context: Context, dense: Classifier, candidates: dict[str, Architecture]
) -> tuple[str, Architecture]:
    """Repairs candidates, trains the best of them, and picks the one nearest to the dense model.

    Every trial is saved when it ends, in ``shortlist/``; ``shortlist.json`` has them all.

    Args:
      candidates: by name, the one that stands without trials first.

    Returns:
      Its name and architecture.
    """
    config = context.config.shortlist
    if not config.candidates or len(candidates) == 1:
        return next(iter(candidates.items()))
    inner, judges = _divided(context)
    trials = [
        _repaired(context, f"shortlist/{number:02d}", name, dense, candidate, judges)
        for number, (name, candidate) in enumerate(candidates.items())
    ]
    best = sorted(range(len(trials)), key=lambda n: trials[n].repaired)[: config.candidates]
    for n in best:
        folder, architecture = f"shortlist/{n:02d}", candidates[trials[n].name]
        trials[n] = _trained(context, inner, folder, trials[n], dense, architecture, judges)
    winner = min((trials[n] for n in best), key=lambda trial: trial.trained or 0.0)
    context.workdir.write_json(
        "shortlist.json", {"trials": [dataclasses.asdict(t) for t in trials]}
    )
    context.console.say(table(trials))
    return winner.name, candidates[winner.name]


def _repaired(
    context: Context,
    folder: str,
    name: str,
    dense: Classifier,
    candidate: Architecture,
    judges: Calibration,
) -> Trial:
    """A candidate repaired, its error measured or read."""
    known = context.workdir.read_json(f"{folder}/repaired.json")
    if known is not None:
        return Trial(**known)
    said = architectures.describe(candidate, context.spec)
    context.announce("try", f"{name}: {said}")
    model = repaired(context, dense, candidate, calibrate(context))
    error = last_error(model, dense, judges)
    found = Trial(name, said, candidate.macs(context.spec), error)
    context.workdir.write_json(f"{folder}/repaired.json", dataclasses.asdict(found))
    return found


def _trained(
    context: Context,
    inner: Context,
    folder: str,
    trial: Trial,
    dense: Classifier,
    candidate: Architecture,
    judges: Calibration,
) -> Trial:
    """It trained for ``shortlist.steps``, its error measured or read."""
    known = context.workdir.read_json(f"{folder}/trained.json")
    if known is not None:
        return Trial(**known)
    context.announce("try", f"{trial.name}: {context.config.shortlist.steps} steps")
    model = repaired(context, dense, candidate, calibrate(context))
    model, _ = fit(inner, folder, model, inner.config.finetune, steps=inner.config.shortlist.steps)
    found = dataclasses.replace(trial, trained=last_error(model, dense, judges))
    context.workdir.write_json(f"{folder}/trained.json", dataclasses.asdict(found))
    return found


def _divided(context: Context) -> tuple[Context, Calibration]:
    """The run as trials see it, whose test images are training images held out; and those."""
    train = context.train
    held = held_indices(context.config, len(train))
    rest = np.setdiff1d(np.arange(len(train)), held)
    inner = dataclasses.replace(context, train=Some(train, rest), test=Some(train, held))
    return inner, calibrate(context, held)


def last_error(model: Classifier, dense: Classifier, images: Calibration) -> float:
    """How far the last tokens are from the dense model's, squared, relative to their variance."""
    mine, theirs = images.place(bare(model)), images.place(bare(dense))
    off, power, total, count = 0.0, 0.0, np.zeros(()), 0.0
    for batch, mask in images.batches:
        target = theirs(_last, batch, static=(images.normalise,))
        sums = _sums(mine(_last, batch, static=(images.normalise,)), target, mask)
        parts = jax.device_get(sums)
        off, power, total, count = (
            have + np.asarray(new, float)
            for have, new in zip((off, power, total, count), parts, strict=True)
        )
    variance = power - (total**2).sum() / count
    return float(off / max(variance, np.finfo(float).tiny))


def _last(model: Any, images: Array, normalise: Normalise) -> Array:
    return model.stream(normalise(images))[-1]


@jax.jit
def _sums(mine: Array, target: Array, mask: Array) -> tuple[Array, ...]:
    """Of squared differences, of squares, of tokens, and how many of them there are."""
    weight = mask[:, None, None].astype(target.dtype)
    return (
        (weight * jnp.square(mine - target)).sum(),
        (weight * jnp.square(target)).sum(),
        (weight * target).sum((0, 1)),
        weight.sum() * target.shape[1],
    )
