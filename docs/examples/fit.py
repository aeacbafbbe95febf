"""Fine-tuning a pruned model on your own batches with your own loss, on all devices."""

import numpy as np
import optax

import spvit_jax as spvit

small = spvit.load("small.safetensors")
images, labels = np.load("images.npy"), np.load("labels.npy")  # uint8 [n, h, w, 3], int [n]
pixels = np.asarray(spvit.preprocess(small, images))
rng = np.random.default_rng(0)


def batches():
    """Endless ones; names and number of arrays are yours, their first axis is the batch."""
    while True:
        rows = rng.integers(0, len(pixels), 32)
        yield {"images": pixels[rows], "labels": labels[rows]}


def loss(model, batch, key):
    """Any differentiable value, and numbers to be seen beside it."""
    logits = sum(model.heads(batch["images"], key=key, train=True))
    value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
    return value, {"right": (logits.argmax(-1) == batch["labels"]).mean()}


tuned = spvit.fit(small, batches(), loss=loss, steps=20, learning_rate=3e-4)
spvit.save(tuned, "tuned.safetensors")
