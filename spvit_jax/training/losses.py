"""Losses over logits, in nats."""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def smooth_targets(labels: Array, classes: int, smoothing: float = 0.0) -> Array:
    """Probabilities ``[batch, classes]`` of integer ``labels [batch]``, in JAX's default float.

    ``smoothing`` spreads that share of each evenly over all classes, as torch does.
    """
    return optax.smooth_labels(jax.nn.one_hot(labels, classes, dtype=float), smoothing)


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Mean cross-entropy of ``logits`` and probabilities ``targets``, both ``[batch, classes]``."""
    return optax.softmax_cross_entropy(logits, targets).mean()


def hard_distillation(student: Array, teacher: Array) -> Array:
    """Cross-entropy with the class the teacher decides for (Touvron et al. 2021)."""
    decided = teacher.argmax(-1)
    return optax.softmax_cross_entropy_with_integer_labels(student, decided).mean()


def soft_distillation(student: Array, teacher: Array, temperature: float) -> Array:
    """``T^2 KL(teacher || student)`` of both distributions at temperature T (Hinton et al. 2015).

    The mean over images; DeiT's code divides by the number of classes as well.
    """
    expected, found = (jax.nn.log_softmax(x / temperature) for x in (teacher, student))
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(found, expected).mean()


def correct(logits: Array, labels: Array) -> Array:
    """1 where the highest logit is the label's, else 0: ``[batch]``, int32."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.int32)
