"""The training step: a pure function of plain pytrees, jitted once.

Pretraining, search and fine-tuning take the same step; they differ in the model, in whether
there are gates and a teacher, and in the penalty on the gates.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from spvit_jax.models import mean_logits
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.training.losses import (
    correct,
    cross_entropy,
    hard_distillation,
    smooth_targets,
    soft_distillation,
)
from spvit_jax.training.mixup import mixup_cutmix, random_erasing
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import batch_sharded, gathered, place, replicated, sharded
from spvit_jax.training.teacher import Teacher

Array = jax.Array
Metrics = dict[str, Array]
Batch = dict[str, Array]  # "image" uint8 [b, H, W, 3], "label" int32 [b]; evaluation: "mask" bool


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything a step changes, and so everything a resumed run needs."""

    step: Array  # int32, steps taken
    key: Array  # uint32 [2], the run's random key; each step folds its number in
    params: nnx.State
    stats: nnx.State  # batch norm's running statistics
    gates: Gates  # gate logits; () where there are none
    optimizer: Any
    average: nnx.State | None  # exponential moving average of params


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a step minimises.

    Cross-entropy, or ``(1 - w)`` of it and ``w`` of the distillation loss, plus the gates'
    penalty. A student with a second head (a distilled DeiT) learns labels with the first and the
    teacher with the second; one head learns both. Where images are mixed, accuracy is counted
    against the label with the larger share.
    """

    normalise: Normalise
    erasing: float = 0.0  # probability, of each image
    mixup: float = 0.0  # alphas; 0: off
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    distillation: str = "none"  # "none", "hard" or "soft"
    distillation_weight: float = 0.5  # w
    distillation_temperature: float = 1.0  # of "soft"
    gating: Gating | None = None  # of a search
    accumulation: int = 1
    ema_decay: float = 0.0

    def batch(self, images: Array, labels: Array, classes: int, key: Array) -> tuple[Array, Array]:
        """What the network sees of uint8 images, and its targets ``[batch, classes]``.

        ``key`` draws erasing, mixup and cutmix; with none of them there is nothing to draw.
        """
        erase_key, mix_key = jax.random.split(key)
        x = self.normalise(images)
        if self.erasing > 0:
            x = random_erasing(x, erase_key, self.erasing)
        if self.mixup == self.cutmix == 0:
            return x, smooth_targets(labels, classes, self.label_smoothing)
        return mixup_cutmix(
            x,
            labels,
            mix_key,
            classes,
            mixup=self.mixup,
            cutmix=self.cutmix,
            smoothing=self.label_smoothing,
        )

    def __call__(self, heads: tuple[Array, ...], targets: Array, taught: Array | None) -> Metrics:
        """The loss and its parts.

        Args:
          heads: the student's logits ``[batch, classes]``, of one head or two.
          targets: probabilities ``[batch, classes]``.
          taught: the teacher's logits; None without distillation.
        """
        logits = mean_logits(heads)
        accuracy = correct(logits, targets.argmax(-1)).mean()
        if taught is None:
            value = cross_entropy(logits, targets)
            return {"loss": value, "cross_entropy": value, "accuracy": accuracy}
        value = cross_entropy(heads[0], targets)
        if self.distillation == "hard":
            distilled = hard_distillation(heads[-1], taught)
        else:
            distilled = soft_distillation(heads[-1], taught, self.distillation_temperature)
        weight = self.distillation_weight
        return {
            "loss": (1 - weight) * value + weight * distilled,
            "cross_entropy": value,
            "distillation": distilled,
            "accuracy": accuracy,
        }


def init_state(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    *,
    gates: Gates = (),
    seed: int,
    average: bool = False,
) -> TrainState:
    """The state of step 0, holding copies of the model's arrays."""
    params, stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
    params, stats, gates = jax.tree.map(jnp.copy, (params, stats, gates))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        params=params,
        stats=stats,
        gates=gates,
        optimizer=optimizer.init({"params": params, "gates": gates}),
        average=jax.tree.map(jnp.copy, params) if average else None,
    )


def make_train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    mesh: Mesh,
    state: TrainState,
    teacher: Teacher | None = None,
) -> partial:
    """The step ``(state, batch) -> (state, metrics)`` with the teacher's arrays in their place."""
    program = train_program(graph, optimizer, objective, mesh, state, teacher)
    if teacher is None:
        return partial(program, None)
    return partial(program, place(teacher.state, sharded(mesh, teacher.state)))


def train_program(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    mesh: Mesh,
    state: TrainState,
    teacher: Teacher | None = None,
) -> jax.stages.Wrapped:
    """The jitted ``(teacher's arrays, state, batch) -> (state, metrics)``; the state is donated.

    Batch norm's statistics are those of the whole batch, wherever its rows live. The teacher sees
    the images the student sees, mixed and erased alike, in the same program.

    Args:
      graph, optimizer, objective, teacher: of the training.
      mesh: where it runs, or, of a topology without its devices, where it would.
      state: of the training, for its shapes alone; may be abstract, as may the teacher's arrays.
    """
    shards = sharded(mesh, state)

    def loss(trained: dict, stats: nnx.State, batch: Batch, key: Array, frozen: Any) -> tuple:
        gates_key, drop_key, batch_key = jax.random.split(key, 3)
        gating = objective.gating
        gates = gating.sample(trained["gates"], gates_key) if gating else None
        model = nnx.merge(graph, gathered(mesh, trained["params"]), stats, copy=True)
        drop_key, batch_key = (jax.random.fold_in(k, batch["micro"]) for k in (drop_key, batch_key))
        classes = model.spec.classes
        images, targets = objective.batch(batch["image"], batch["label"], classes, batch_key)
        heads = model.heads(images, gates, key=drop_key, train=True)
        taught = None
        if teacher is not None:
            taught = teacher.logits(gathered(mesh, frozen), images, objective.normalise)
        metrics = objective(heads, targets, taught)
        if gating:
            metrics["penalty"] = gating.penalty(trained["gates"])
            metrics["loss"] = metrics["loss"] + metrics["penalty"]
        return metrics["loss"], (nnx.state(model, nnx.BatchStat), metrics)

    def step(frozen: Any, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        trained = {"params": state.params, "gates": state.gates}
        gradient, stats, metrics = _accumulate(
            partial(jax.grad(loss, has_aux=True), frozen=frozen),
            trained,
            state.stats,
            batch,
            key,
            objective.accumulation,
        )
        scattered = {"params": shards.params, "gates": shards.gates}
        gradient = jax.lax.with_sharding_constraint(gradient, scattered)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        metrics["gradient_norm"] = optax.tree.norm(gradient["params"])
        average = state.average
        if average is not None:
            average = optax.incremental_update(trained["params"], average, 1 - objective.ema_decay)
        state = TrainState(
            step=state.step + 1,
            key=state.key,
            params=trained["params"],
            stats=stats,
            gates=trained["gates"],
            optimizer=optimizer_state,
            average=average,
        )
        return state, metrics

    frozen = sharded(mesh, teacher.state) if teacher else None
    return jax.jit(
        step,
        in_shardings=(frozen, shards, batch_sharded(mesh)),
        out_shardings=(shards, replicated(mesh)),
        donate_argnums=1,
    )


def _accumulate(
    gradient: Callable, trained: dict, stats: nnx.State, batch: Batch, key: Array, count: int
) -> tuple[Any, nnx.State, Metrics]:
    """Mean gradient and metrics over ``count`` micro-batches, each with its own batch norms."""
    if count == 1:
        result, (stats, metrics) = gradient(trained, stats, {**batch, "micro": 0}, key)
        return result, stats, metrics

    def split(rows: Array) -> Array:  # every device keeps its own rows
        return rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]).swapaxes(0, 1)

    def add(carry: tuple, micro: Batch) -> tuple[tuple, None]:
        stats, total = carry
        result, (stats, metrics) = gradient(trained, stats, micro, key)
        return (stats, jax.tree.map(jnp.add, total, (result, metrics))), None

    micros = {**jax.tree.map(split, batch), "micro": jnp.arange(count)}
    first = jax.tree.map(lambda rows: rows[0], micros)
    result, (_, metrics) = jax.eval_shape(gradient, trained, stats, first, key)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (result, metrics))
    (stats, total), _ = jax.lax.scan(add, (stats, nothing), micros)
    result, metrics = jax.tree.map(lambda sum: sum / count, total)
    return result, stats, metrics
