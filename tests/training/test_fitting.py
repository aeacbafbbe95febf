"""A stranger's training: an own loss, own batches, any model of the package."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spvit_jax.models import RegNet, RegNetSpec, ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.training import fit
from spvit_jax.training.loop import NonFiniteLoss

SPEC = ViTSpec(width=16, depth=2, heads=2, hidden=16, patch_size=8, image_size=16, classes=2)
IMAGES = np.random.default_rng(0).standard_normal((8, 16, 16, 3), np.float32)
BRIGHT = IMAGES.mean((1, 2, 3))


def brightness(model, batch, key):
    """The first logit is to say how bright an image is."""
    (logits,) = model.heads(batch["pictures"], key=key, train=True)
    error = jnp.square(logits[:, 0] - batch["bright"]).mean()
    return error, {"error": error, "draw": jax.random.uniform(key)}


def models():
    regnet = RegNetSpec((8, 16), (1, 1), 8, image_size=16, classes=2)
    dense = ViT(SPEC, rngs=nnx.Rngs(0))
    pruned = prune(dense, Architecture(("conv3x3", "msa"), ((0, 3), (1,))))
    return {
        "dense": dense,
        "pruned": pruned,
        "folded": fold(pruned),
        "regnet": RegNet(regnet, rngs=nnx.Rngs(0)),
    }


def trained(model, steps=20, batches=None, seed=0):
    rows, batch = [], {"pictures": IMAGES, "bright": BRIGHT}
    small = fit(
        model,
        itertools.repeat(batch) if batches is None else batches,
        loss=brightness,
        optimizer=optax.adam(1e-2),
        steps=steps,
        seed=seed,
        after_step=lambda number, metrics: rows.append((number, jax.device_get(metrics))),
    )
    return small, rows


@pytest.mark.parametrize("name", ["dense", "pruned", "folded", "regnet"])
def test_any_model_learns_what_a_loss_of_ones_own_asks_for(name):
    model = models()[name]
    before = jax.tree.map(np.asarray, nnx.state(model))
    small, rows = trained(model)
    assert [number for number, _ in rows] == list(range(1, 21))
    assert set(rows[0][1]) == {"loss", "error", "draw", "gradient_norm"}
    assert rows[-1][1]["loss"] < 0.3 * rows[0][1]["loss"]
    assert rows[0][1]["draw"] != rows[1][1]["draw"], "each step has a key of its own"
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))
    first = jnp.square(model(IMAGES)[:, 0] - BRIGHT).mean()
    assert name == "regnet" or jnp.square(small(IMAGES)[:, 0] - BRIGHT).mean() < 0.3 * first


def test_a_seed_is_a_training():
    model = models()["dense"]
    one, same, other = (trained(model, 2, seed=seed)[1] for seed in (0, 0, 1))
    assert one == same != other


def test_batches_that_end_early_are_an_error():
    batch = {"pictures": IMAGES, "bright": BRIGHT}
    with pytest.raises(ValueError, match="3 steps need as many batches; there were 2"):
        trained(models()["dense"], 3, batches=iter([batch] * 2))


BATCH = {"pictures": IMAGES, "bright": BRIGHT}
BATCHES = {
    "a tuple": ((IMAGES, BRIGHT), TypeError, "must be a dict of arrays, got tuple"),
    "a list": (BATCH | {"bright": BRIGHT.tolist()}, TypeError, r"batch\['bright'\] .*got list"),
    "a number": (BATCH | {"weight": 0.5}, TypeError, r"batch\['weight'\] .*got float"),
    "other lengths": (
        BATCH | {"bright": BRIGHT[:4]},
        ValueError,
        r"'pictures': \[8\], 'bright': \[4",
    ),
    "nothing": ({name: x[:0] for name, x in BATCH.items()}, ValueError, "at least 1"),
}
LOSSES = {
    "alone": (lambda model, batch, key: model(batch["pictures"]).mean(), "got an array alone"),
    "nothing": (lambda model, batch, key: None, "got NoneType"),
    "for each image": (
        lambda model, batch, key: (model(batch["pictures"])[:, 0], {}),
        r"\(8,\); ta",
    ),
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_of_another_kind_is_said_to_be_one(name):
    batch, error, message = BATCHES[name]
    with pytest.raises(error, match=message):
        trained(models()["dense"], 1, [batch])


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_returns_something_else_is_said_to(name):
    loss, message = LOSSES[name]
    with pytest.raises(TypeError, match=f"must return .value, metrics.*{message}"):
        fit(models()["dense"], [BATCH], loss=loss, steps=1, progress=False)


def test_weights_that_are_lost_are_not_given_back():
    def lost(model, batch, key):
        value, metrics = brightness(model, batch, key)
        return value * jnp.nan, metrics

    options = {"loss": lost, "steps": 1, "progress": False}
    with pytest.raises(NonFiniteLoss, match=r"loss is nan at step 1 .* lower learning_rate"):
        fit(models()["dense"], [BATCH], **options)
    rule = optax.apply_if_finite(optax.sgd(1e-2), 3)  # leaves such steps out
    kept = fit(models()["dense"], [BATCH], optimizer=rule, **options)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(kept), nnx.state(models()["dense"]))
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        trained(models()["dense"], 0)


def test_a_list_is_gone_through_again_and_a_bar_shows_steps_and_loss(capsys):
    batch = {"pictures": IMAGES, "bright": BRIGHT}
    options = {"loss": brightness, "steps": 5, "learning_rate": 1e-2}
    losses = []
    small = fit(
        models()["dense"],
        [batch, batch],
        after_step=lambda number, metrics: losses.append(float(metrics["loss"])),
        **options,
    )
    assert losses[-1] < losses[0] and "fit 100% 5/5" in (shown := capsys.readouterr().err)
    assert f"loss={losses[-1]:.4g}" in shown
    again = fit(models()["dense"], [batch], progress=False, **options)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(small), nnx.state(again))
    assert not capsys.readouterr().err
