"""The classes that a model gives the highest probabilities, and what it is given to see."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.convert import USUAL, About
from spvit_jax.data.errors import DataError
from spvit_jax.data.images import Images, open_images
from spvit_jax.data.transforms import eval_transform
from spvit_jax.models import Classifier, check_model
from spvit_jax.models.transformer import mean_logits
from spvit_jax.pretrained import check_channels
from spvit_jax.single_path.prune import form
from spvit_jax.sizes import sides
from spvit_jax.training.normalise import Normalise

BATCH = 32  # images at once


def normalise_of(model: Classifier) -> Normalise:
    """What makes pixels the numbers a model expects: its own mean and std, or ImageNet's usual.

    Where it is the latter, a warning says so.

    Raises:
      ConfigError: they are of other channels than the model sees.
    """
    about = model.about or About()
    if about.unsaid:
        warnings.warn(
            f"the model's file does not say its {', '.join(about.unsaid)}: ImageNet's usual are"
            " taken; set model.about = spvit.About(mean=…, std=…, crop_ratio=…) where they are"
            " others",
            stacklevel=3,
        )
    normalise = Normalise(about.mean or USUAL.mean, about.std or USUAL.std)
    channels = getattr(model.spec, "channels", 3)
    check_channels(normalise.mean, channels, "model.about = spvit.About(mean=…, std=…)")
    return normalise


def crop_ratio_of(model: Classifier) -> float:
    """The share of a resized image's side that the crop keeps: the model's own, or 0.875."""
    return (model.about or About()).crop_ratio or USUAL.crop_ratio or 1.0


def preprocess(model: Classifier, images: Images) -> jax.Array:
    """Makes images what ``model`` expects: resized, cropped and normalised as in its evaluation.

    Args:
      model: of any form; what it was trained on is ``model.about``.
      images: see ``open_images``.

    Returns:
      float32 ``[n, height, width, channels]``, of the model's image size.

    Raises:
      DataError: images that are none, or none that the model can see.
    """
    check_model(model)
    batches = [pixels[:count] for pixels, count in batches_of(model, images)]
    return normalise_of(model)(jnp.asarray(np.concatenate(batches)))


def predict(model: Classifier, images: Images, *, top: int = 5) -> list[list[tuple[str, float]]]:
    """Says which classes a model sees in images.

    Args:
      model: of any form, with a head; what it was trained on is ``model.about``.
      images: see ``open_images``.
      top: classes per image; of a model that has fewer, all.

    Returns:
      Of each image names and probabilities, the likeliest class first; without names ``class 7``.

    Raises:
      DataError: images that are none, or a model without a head, or a supernet, or one whose
        weights give no probabilities.
      ValueError: ``top`` is below 1.
    """
    check_model(model)
    if form(model) == "supernet":
        raise DataError(
            "a search's supernet sees nothing without gates; prune it, or take the dense model"
        )
    classes = model.spec.classes
    if not classes:
        raise DataError("this model has no head to predict classes with; take model.features")
    if top < 1:
        raise ValueError(f"top must be 1 or more classes, got {top}")
    known = (model.about or About()).class_names
    names = [*known, *(f"class {i}" for i in range(len(known), classes))]
    classify = classifier(model, normalise_of(model), min(top, classes))
    rows = []
    for pixels, count in batches_of(model, images):
        for labels, shares in list(zip(*classify(pixels), strict=True))[:count]:
            pairs = zip(labels, shares, strict=True)
            rows.append([(names[label], float(share)) for label, share in pairs])
    return rows


def batches_of(model: Classifier, images: Images) -> Iterator[tuple[np.ndarray, int]]:
    """Images as the model's evaluation sees them: uint8 ``[b, height, width, 3]``, and how many.

    All batches have one shape; what is behind the last image is black.
    """
    source, size = open_images(images), model.spec.image_size
    batch, ratio = min(BATCH, len(source)), crop_ratio_of(model)
    for start in range(0, len(source), batch):
        pixels = np.zeros((batch, *sides(size), 3), np.uint8)
        count = min(batch, len(source) - start)
        for row in range(count):
            opened = source[start + row]["image"]
            pixels[row] = eval_transform(opened, image_size=size, crop_ratio=ratio)
        yield pixels, count


def classifier(
    model: Any, normalise: Normalise, top: int, merged: bool = False
) -> Callable[[np.ndarray], tuple[Any, ...]]:
    """Compiles a function of uint8 ``[b, h, w, 3]``: labels and probabilities, ``[b, top]``.

    Then, if ``merged``, the token that each patch is in at the end, ``[b, patches]``. The function
    raises DataError where probabilities are none.
    """
    graph, state = nnx.split(model)

    @jax.jit
    def classify(state: nnx.State[Any, Any], images: jax.Array) -> tuple[jax.Array, ...]:
        network = nnx.merge(graph, state, copy=True)
        sources: tuple[jax.Array, ...] = ()
        if merged:
            stream = network.stream(normalise(images))
            logits = mean_logits(network.classify(stream[-1]))
            known = [tokens.sources for tokens in stream if tokens.sources is not None]
            sources = (known[-1][:, network.spec.prefix :],)
        else:
            logits = network(normalise(images))
        shares, labels = jax.lax.top_k(jax.nn.softmax(logits), top)
        return labels, shares, *sources

    def checked(images: np.ndarray) -> tuple[Any, ...]:
        labels, shares, *sources = map(np.asarray, classify(state, jnp.asarray(images)))
        if np.isnan(shares).any():
            raise DataError(
                "the model's probabilities are no numbers: its weights hold NaN or infinite ones,"
                " or it computes beyond its dtype; take weights of before that"
            )
        return labels, shares, *sources

    return checked
