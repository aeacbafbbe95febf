"""Tiny models with nothing left at its initial value, and random architectures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import ViT, ViTSpec
from spvit_jax.single_path.architecture import OPS, Architecture


@pytest.fixture(scope="session")
def spec():
    return ViTSpec(width=24, depth=4, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(5).standard_normal((3, 16, 16, 3))


@pytest.fixture(scope="session")
def randomise():
    """``randomise(model, seed)``: the (possibly abstract) model, every number drawn anew."""

    def draw(model, seed=0):
        rng = np.random.default_rng(seed)
        graph, state = nnx.split(model)
        drawn = []
        for path, variable in nnx.to_flat_state(state):
            name, shape = path[-1], variable.shape
            if name == "scale":
                value = rng.uniform(0.5, 1.5, shape)
            elif name == "var":
                value = 10 ** rng.uniform(-2, 0, shape)  # small enough to show epsilon
            elif name == "head_logits":
                value = 1 + 0.01 * rng.standard_normal(shape)  # in units of the temperature
            else:
                value = 0.2 * rng.standard_normal(shape)
            drawn.append((path, variable.replace(jnp.asarray(value, variable.dtype))))
        return nnx.merge(graph, nnx.from_flat_state(drawn))

    return draw


@pytest.fixture
def dense(spec, randomise):
    """A random dense model, in float64 inside ``jax.enable_x64``."""
    return lambda **options: randomise(
        nnx.eval_shape(lambda: ViT(spec, rngs=nnx.Rngs(0), **options))
    )


@pytest.fixture(scope="session")
def random_architecture(spec):
    """``random_architecture(seed)``: any op, and no, some or all FFN units in each block."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        ops = rng.permutation(OPS)  # all four, so that every seed compiles them all
        kept = [np.sort(rng.permutation(48)[:count]) for count in rng.permutation([0, 7, 20, 48])]
        return Architecture(
            tuple(str(op) for op in ops), tuple(tuple(int(u) for u in units) for units in kept)
        )

    assert spec.depth == len(OPS)
    return draw


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield
