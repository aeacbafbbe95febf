"""Tiny models with nothing left at its initial value, and random architectures."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import MODELS, SwinSpec, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.ops import PAPER
from spvit_jax.sizes import sides

VIT = ViTSpec(width=24, depth=4, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)
SWIN = SwinSpec(  # both stages shift the windows of their second block
    width=12,
    depths=(2, 2),
    heads=(3, 4),
    hidden=(50, 48),
    window=2,
    patch_size=2,
    image_size=16,
    classes=7,
)
SPECS = {
    "vit": VIT,
    "distilled": dataclasses.replace(VIT, distilled=True),
    "average": dataclasses.replace(  # on a map of 2 rows and 8 columns
        VIT, class_token=False, pool="norm_average", image_size=(8, 32)
    ),
    "swin": SWIN,
    # windows of 4x4 that shift to the right alone, and of 2x4 in the second stage
    "oblong_swin": dataclasses.replace(SWIN, window=4, image_size=(8, 32)),
}


@pytest.fixture(scope="session", params=["vit", "swin"])
def spec(request):
    """One of ``SPECS``; a test for others asks for them by ``indirect``."""
    return SPECS[request.param]


@pytest.fixture(scope="session")
def images(spec):
    return np.random.default_rng(5).standard_normal((3, *sides(spec.image_size), 3))


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
        nnx.eval_shape(lambda: MODELS[type(spec)](spec, rngs=nnx.Rngs(0), **options))
    )


@pytest.fixture(scope="session")
def random_architecture(spec):
    """``random_architecture(seed)``: any op, some heads of attention, any FFN units per block."""

    def draw(seed):
        rng = np.random.default_rng(seed)

        def some(count, of):
            return tuple(sorted(rng.permutation(of)[:count].tolist()))

        ops = tuple(map(str, rng.permutation(PAPER)))  # all, so that every seed compiles them all
        counts = rng.permutation([0, 7, 20, 99])  # more than there are: all
        ffn = tuple(some(n, block.hidden) for n, block in zip(counts, spec.blocks, strict=True))
        heads = tuple(
            some(rng.integers(1, block.heads), block.heads) if op == "msa" else ()
            for op, block in zip(ops, spec.blocks, strict=True)
        )
        return Architecture(ops, ffn, heads=heads)

    return draw
