import dataclasses

import jax
import jax.numpy as jnp
import pytest

from spvit_jax.config import Config, Model, Training
from spvit_jax.convert import forms
from spvit_jax.models import ViTSpec
from spvit_jax.planning.forecast import forecast
from spvit_jax.planning.macs import macs
from spvit_jax.planning.trainings import Images, Planned
from spvit_jax.single_path import prices
from spvit_jax.training.recipe import Recipe
from spvit_jax.training.sharding import make_mesh

SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)
SIZE, TOKENS, WIDTH = 8, 17, 24
AVERAGE = dataclasses.replace(SPEC, class_token=False, pool="norm_average")
A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


def count(function, *arguments):
    return macs(jax.make_jaxpr(function)(*arguments).jaxpr)


def looped(a, b):
    def body(carry, _):
        return carry, carry @ b

    return jax.lax.scan(body, a, None, length=7)


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", feature_group_count=2)


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (jnp.matmul, (A, B), 60),
        (lambda a, b: jnp.einsum("nij,njk->nik", a, b), (A[None], B[None]), 60),
        (jax.jit(lambda a, b: jnp.tanh(a @ b) * 2), (A, B), 60),
        (looped, (A, B), 7 * 60),
        (jax.grad(lambda a, b: jnp.sin(a @ b).sum(), argnums=(0, 1)), (A, B), 3 * 60),
        (jax.grad(jax.remat(lambda a: jnp.sin(a @ B).sum())), (A,), 3 * 60),  # once again
        (lambda a: a * 2 + a.sum(), (A,), 0),
        # 2 x 3 outputs of 6 channels, each of a 3 x 3 window of 4 / 2 channels
        (convolved, (jnp.ones((1, 4, 4, 6)), jnp.ones((6, 2, 3, 3))), 6 * 2 * 3 * 2 * 9),
    ],
)
def test_products_are_counted_exactly(function, arguments, expected):
    assert count(function, *arguments) == expected


def test_a_product_that_may_run_any_number_of_times_is_refused():
    def until(a):
        return jax.lax.while_loop(lambda x: x.sum() < 1e9, lambda x: x @ jnp.ones((3, 3)), a)

    with pytest.raises(ValueError, match="any number of times"):
        count(until, jnp.ones((3, 3)))
    assert count(lambda a: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x + 1, a), A) == 0


@pytest.mark.parametrize(
    ("pool", "remat", "accumulation"),
    [("token", False, 1), ("average", False, 4), ("token", True, 1)],
)
def test_a_step_is_three_times_the_forward_pass(pool, remat, accumulation):
    spec = AVERAGE if pool == "average" else SPEC
    training = Training(batch_size=SIZE, accumulation=accumulation)
    config = Config(model=Model(variant=""))
    model = forms.build(spec, "dense", remat=remat)
    recipe = Recipe.of(config, training, 64, spec.classes)
    found = forecast(
        Planned("pretrain", recipe, model, None, ""), config, Images(64, 16, 7), make_mesh()
    )
    forward = prices.macs(spec).dense
    assert found.evaluation_macs == 500 * forward  # one batch, filled up
    patches, head = 16 * 3 * 4**2 * WIDTH, WIDTH * 7
    fc2 = (TOKENS + 1) * 48 * WIDTH  # of the last block, for the class token alone
    again = forward - patches - head - fc2 if remat else 0  # what the backward pass needs
    assert found.macs == SIZE * (3 * forward - patches + again)  # pixels have no gradient
