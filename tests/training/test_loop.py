import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.progress import Console
from spvit_jax.training.checkpoint import Checkpoints
from spvit_jax.training.loop import Interrupted, Loop, NonFiniteLoss
from spvit_jax.training.metrics import read_metrics
from spvit_jax.training.sharding import make_mesh, replicated
from spvit_jax.training.step import TrainState

SHARDING = replicated(make_mesh())
EVERY = 4
TIMES = {"step_seconds": 0, "input_wait": 0}  # differ from run to run


def initial():
    state = TrainState(
        step=jnp.int32(0),
        key=jnp.zeros(2, jnp.uint32),
        params={"kernel": jnp.zeros(3)},
        stats={},
        gates=(),
        optimizer={},
        average=None,
    )
    return jax.device_put(state, SHARDING)


def train(directory, *, steps=10, loss=None, weight=None, stop_at=None, cut=None, evaluated=None):
    """Steps whose loss is their number, from where ``directory`` is; the last state.

    ``loss`` and ``weight`` replace those of the steps they name; ``stop_at`` is the step at which
    a stop is asked for, ``cut`` the one in whose evaluation it is.
    """
    seen = []

    def step(state, batch):
        number = int(state.step) + 1
        seen.append(number)
        value = (loss or {}).get(number, number / 8)
        kernel = state.params["kernel"] + (weight or {}).get(number, number)
        state = TrainState(**{**vars(state), "step": state.step + 1, "params": {"kernel": kernel}})
        return state, {"loss": jnp.float32(value), "gradient_norm": jnp.float32(1)}

    def evaluate(state):
        if evaluated is not None:
            evaluated.append(int(state.step))
        if int(state.step) == cut:
            raise Interrupted("stopped during an evaluation")
        return {"top1": float(state.params["kernel"][0]) / 64}

    loop = Loop(
        name="test",
        folder=directory,
        steps=steps,
        batch_size=2,
        log_every=3,
        eval_steps=5,
        checkpoint_every=EVERY,
        evaluate=evaluate,
        should_stop=lambda: bool(seen) and seen[-1] == stop_at,
        console=Console(silent=True),
    )
    everywhere = jax.tree.map(lambda leaf: SHARDING, initial())
    return loop.run(initial(), everywhere, lambda state: (step, itertools.repeat({})))


def saved(directory):
    with Checkpoints(directory, EVERY) as checkpoints:
        return checkpoints.steps


def test_metrics_evaluations_and_checkpoints_are_at_their_steps(tmp_path):
    evaluated = []
    state = train(tmp_path, evaluated=evaluated)
    assert int(state.step) == 10
    np.testing.assert_array_equal(state.params["kernel"], 55)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [3, 5, 6, 9, 10]
    assert [row["step"] for row in rows if "top1" in row] == evaluated == [5, 10]
    assert rows[0]["loss"] == 3 / 8
    assert saved(tmp_path) == [8, 10]


def test_a_finished_training_takes_no_step(tmp_path):
    train(tmp_path)
    state = train(tmp_path, loss=dict.fromkeys(range(20), np.nan))
    assert int(state.step) == 10


@pytest.mark.parametrize("stop_at", range(1, 10))
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path, stop_at):
    train(tmp_path / "whole")
    with pytest.raises(Interrupted, match=f"step {stop_at} of 10"):
        train(tmp_path / "parts", stop_at=stop_at)
    assert saved(tmp_path / "parts")[-1] == stop_at
    state = train(tmp_path / "parts")
    np.testing.assert_array_equal(state.params["kernel"], 55)
    whole, parts = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [row | TIMES for row in whole] == [row | TIMES for row in parts]


@pytest.mark.parametrize("cut", [5, 10])
def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(tmp_path, cut):
    train(tmp_path / "whole")
    evaluated = []
    with pytest.raises(Interrupted, match=f"step {cut} of 10, which is saved"):
        train(tmp_path / "parts", cut=cut)
    assert saved(tmp_path / "parts")[-1] == cut
    with pytest.raises(Interrupted, match="stopped during an evaluation"):
        train(tmp_path / "parts", cut=cut, evaluated=evaluated)  # again
    assert "top1" not in read_metrics(tmp_path / "parts")[-1]
    train(tmp_path / "parts", evaluated=evaluated)
    assert evaluated == [cut, cut] + [10] * (cut < 10)
    whole, parts = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [list(row) for row in whole] == [list(row) for row in parts]
    assert [row | TIMES for row in whole] == [row | TIMES for row in parts]


def test_an_evaluation_whose_state_is_lost_is_not_made_of_another_one(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", cut=10)
    shutil.rmtree(tmp_path / "parts" / "10")
    train(tmp_path / "parts")  # from step 8
    whole, parts = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    assert [row | TIMES for row in whole] == [row | TIMES for row in parts]


def test_a_stop_at_the_last_step_ends_as_usual(tmp_path):
    assert int(train(tmp_path, stop_at=10).step) == 10


@pytest.mark.parametrize("bad", range(1, 11))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_and_names_its_step(tmp_path, bad, value):
    good = [step for step in (4, 8) if step < bad]
    kept = f"checkpoint of step {good[-1]} is kept" if good else "no checkpoint yet"
    with pytest.raises(NonFiniteLoss, match=f"step {bad} gave loss {value:g}.*{kept}"):
        train(tmp_path, loss={bad: value})
    assert saved(tmp_path) == good
    assert all(row["step"] < bad for row in read_metrics(tmp_path))


@pytest.mark.parametrize("bad", [6, 10])
def test_weights_that_are_not_finite_are_never_saved(tmp_path, bad):
    with pytest.raises(NonFiniteLoss, match="kernel"):
        train(tmp_path, weight={bad: np.inf})
    assert saved(tmp_path) == [step for step in (4, 8) if step < bad]


def test_nor_are_they_where_a_stop_is_asked_for(tmp_path):
    with pytest.raises(NonFiniteLoss):
        train(tmp_path, weight={6: np.nan}, stop_at=6)
    assert saved(tmp_path) == [4]
