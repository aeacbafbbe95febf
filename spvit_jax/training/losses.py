"""Losses: ``(model, batch, key) -> (value, metrics)``, and the distances they are made of.

A batch is what ``prepare_images`` makes: "images" ``[b, H, W, 3]``, "targets" ``[b, classes]`` and,
with a teacher, "taught". Where images are mixed, accuracy is counted against the label with the
larger share.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from spvit_jax.models import Tokens, mean_logits, token_weights, tokens_read

Array = jax.Array
Batch = dict[str, Any]
Metrics = dict[str, Array]


def classification(model: Any, batch: Batch, key: Array) -> tuple[Array, Metrics]:
    """Cross-entropy with the targets, of the mean of all heads."""
    logits = mean_logits(model.heads(batch["images"], key=key, train=True))
    value = cross_entropy(logits, batch["targets"])
    return value, {"cross_entropy": value, "accuracy": accuracy(logits, batch["targets"])}


def distillation(
    model: Any,
    batch: Batch,
    key: Array,
    *,
    distance: Callable[[Array, Array], Array],
    weight: float,
) -> tuple[Array, Metrics]:
    """``weight`` of the distance to the teacher's logits, and the rest of the cross-entropy.

    A student with a second head (a distilled DeiT) learns labels with the first and the teacher
    with the second; one head learns both.
    """
    heads = model.heads(batch["images"], key=key, train=True)
    value = cross_entropy(heads[0], batch["targets"])
    distilled = distance(heads[-1], batch["taught"])
    metrics = {
        "cross_entropy": value,
        "distillation": distilled,
        "accuracy": accuracy(mean_logits(heads), batch["targets"]),
    }
    return (1 - weight) * value + weight * distilled, metrics


def feature_distillation(
    model: Any, batch: Batch, key: Array, *, weight: float
) -> tuple[Array, Metrics]:
    """``weight`` of ``stream_error`` to the teacher, averaged over the outputs of all blocks.

    Where heads read class tokens, these weigh a quarter of the patches, few as they are. Where the
    student has merged tokens, it learns the mean of what the teacher says of them. The
    labels' cross-entropy has the rest; with a ``weight`` of 1 they are not looked at.
    """
    stream = model.stream(batch["images"], key=key, train=True)
    pairs, read = zip(stream, batch["taught"], strict=True), tokens_read(model.spec)
    distilled = jnp.stack([stream_error(*pair, read) for pair in pairs]).mean()
    if weight == 1:
        return distilled, {"distillation": distilled}
    logits = mean_logits(model.classify(stream[-1]))
    value = cross_entropy(logits, batch["targets"])
    metrics = {
        "cross_entropy": value,
        "distillation": distilled,
        "accuracy": accuracy(logits, batch["targets"]),
    }
    return (1 - weight) * value + weight * distilled, metrics


def smooth_targets(labels: Array, classes: int, smoothing: float = 0.0) -> Array:
    """Probabilities ``[batch, classes]`` of integer ``labels [batch]``, in JAX's default float.

    ``smoothing`` spreads that share of each evenly over all classes, as torch does.
    """
    targets = jax.nn.one_hot(labels, classes, dtype=float)
    return optax.smooth_labels(targets, smoothing) if smoothing and classes else targets


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean cross-entropy, in nats, of ``logits`` and probabilities, both ``[batch, classes]``."""
    return optax.softmax_cross_entropy(logits, targets).mean()


def hard_distance(student: Array, teacher: Array) -> Array:
    """Cross-entropy with the class the teacher decides for (Touvron et al. 2021)."""
    decided = teacher.argmax(-1)
    return optax.softmax_cross_entropy_with_integer_labels(student, decided).mean()


def soft_distance(student: Array, teacher: Array, temperature: float) -> Array:
    """``T^2 KL(teacher || student)`` of both distributions at temperature T (Hinton et al. 2015).

    The mean over images; DeiT's code divides by the number of classes as well.
    """
    expected, prediction = (jax.nn.log_softmax(x / temperature) for x in (teacher, student))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(prediction, expected).mean()


def stream_error(student: Tokens, teacher: Array, read: int = 0) -> Array:
    """The squared error of tokens over the variance of the teacher's ``[b, embedded, D]``.

    Both are means over images, tokens and features; the variance is about each feature's mean. A
    student that always says this mean is at 1. In float32 at least, whatever the tokens are in. Of
    the error, the first ``read`` tokens have the weight of ``token_weights``.
    """
    wide = jnp.promote_types(jnp.result_type(student.x, teacher), jnp.float32)
    teacher = teacher.astype(wide)
    missing = jnp.square(student.x.astype(wide) - student.means(teacher)).mean((0, 2))
    weights = token_weights(len(missing), read)
    return (missing @ weights / weights.sum()) / teacher.var((0, 1)).mean()


def accuracy(logits: Array, targets: Array) -> Array:
    """The share of rows whose highest logit is that of the highest target."""
    return correct(logits, targets.argmax(-1)).mean()


def correct(logits: Array, labels: Array) -> Array:
    """1 where the highest logit is the label's, else 0: ``[batch]``, int32."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.int32)
