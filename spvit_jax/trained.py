"""The networks of a run at work: its dense model, a teacher, and the training of any."""

import os
from collections.abc import Iterator
from functools import partial
from typing import TypeVar

import jax
from flax import nnx

from spvit_jax import hosts, pretrained, teachers
from spvit_jax.config import Training
from spvit_jax.context import USER_ERRORS, Context
from spvit_jax.data.pipeline import prefetch, train_batches
from spvit_jax.models import Classifier, RegNetSpec
from spvit_jax.remote import public
from spvit_jax.single_path import prices
from spvit_jax.single_path.gates import Gates
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.training.loop import EVALUATED, Loop, Metrics, TakeStep
from spvit_jax.training.metrics import METRICS_FILE
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.recipe import Recipe
from spvit_jax.training.sharding import batch_sharded, local_rows, place, sharded, whole
from spvit_jax.training.step import Batch, TrainState
from spvit_jax.training.teacher import Teacher, freeze

Model = TypeVar("Model", bound=Classifier)


def load_dense(context: Context) -> Classifier:
    """Loads the pretrained dense model, and says what it is."""
    notes: list[str] = []
    with hosts.together(*USER_ERRORS):
        dense = context.inputs.dense
        if dense is None:
            names = () if context.fresh else context.test.class_names
            dense = pretrained.load_dense(context.config, context.spec, notes, names)
    hosts.agree_on("model.checkpoint", nnx.state(dense))
    facts = [f"{context.name}: {count_parameters(dense):,} parameters"]
    if not isinstance(context.spec, RegNetSpec):
        run, published = prices.macs(context.spec), prices.published_macs(context.spec)
        facts.append(f"{run.dense:,} MACs, {published.dense:,} as published")
    context.console.stage("dense", ", ".join(facts))
    for note in notes:
        context.console.say(note)
    return dense


def load_teacher(context: Context, training: Training) -> Teacher | None:
    """Loads the teacher of a training that distils; None: of any other."""
    if training.distillation == "none":
        return None
    with hosts.together(*USER_ERRORS):
        if context.inputs.dense is not None and not context.config.teacher.checkpoint:
            data = context.config.data
            teacher = freeze(context.inputs.dense, Normalise(data.mean, data.std))
        else:
            features = training.distillation == "features"
            teacher = teachers.load_teacher(context.config, context.spec, features)
    hosts.agree_on("teacher.checkpoint", teacher.state)
    name = public(context.config.teacher.checkpoint) or f"{context.name}, dense"
    context.console.say(f"teacher   {name}: {training.distillation} distillation")
    return teacher


def fit(
    context: Context,
    name: str,
    model: Model,
    training: Training,
    *,
    gating: Gating | None = None,
    steps: int = 0,
) -> tuple[Model, Gates]:
    """Trains ``model`` as ``training`` says, or goes on with it, in the folder ``name``.

    Args:
      context: of the run.
      name: of the folder, inside the workdir, for checkpoints and metrics.
      model: stays as it is.
      training: of the config, or one like it.
      gating: of a search.
      steps: to take; 0: as many as ``training.epochs`` has.

    Returns:
      The model and the gate logits at the end. A training that has ended is only read, and then
      no teacher is loaded.

    Raises:
      Interrupted, NonFiniteLoss, CheckpointError: see ``Loop``.
    """
    config, mesh, spec, graph = context.config, context.mesh, model.spec, nnx.graphdef(model)
    images = len(context.train)
    recipe = Recipe.of(config, training, images, spec.classes, gating=gating, steps=steps)
    evaluator = context.evaluator
    counting = evaluator.step(model) if context.labelled else None

    def begin(state: TrainState) -> tuple[TakeStep, Iterator[Batch]]:
        context.workdir.forget(f"{name}/{METRICS_FILE}")
        teacher = load_teacher(context, training)
        program = recipe.program(graph, mesh, state, teacher)
        frozen = teacher and place(teacher.state, sharded(mesh, teacher.state))
        batches = train_batches(
            context.train,
            config.data,
            batch_size=recipe.batch_size,
            rows=local_rows(mesh, recipe.batch_size),
            image_size=spec.image_size,
            seed=config.seed,
            start_step=int(state.step),
        )
        return partial(program, frozen), prefetch(batches, batch_sharded(mesh))

    def evaluate(state: TrainState) -> Metrics:
        assert counting is not None
        gates = gating.decide(state.gates) if gating else None
        counts = evaluator.count(counting, spec, state.weights, state.stats, gates)
        return {EVALUATED: counts.top1}

    def describe(state: TrainState) -> Metrics:
        return gating.metrics(jax.device_get(state.gates)) if gating else {}

    loop = Loop(
        name=name,
        folder=context.workdir / name,
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        log_every=config.log_every,
        eval_steps=recipe.steps_in(config.eval_every),
        checkpoint_every=config.checkpoint_every,
        evaluate=evaluate if counting else None,
        should_stop=context.should_stop,
        console=context.console,
        describe=describe,
        profile=context.profile and os.path.join(context.profile, name),
        unsaved=hosts.unsaved(context.should_stop),
    )
    initial = recipe.initial(model)
    state = loop.run(initial, sharded(mesh, initial), begin)
    context.workdir.keep(f"{name}/{METRICS_FILE}")
    weights, stats, gates = whole(mesh, (state.weights, state.stats, state.gates))
    return nnx.merge(graph, weights, stats, copy=True), gates
