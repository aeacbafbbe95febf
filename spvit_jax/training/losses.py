"""Losses over logits."""

import jax
import jax.numpy as jnp
import optax

Array = jax.Array


def cross_entropy(logits: Array, labels: Array, smoothing: float = 0.0) -> Array:
    """Mean cross-entropy in nats of ``logits [batch, classes]`` and integer ``labels [batch]``.

    ``smoothing`` spreads that share of the target evenly over all classes, as torch does.
    """
    if smoothing == 0:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, smoothing)).mean()


def correct(logits: Array, labels: Array) -> Array:
    """1 where the highest logit is the label's, else 0: ``[batch]``, int32."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.int32)
