"""How good the models of a run are on its test images, by what can be said of these.

With labels and a head that is top-1; without either, how near features stay to the dense model's;
with labels and no head, what the features are worth to a classifier as well.
"""

import dataclasses

import numpy as np

from spvit_jax.context import Context
from spvit_jax.data.sources import Some, open_source
from spvit_jax.models import Classifier
from spvit_jax.quality import Quality
from spvit_jax.training.evaluate import Evaluation
from spvit_jax.training.fidelity import distances, features
from spvit_jax.training.probe import linear_probe, nearest_neighbours

PROBE_IMAGES = 5000  # of the training split, whose features and labels a probe sees


def evaluate(context: Context, model: Classifier) -> Evaluation:
    """What ``model`` makes of the test images; see ``Evaluator``."""
    return context.evaluator.evaluate(model, context.console)


def judge(context: Context, model: Classifier, dense: Classifier) -> Quality:
    """Measures a model of the run; ``dense`` is what its features are compared with."""
    if context.labelled:
        counts = evaluate(context, model)
        return Quality(counts.images, top1=counts.top1, top5=counts.top5)
    evaluator = context.evaluator
    batches = -(-len(context.test) // evaluator.batch_size)
    with context.console.bar(batches, 0, "evaluate", images=evaluator.batch_size) as bar:
        seen, patches = distances(evaluator, model, dense, bar.update)
    result = Quality(seen.images, cosine=seen.cosine, cosine_worst=seen.worst, error=seen.error)
    if patches is not None:
        result = dataclasses.replace(
            result,
            patch_cosine=patches.cosine,
            patch_cosine_worst=patches.worst,
            patch_error=patches.error,
        )
    return _probed(context, model, result) if context.test.class_names else result


def _probed(context: Context, model: Classifier, result: Quality) -> Quality:
    config, train = context.config, context.train
    if config.stage == "evaluate":  # which has opened the test images alone
        train = open_source(config.data, config.data.train_split)
    count = len(train)
    some = np.linspace(0, count - 1, min(count, PROBE_IMAGES)).round().astype(int)
    sources = Some(train, some), context.test
    pairs = [part for s in sources for part in features(context.evaluator, model, s)]
    return dataclasses.replace(result, knn=nearest_neighbours(*pairs), linear=linear_probe(*pairs))


def quality(context: Context, name: str, model: Classifier, dense: Classifier) -> Quality:
    """Measures a model once, then reads that from ``NAME.json``."""
    known: Quality | None = context.workdir.read_json(f"{name}.json", Quality)
    result = judge(context, model, dense) if known is None else known
    if known is None:
        context.workdir.write_json(f"{name}.json", result)
    context.console.stage("evaluate", f"{name}: {result.summary()}")
    return result
