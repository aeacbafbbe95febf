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
from spvit_jax.training.task import Task

SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)


@pytest.mark.parametrize(
    ("epochs", "every", "steps", "evaluation"),
    [(3, 1, 30, 10), (0.25, 0.5, 2, 5), (0.01, 0, 1, 0)],
)
def test_epochs_become_steps_of_whole_batches(epochs, every, steps, evaluation):
    task = Task.of(Config(), Training(epochs=epochs, batch_size=32), images=351)
    assert task.steps == steps
    assert task.evaluation_steps(every) == evaluation


def test_less_than_a_batch_is_refused():
    with pytest.raises(DataError, match="a batch of 32 images is more than the 31"):
        Task.of(Config(), Training(batch_size=32), images=31)


def test_a_search_begins_with_open_gates_and_pays_for_what_is_above_its_target():
    search = Search(budget_lambda=2.0, axes=("op", "heads", "ffn"))
    gating = Gating.of(search, Budget(macs=0.5), SPEC)
    target = round(0.5 * prices.published_macs(SPEC).dense)  # a share is of what everybody quotes
    assert gating.budgets[0].target == target
    surplus = prices.macs(SPEC).dense / target - 1  # what is pruned is counted as it runs
    np.testing.assert_allclose(gating.penalty(gating.initial()), 2.0 * surplus**2, rtol=1e-5)
    task = Task.of(Config(seed=5), search, 256, gating)
    state = task.initial(ViT(SPEC, rngs=nnx.Rngs(0)))
    assert {axis: x.shape for axis, x in state.gates[1].items()} == {
        "op": (3,), "heads": (3,), "ffn": (48,)
    }  # fmt: skip
    assert state.average is None
    np.testing.assert_array_equal(state.key, jax.random.key_data(jax.random.key(5)))


def test_what_is_averaged_begins_as_the_weights():
    state = Task.of(Config(), Training(ema_decay=0.9), 256).initial(ViT(SPEC, rngs=nnx.Rngs(0)))
    assert state.gates == () and state.average is not None
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), state.average, state.params)
    assert isinstance(state.step, jnp.ndarray)
