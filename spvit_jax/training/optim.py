"""Two AdamW in one transformation: the weights' with decay and a schedule, and the gates'."""

from typing import Any

import jax
import optax

from spvit_jax.config import Training

NO_DECAY = ("tokens", "latent", "pos_embed")  # besides everything with one axis: norms and biases


def schedule(training: Training, steps: int, steps_per_epoch: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or a cosine to its final value."""
    warmup = round(training.warmup_epochs * steps_per_epoch)
    peak = training.learning_rate
    if training.schedule == "cosine":
        alpha = training.final_learning_rate / peak
        after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1), alpha)
    else:
        after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def decay_mask(params: Any) -> Any:
    """True for the parameters that weight decay applies to."""

    def decays(path: tuple, leaf: jax.Array) -> bool:
        names = {str(getattr(entry, "key", getattr(entry, "name", ""))) for entry in path}
        return leaf.ndim > 1 and not names & set(NO_DECAY)

    return jax.tree_util.tree_map_with_path(decays, params)


def optimizer(
    training: Training, rate: optax.Schedule, gate_learning_rate: float = 0.0
) -> optax.GradientTransformation:
    """AdamW over ``{"params": ..., "gates": ...}``, torch's definition of it.

    Gates have no decay and a constant rate; clipping is by the weights' own norm.
    """
    weights = optax.adamw(rate, weight_decay=training.weight_decay, mask=decay_mask)
    if training.clip_norm > 0:
        weights = optax.chain(optax.clip_by_global_norm(training.clip_norm), weights)
    gates = optax.adam(gate_learning_rate)
    return optax.partition(
        {"params": weights, "gates": gates}, {"params": "params", "gates": "gates"}
    )
