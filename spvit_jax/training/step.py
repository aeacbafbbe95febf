"""The training step: a pure function of pytrees, jitted once.

Pretraining, search and fine-tuning take the same step. What it minimises and what it makes of a
batch are arguments; gates are a search's.
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

from spvit_jax.models import Tokens
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.training.sharding import batch_sharded, gathered, replicated, sharded

Array = jax.Array
Batch = dict[str, Any]  # of data: "image" uint8 [b, H, W, 3], "label" int32 [b]
Metrics = dict[str, Array]
Loss = Callable[[Any, Batch, Array], tuple[Array, Metrics]]  # (model, batch, key)
Prepare = Callable[[Batch, Array, Any], Batch]  # (batch, key, frozen arrays)


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

    @property
    def weights(self) -> nnx.State:
        """Those that are evaluated and handed on: the average, where there is one."""
        return self.params if self.average is None else self.average


@dataclasses.dataclass(frozen=True)
class Gated:
    """A supernet under the gates of one step: losses call it as any other network."""

    model: Any  # a supernet
    gates: Gates

    @property
    def spec(self) -> Any:
        """The dense model's."""
        return self.model.spec

    def heads(self, images: Array, **options: Any) -> tuple[Array, ...]:
        """The logits ``[batch, classes]`` of each head; options are ``key`` and ``train``."""
        return self.model.heads(images, self.gates, **options)

    def stream(self, images: Array, **options: Any) -> list[Tokens]:
        """What leaves each block; see ``Transformer.stream``."""
        return self.model.stream(images, self.gates, **options)

    def classify(self, tokens: Tokens) -> tuple[Array, ...]:
        """The logits of each head, of what left the last block."""
        return self.model.classify(tokens)


def unprepared(batch: Batch, key: Array, frozen: Any) -> Batch:
    """The batch as it is."""
    return batch


@dataclasses.dataclass(frozen=True)
class Step:
    """What a step does.

    Attributes:
      loss: ``(model, batch, key) -> (value, metrics)``. It calls ``model.heads(images, key=key,
        train=True)``, ``model.stream`` and ``model.classify``; of batch norm's statistics, the
        model keeps those of this call.
      optimizer: over ``{"params": ..., "gates": ...}``.
      prepare: ``(batch, key, frozen) -> batch`` makes of the data's batch what the loss sees, on
        the device and without a gradient.
      gating: of a search; its penalty is added to the loss.
      accumulation: micro-batches.
      ema_decay: of the average of the weights; 0: none.
    """

    loss: Loss
    optimizer: optax.GradientTransformation
    prepare: Prepare = unprepared
    gating: Gating | None = None
    accumulation: int = 1
    ema_decay: float = 0.0

    def initial(self, model: nnx.Module, seed: int) -> TrainState:
        """The state of step 0, holding copies of the model's arrays."""
        params, stats = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        gates = self.gating.initial() if self.gating else ()
        params, stats, gates = jax.tree.map(jnp.copy, (params, stats, gates))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            key=jax.random.key_data(jax.random.key(seed)),
            params=params,
            stats=stats,
            gates=gates,
            optimizer=self.optimizer.init({"params": params, "gates": gates}),
            average=jax.tree.map(jnp.copy, params) if self.ema_decay > 0 else None,
        )

    def program(
        self, graph: nnx.GraphDef, mesh: Mesh, state: TrainState, frozen: Any = None
    ) -> jax.stages.Wrapped:
        """The jitted ``(frozen, state, batch) -> (state, metrics)``; the state is donated.

        Batch norm's statistics are those of the whole batch, wherever its rows live.

        Args:
          graph: of the model.
          mesh: where it runs, or, of a topology without its devices, where it would.
          state: of the training, for its shapes alone; may be abstract, as may ``frozen``.
          frozen: arrays that ``prepare`` is given and nothing changes, such as a teacher's.
        """
        shards, fixed = sharded(mesh, state), sharded(mesh, frozen)

        def step(frozen: Any, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
            trained = {"params": state.params, "gates": state.gates}
            gradient = partial(self._gradient, graph, mesh, frozen, key, trained)
            summed, stats, metrics = _accumulate(gradient, state.stats, batch, self.accumulation)
            scattered = {"params": shards.params, "gates": shards.gates}
            summed = jax.lax.with_sharding_constraint(summed, scattered)
            metrics["gradient_norm"] = optax.tree.norm(summed["params"])
            return self._updated(state, summed, stats), metrics

        return jax.jit(
            step,
            in_shardings=(fixed, shards, batch_sharded(mesh)),
            out_shardings=(shards, replicated(mesh)),
            donate_argnums=1,
        )

    def _gradient(
        self,
        graph: nnx.GraphDef,
        mesh: Mesh,
        frozen: Any,
        key: Array,
        trained: dict[str, Any],
        stats: nnx.State,
        batch: Batch,
        micro: Array | int,
    ) -> tuple[Any, nnx.State, Metrics]:
        """The gradient, batch norm's statistics and metrics of micro-batch number ``micro``."""
        gates_key, drop_key, batch_key = jax.random.split(key, 3)
        drop_key, batch_key = (jax.random.fold_in(k, micro) for k in (drop_key, batch_key))
        prepared = self.prepare(batch, batch_key, gathered(mesh, frozen))

        def loss(trained: dict[str, Any]) -> tuple[Array, tuple[nnx.State, Metrics]]:
            network: Any = nnx.merge(graph, gathered(mesh, trained["params"]), stats, copy=True)
            model = network
            if self.gating:
                model = Gated(network, self.gating.sample(trained["gates"], gates_key))
            value, metrics = self.loss(model, prepared, drop_key)
            if self.gating:
                penalty = self.gating.penalty(trained["gates"])
                value, metrics = value + penalty, {**metrics, "penalty": penalty}
            return value, (nnx.state(network, nnx.BatchStat), {**metrics, "loss": value})

        gradient, (stats, metrics) = jax.grad(loss, has_aux=True)(trained)
        return gradient, stats, metrics

    def _updated(self, state: TrainState, gradient: Any, stats: nnx.State) -> TrainState:
        """The state after a step down the ``gradient``."""
        trained = {"params": state.params, "gates": state.gates}
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        average = state.average
        if average is not None:
            average = optax.incremental_update(trained["params"], average, 1 - self.ema_decay)
        return TrainState(
            step=state.step + 1,
            key=state.key,
            params=trained["params"],
            stats=stats,
            gates=trained["gates"],
            optimizer=optimizer,
            average=average,
        )


def _accumulate(
    gradient: Callable, stats: nnx.State, batch: Batch, count: int
) -> tuple[Any, nnx.State, Metrics]:
    """Mean gradient and metrics over ``count`` micro-batches, each with its own batch norms."""
    if count == 1:
        return gradient(stats, batch, 0)

    def split(rows: Array) -> Array:  # every device keeps its own rows
        return rows.reshape(rows.shape[0] // count, count, *rows.shape[1:]).swapaxes(0, 1)

    def add(carry: tuple, micro: tuple[Batch, Array]) -> tuple[tuple, None]:
        stats, total = carry
        result, stats, metrics = gradient(stats, *micro)
        return (stats, jax.tree.map(jnp.add, total, (result, metrics))), None

    micros = jax.tree.map(split, batch), jnp.arange(count)
    first = jax.tree.map(lambda rows: rows[0], micros)
    result, _, metrics = jax.eval_shape(gradient, stats, *first)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (result, metrics))
    (stats, total), _ = jax.lax.scan(add, (stats, nothing), micros)
    result, metrics = jax.tree.map(lambda sum: sum / count, total)
    return result, stats, metrics
