"""Test images that a pruned model sees otherwise than the dense one, to be looked at.

With labels and a head, those that it takes for something else; without, those whose features have
moved the farthest.
"""

import base64
import dataclasses
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from spvit_jax.context import Context
from spvit_jax.data.sources import Some
from spvit_jax.data.transforms import eval_transform
from spvit_jax.models import Classifier
from spvit_jax.training.evaluate import Evaluator
from spvit_jax.training.fidelity import batches
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import place, replicated

Array = jax.Array
LOOKED_AT = 256  # test images, spread evenly
SHOWN = 12
BATCH = 64  # images at once
_MODELS = ("dense", "pruned")
SIDE = 128  # pixels that the longer side of a picture has at most: 12 of them stay below a megabyte


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model takes an image for."""

    name: str
    probability: float  # 0..1
    right: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """An image, and what both models make of it."""

    png: str  # base64
    size: tuple[int, int]  # width and height in pixels
    label: str  # name of its class; "": it has none
    dense: Answer | None  # None: there is no head, or there are no labels
    pruned: Answer | None
    cosine: float | None  # of the pruned model's features to the dense one's; None: not compared


@dataclasses.dataclass(frozen=True)
class Examples:
    """Some of the images that were looked at, the most telling first."""

    images: int  # that were looked at
    dense_wrong: int | None  # how many of them each model gets wrong; None without answers
    pruned_wrong: int | None
    shown: tuple[Example, ...]


def examples(context: Context, dense: Classifier, pruned: Classifier) -> Examples:
    """Looks at ``LOOKED_AT`` test images with both models, and keeps ``SHOWN`` of them.

    Of those that the pruned model gets wrong, first come the ones that the dense model gets right,
    then the others, each from the surest mistake on; without labels, those of the least cosine. All
    processes have to call it.

    Raises:
      Interrupted: the run is to stop.
      DataError: an image cannot be decoded, where the data says that this ends a run.
    """
    test, data = context.test, dataclasses.replace(context.config.data, eval_batch_size=BATCH)
    spread = np.linspace(0, len(test) - 1, min(LOOKED_AT, len(test))).round().astype(int)
    evaluator = Evaluator(Some(test, spread), data, context.mesh, context.should_stop)
    steps = -(-len(spread) // evaluator.batch_size)
    with context.console.bar(steps, 0, "examples", images=evaluator.batch_size) as bar:
        seen = _seen(evaluator, dense, pruned, context.labelled, bar.update)
    whole = np.flatnonzero(seen["mask"][: len(spread)])
    seen = {name: values[whole] for name, values in seen.items()}
    wrong: tuple[int | None, int | None] = (None, None)
    if context.labelled:
        dense_wrong, pruned_wrong = (seen[f"{of} class"] != seen["label"] for of in _MODELS)
        order = np.lexsort((-seen["pruned share"], dense_wrong))
        order = order[pruned_wrong[order]]
        wrong = int(dense_wrong.sum()), int(pruned_wrong.sum())
    else:
        order = np.argsort(seen["cosine"], kind="stable")
    shown = [
        _example(context, int(spread[whole[i]]), {name: x[i] for name, x in seen.items()})
        for i in order[:SHOWN]
    ]
    return Examples(len(whole), *wrong, tuple(shown))


def _seen(
    evaluator: Evaluator, dense: Any, pruned: Any, answers: bool, after_batch: Callable[[], Any]
) -> dict[str, np.ndarray]:
    """What both models make of each image ``[n]``: class and share of the likeliest, or a cosine.

    Beside that "label" and "mask"; rows behind the last image are masked.
    """
    mesh, normalise = evaluator.mesh, Normalise(evaluator.data.mean, evaluator.data.std)
    graphs, states = zip(*map(nnx.split, (dense, pruned)), strict=True)

    def step(states: Any, batch: dict[str, Array]) -> dict[str, Array]:
        images = normalise(batch["image"])
        models = [nnx.merge(*parts) for parts in zip(graphs, states, strict=True)]
        rows = {"label": batch["label"], "mask": batch["mask"]}
        if not answers:
            ends = [_wide(model.features(model.stream(images)[-1])) for model in models]
            return rows | {"cosine": _cosines(*ends)}
        for name, model in zip(_MODELS, models, strict=True):
            shares, classes = jax.lax.top_k(jax.nn.softmax(_wide(model(images))), 1)
            rows |= {f"{name} class": classes[:, 0], f"{name} share": shares[:, 0]}
        return rows

    run = jax.jit(step, out_shardings=replicated(mesh))
    placed = place(states, jax.tree.map(lambda _: replicated(mesh), states))
    size = dense.spec.image_size
    rows = []
    for batch in batches(evaluator, evaluator.test, size):
        rows.append(jax.device_get(run(placed, batch)))
        after_batch()
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _cosines(one: Array, other: Array) -> Array:
    """Of each image, ``[batch]``, the mean over its rows ``[batch, n, D]``."""
    norms = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
    products = (one * other).sum(-1)
    return (products / jnp.maximum(norms, jnp.finfo(norms.dtype).tiny)).mean(-1)


def _example(context: Context, index: int, seen: dict[str, Any]) -> Example:
    """The test image of that index, and what was ``seen`` in it."""
    names, source = context.test.class_names, context.test[index]
    pixels = eval_transform(
        source["image"],
        image_size=context.spec.image_size,
        crop_ratio=context.config.data.crop_ratio,
    )
    png, size = _png(pixels)
    label = names[source["label"]] if names else ""
    if not context.labelled:
        return Example(png, size, label, None, None, float(seen["cosine"]))
    dense, pruned = (_answer(names, source["label"], seen, of) for of in _MODELS)
    return Example(png, size, label, dense, pruned, None)


def _answer(names: tuple[str, ...], label: int, seen: dict[str, Any], of: str) -> Answer:
    """What the model ``of`` that name has said; it may know more classes than the data has."""
    number = int(seen[f"{of} class"])
    name = names[number] if number < len(names) else f"class {number}"
    return Answer(name, float(seen[f"{of} share"]), number == label)


def _png(pixels: np.ndarray) -> tuple[str, tuple[int, int]]:
    """A picture of at most ``SIDE`` pixels as base64, and its width and height."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode(), image.size
