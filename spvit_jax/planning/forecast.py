"""What one training would take: its step compiled for devices that need not be there."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from spvit_jax.config import Config
from spvit_jax.planning.collectives import sent
from spvit_jax.planning.macs import macs
from spvit_jax.planning.trainings import Images, Planned
from spvit_jax.sizes import Size, sides
from spvit_jax.training.evaluate import make_eval_step, no_totals
from spvit_jax.training.normalise import Normalise

PREFETCHED = 2  # batches on the devices before they are asked for


@dataclasses.dataclass(frozen=True)
class Memory:
    """Of one device, in bytes."""

    state: int  # weights, optimiser, average, statistics and the teacher
    batches: int  # the one that is computed on, and those under way
    temporary: int  # activations, gradients and workspace
    program: int  # the instructions themselves

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.batches + self.temporary + self.program


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What was read off the programs of one training. MACs are of all devices together."""

    name: str  # of the stage
    batch_size: int
    steps: int
    macs: int  # a step: forward, backward, what is recomputed, and the teacher
    evaluations: int
    evaluation_macs: int  # one pass over the test images
    memory: Memory | None  # None: the program does not fit
    refusal: str  # what the compiler says then
    sent: dict[str, int]  # bytes that each device sends in a step, by kind of collective

    def step_seconds(self, operations: float) -> float:
        """Of a step on devices that do so many operations a second, two a MAC."""
        return 2 * self.macs / operations

    def hours(self, operations: float) -> float:
        """Of the training with its evaluations."""
        total = self.steps * self.macs + self.evaluations * self.evaluation_macs
        return 2 * total / operations / 3600


def forecast(planned: Planned, config: Config, images: Images, mesh: Mesh) -> Forecast:
    """Traces and compiles the step of one training for the devices of ``mesh``."""
    recipe, size = planned.recipe, planned.recipe.batch_size
    graph, variables = nnx.split(planned.model)
    state = jax.eval_shape(lambda leaves: recipe.initial(nnx.merge(graph, leaves)), variables)
    batch = _batch(size, planned.model.spec.image_size)
    program = recipe.program(graph, mesh, state, planned.teacher)
    frozen = planned.teacher.state if planned.teacher else None
    traced = program.trace(frozen, state, batch)
    memory, refusal, hlo = None, "", ""
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        refusal = str(error).partition("RESOURCE_EXHAUSTED: ")[2].partition("\n")[0]
    else:
        memory, hlo = _memory(compiled, _bytes(batch) // mesh.size), compiled.as_text()
    every = recipe.steps_in(config.eval_every)
    return Forecast(
        name=planned.name,
        batch_size=size,
        steps=recipe.steps,
        macs=macs(traced.jaxpr.jaxpr),
        evaluations=-(-recipe.steps // every) if every else 1,
        evaluation_macs=_evaluation_macs(planned, config, images, mesh, state),
        memory=memory,
        refusal=refusal,
        sent=sent(hlo, mesh.size, recipe.step.accumulation),
    )


def _batch(size: int, image_size: Size, **more: Any) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "image": jax.ShapeDtypeStruct((size, *sides(image_size), 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        **more,
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _memory(compiled: Any, batch: int) -> Memory:
    """What a compiled step, which is given a batch of so many bytes, takes of a device."""
    stats = compiled.memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Memory(
        state=held - batch,
        batches=batch * (1 + PREFETCHED),
        temporary=stats.temp_size_in_bytes,
        program=stats.generated_code_size_in_bytes,
    )


def _evaluation_macs(
    planned: Planned, config: Config, images: Images, mesh: Mesh, state: Any
) -> int:
    """Multiply-accumulates of one pass over the test images, the last batch filled up."""
    size = -(-config.data.eval_batch_size // mesh.size) * mesh.size
    spec = planned.model.spec
    normalise = Normalise(config.data.mean, config.data.std)
    step = make_eval_step(nnx.graphdef(planned.model), normalise, mesh, state.params)
    totals = jax.eval_shape(partial(no_totals, spec.classes, mesh))
    gating = planned.recipe.step.gating
    gates = jax.eval_shape(gating.decide, state.gates) if gating else None
    batch = _batch(size, spec.image_size, mask=jax.ShapeDtypeStruct((size,), jnp.bool))
    traced = step.trace(totals, state.params, state.stats, gates, batch)
    return -(-images.test // size) * macs(traced.jaxpr.jaxpr)
