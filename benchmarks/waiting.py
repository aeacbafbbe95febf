"""The share of the time of training steps that is spent waiting for input; part of input.py."""

import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any


def print_waiting(loader: Iterator[Any], batch: int, name: str, steps: int = 10) -> None:
    """Trains DeiT-Ti with ``loader``'s batches of ``batch`` images and prints the share.

    As in training, a batch is fetched while the step before it runs. Where that step has ended
    once the batch is there, all of the time for fetching counts as waiting: an upper bound.
    """
    import jax

    from spvit_jax.data.pipeline import prefetch
    from spvit_jax.training.sharding import batch_sharded, make_mesh

    step, state = training_step()
    batches = prefetch(loader, batch_sharded(make_mesh()))
    state, _ = jax.block_until_ready(step(state, next(batches)))  # compiles
    start = time.perf_counter()
    state, metrics = step(state, next(batches))
    waited = fetched = 0.0
    for _ in range(steps):
        begin = time.perf_counter()
        images = next(batches)
        seconds = time.perf_counter() - begin
        fetched += seconds
        waited += seconds if metrics["loss"].is_ready() else 0.0
        state, metrics = step(jax.block_until_ready(state), images)
    jax.block_until_ready(state)
    total = time.perf_counter() - start
    rate, share = batch * (steps + 1) / total, waited / total
    print(f"\nwaiting, DeiT-Ti, batch {batch}, {name}, {steps} steps on this machine")
    print(f"{rate:.1f} images/s trained; at most {share:.1%} of the time spent waiting for input;")
    print(f"fetching it took {fetched / total:.1%}, which runs beside the steps")
    print(json.dumps({"waiting": {"images_per_second": rate, "share": share}}))


def training_step() -> tuple[Callable[..., Any], Any]:
    """A jitted DeiT-Ti step with the recipe's work on batches, in float32, and its first state."""
    import jax
    from flax import nnx

    from spvit_jax.config import Training
    from spvit_jax.models import ViT
    from spvit_jax.models.vit import VARIANTS
    from spvit_jax.training.losses import classification
    from spvit_jax.training.normalise import Normalise
    from spvit_jax.training.optim import optimizer
    from spvit_jax.training.prepare import prepare_images
    from spvit_jax.training.sharding import make_mesh, replicated
    from spvit_jax.training.step import Step

    mesh, adamw = make_mesh(), optimizer(Training(), lambda step: 1e-4)
    model = ViT(VARIANTS["deit_tiny_patch16_224"], rngs=nnx.Rngs(0))
    prepare = partial(
        prepare_images,
        normalise=Normalise((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        classes=model.spec.classes,
        erasing=0.25,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
    )
    step = Step(classification, adamw, prepare)
    state = jax.device_put(step.initial(model, 0), replicated(mesh))
    return partial(step.program(nnx.graphdef(model), mesh, state), None), state
