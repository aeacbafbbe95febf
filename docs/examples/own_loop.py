"""A pruned model in a training loop of your own: plain JAX and optax, nothing of this package."""

import jax
import numpy as np
import optax
from flax import nnx

import spvit_jax as spvit

small = spvit.load("small.safetensors")
images, labels = np.load("images.npy"), np.load("labels.npy")  # uint8 [n, h, w, 3], int [n]
pixels = spvit.preprocess(small, images)
graph, params, rest = nnx.split(small, nnx.Param, ...)  # rest: batch norm's statistics
rule = optax.adamw(3e-4)


@jax.jit
def step(params, state, images, labels):
    """The weights and the optimiser's state after a step, and the loss before it."""

    def loss(params):
        logits = nnx.merge(graph, params, rest)(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = rule.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


state = rule.init(params)
for number in range(20):
    rows = np.random.default_rng(number).integers(0, len(labels), 32)
    params, state, value = step(params, state, pixels[rows], labels[rows])
spvit.save(nnx.merge(graph, params, rest), "looped.safetensors")
