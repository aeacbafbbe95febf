import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.config import Budget, Config, Search, Training
from spvit_jax.data.errors import DataError
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.single_path import prices
from spvit_jax.single_path.gating import Gating
from spvit_jax.training.recipe import Recipe

SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)


@pytest.mark.parametrize(
    ("epochs", "every", "steps", "evaluation"),
    [(3, 1, 30, 10), (0.25, 0.5, 2, 5), (0.01, 0, 1, 0)],
)
def test_epochs_become_steps_of_whole_batches(epochs, every, steps, evaluation):
    recipe = Recipe.of(Config(), Training(epochs=epochs, batch_size=32), 351, 7)
    assert recipe.steps == steps
    assert recipe.steps_in(every) == evaluation


def test_a_number_of_steps_may_be_given_and_the_rate_goes_by_it():
    training = Training(epochs=3, batch_size=32, schedule="cosine", learning_rate=1.0)
    recipe = Recipe.of(Config(), training, 351, 7, steps=2)
    assert (recipe.steps, recipe.steps_per_epoch) == (2, 10)
    model = ViT(SPEC, rngs=nnx.Rngs(0))
    state, optimizer = recipe.initial(model), recipe.step.optimizer
    trained = {"params": state.params, "gates": ()}
    gradient = jax.tree.map(jnp.ones_like, trained)
    updates, after = optimizer.update(gradient, state.optimizer, trained)
    first = float(updates["params"]["head"]["bias"][...][0])
    updates, _ = optimizer.update(gradient, after, trained)
    second = float(updates["params"]["head"]["bias"][...][0])
    np.testing.assert_allclose((first, second), (-1, -0.5), rtol=1e-4)  # half way down at step 1


def test_less_than_a_batch_is_refused():
    with pytest.raises(DataError, match="a batch of 32 images is more than the 31"):
        Recipe.of(Config(), Training(batch_size=32), 31, 7)


def test_a_search_begins_with_open_gates_and_pays_for_what_is_above_its_target():
    search = Search(budget_lambda=2.0, axes=("op", "heads", "ffn"))
    gating = Gating.of(search, Budget(macs=0.5), SPEC)
    target = round(0.5 * prices.published_macs(SPEC).dense)  # a share is of what everybody quotes
    assert gating.budgets[0].target == target
    surplus = prices.macs(SPEC).dense / target - 1  # what is pruned is counted as it runs
    np.testing.assert_allclose(gating.penalty(gating.initial()), 2.0 * surplus**2, rtol=1e-5)
    recipe = Recipe.of(Config(seed=5), search, 256, 7, gating=gating)
    state = recipe.initial(ViT(SPEC, rngs=nnx.Rngs(0)))
    assert {axis: x.shape for axis, x in state.gates[1].items()} == {
        "op": (3,), "heads": (3,), "ffn": (48,)
    }  # fmt: skip
    assert state.average is None
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(5)))


def test_what_is_averaged_begins_as_the_weights():
    recipe = Recipe.of(Config(), Training(ema_decay=0.9), 256, 7)
    state = recipe.initial(ViT(SPEC, rngs=nnx.Rngs(0)))
    assert state.gates == () and state.weights is state.average is not None
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), state.average, state.params)
    assert isinstance(state.step, jnp.ndarray)
