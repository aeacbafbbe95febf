"""The paper's search by its pieces: gates outside of the network, trained with the weights."""

import jax
import numpy as np
import optax
from flax import nnx

import spvit_jax as spvit

dense = spvit.load("hf-hub:timm/deit_small_patch16_224.fb_in1k")
images, labels = np.load("images.npy"), np.load("labels.npy")  # uint8 [n, h, w, 3], int [n]
pixels = spvit.preprocess(dense, images)

space = spvit.Space(dense.spec.blocks)  # what each block may lose: its operation, FFN units
prices = spvit.macs(dense.spec, space.ops)
budget = spvit.Budget(prices, 0.6 * prices.dense)
graph, params, rest = nnx.split(spvit.supernet(dense), nnx.Param, ...)
trained = (params, spvit.initial_logits(space))
rule = optax.adam(1e-3)
state = rule.init(trained)


@jax.jit
def step(trained, state, key, images, labels):
    """Weights and gate logits after a step, with gates drawn for it."""

    def loss(trained):
        params, gate_logits = trained
        logits = nnx.merge(graph, params, rest)(images, spvit.sample(space, gate_logits, key))
        value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return value + spvit.penalty(space, gate_logits, (budget,), 10.0)

    updates, state = rule.update(jax.grad(loss)(trained), state, trained)
    return optax.apply_updates(trained, updates), state


for number in range(20):
    rows = np.random.default_rng(number).integers(0, len(labels), 32)
    trained, state = step(trained, state, jax.random.key(number), pixels[rows], labels[rows])
params, gate_logits = trained
architecture = spvit.project(space, gate_logits, (budget,))
print(architecture)
small = spvit.fold(spvit.prune(nnx.merge(graph, params, rest), architecture))
spvit.save(small, "searched.safetensors")
