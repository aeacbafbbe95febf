"""The step. Run as a program, it takes a few of them and writes the state to a file."""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spvit_jax.config import Search, Training
from spvit_jax.data.pipeline import to_device
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.single_path.budget import Budget
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.prices import macs
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet
from spvit_jax.training import sharding
from spvit_jax.training.losses import classification, correct, distillation, soft_distance
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.optim import optimizer
from spvit_jax.training.prepare import prepare_images
from spvit_jax.training.sharding import batch_sharded, make_mesh, place, sharded
from spvit_jax.training.step import Gated, Step
from spvit_jax.training.teacher import freeze

SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)
NORMALISE = Normalise((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
PLAIN = partial(prepare_images, normalise=NORMALISE, classes=7)
STEPS = 4
SPLITS = [(1, 1), (2, 1), (1, 2), (1, 4), (1, 8), (2, 4)]  # micro-batches, devices of a copy


def batch(step, size=16):
    rng = np.random.default_rng(step)
    images = rng.integers(0, 256, (size, 16, 16, 3), np.uint8)
    rows = {"image": images, "label": rng.integers(0, 7, size).astype(np.int32)}
    return to_device(rows, batch_sharded(make_mesh()))


def model(**options):
    return ViT(SPEC, rngs=nnx.Rngs(0), **options)


def begin(network, training, loss=classification, prepare=PLAIN, frozen=None, fsdp=1, **options):
    """The step function and the state of step 0."""
    mesh, adamw = make_mesh(fsdp), optimizer(training, 1e-3, 1e-2)
    step = Step(loss, adamw, prepare, **options)
    state = step.initial(network, seed=3)
    program = step.program(nnx.graphdef(network), mesh, state, frozen)
    if frozen is not None:
        frozen = place(frozen, sharded(mesh, frozen))
    return partial(program, frozen), place(state, sharded(mesh, state))


def search(accumulation=1, fsdp=1):
    """As ``begin``, of a search with everything that is random, and a teacher."""
    space = Space(SPEC.blocks, axes=("op", "heads", "ffn"))
    budget = Budget(macs(SPEC, space.ops), 1e5)
    gating = Gating(space, (budget,), weight=2.0, learning_rate=1e-2)
    network = supernet(model(dropout=0.1, drop_path=0.2))
    teacher = freeze(model(), Normalise((0.5,) * 3, (0.1,) * 3))
    mixed = {"erasing": 0.5, "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}
    soft = partial(soft_distance, temperature=2.0)
    return begin(
        network,
        Search(clip_norm=1.0),
        partial(distillation, distance=soft, weight=0.5),
        partial(PLAIN, teacher=teacher, **mixed),
        teacher.state,
        fsdp,
        gating=gating,
        accumulation=accumulation,
        ema_decay=0.9,
    )


def search_steps(accumulation, fsdp=1):
    """Every number of a search of ``STEPS`` steps, by name."""
    step, state = search(accumulation, fsdp)
    shards, values = sharded(make_mesh(fsdp), state), {}
    for number in range(STEPS):
        if number == 2:  # as a resumed run has it
            state = place(state, shards)
        state, metrics = step(state, batch(number))
        values |= {f"{name} of step {number}": np.asarray(x) for name, x in metrics.items()}
    assert step.func._cache_size() == 1, "a fresh and a restored state are one program"
    leaves = jax.tree_util.tree_leaves_with_path(state)
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path)
        values |= {name: np.asarray(leaf), f"parts of {name}": parts(leaf)}
    return values


def parts(leaf):
    """Into how many different pieces an array is divided."""
    return len(set(map(str, leaf.sharding.devices_indices_map(leaf.shape).values())))


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """``search_steps`` of every one of ``SPLITS``, on 8 devices."""
    file = tmp_path_factory.mktemp("eight") / "state.npz"
    settings = {"JAX_NUM_CPU_DEVICES": "8", "JAX_ENABLE_X64": "1"}
    subprocess.run([sys.executable, __file__, file], check=True, env=os.environ | settings)
    with np.load(file) as loaded:
        return dict(loaded)


@pytest.mark.parametrize(("accumulation", "fsdp"), SPLITS)
def test_eight_devices_compute_what_one_does(on_eight_devices, accumulation, fsdp):
    # In float64, because Adam scales up what is rounding noise, as the gradient of a key's bias.
    # Statistics of batch norm over one device's rows, or another random mask, are far outside.
    with jax.enable_x64(True):
        alone = search_steps(accumulation)
    assert alone["loss of step 0"].dtype == np.float64
    for name, value in alone.items():
        other = on_eight_devices[f"{accumulation} {fsdp} {name}"]
        if not name.startswith("parts of"):
            np.testing.assert_allclose(other, value, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
def test_weights_moments_and_average_are_divided_and_gates_are_not(on_eight_devices, fsdp):
    found = {
        name.removeprefix(f"1 {fsdp} parts of "): int(value)
        for name, value in on_eight_devices.items()
        if name.startswith(f"1 {fsdp} parts of ")
    }
    kernels = [name for name in found if "['fc1']['kernel']" in name]
    assert len(kernels) == 2 * 4, "two blocks: weights, two moments and the average"
    assert {found[name] for name in kernels} == {fsdp}
    assert {value for name, value in found.items() if name.startswith(".gates")} == {1}


def test_a_pretraining_step_compiles_once():
    step, state = begin(model(), Training())
    for number in range(3):
        state, _ = step(state, batch(number))
    assert step.func._cache_size() == 1


def test_accumulation_equals_one_large_batch_without_batch_norm():
    states = []
    with jax.enable_x64(True):
        for accumulation in (1, 4):
            step, state = begin(model(), Training(clip_norm=1.0), accumulation=accumulation)
            for number in range(2):
                state, metrics = step(state, batch(number))
            states.append((state.params, metrics))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9), *states)


def test_the_average_is_exponential():
    step, state = search()
    expected = jax.tree.map(np.asarray, state.params)
    for number in range(3):
        state, _ = step(state, batch(number))
        expected = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * np.asarray(b), expected, state.params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), state.average, expected)


def test_a_step_computes_the_loss_it_reports():
    network = model()
    step, state = begin(network, Training())
    rows = batch(0)
    logits = network((np.asarray(rows["image"]) / 255 - NORMALISE.mean) / NORMALISE.std, train=True)
    _, metrics = step(state, rows)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, rows["label"]).mean()
    np.testing.assert_allclose(metrics["loss"], nats, rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], correct(logits, rows["label"]).mean())


def test_gates_batch_statistics_and_key_take_part():
    step, before = search()
    kept = jax.tree.map(np.asarray, before)
    after, _ = step(before, batch(0))
    for part in ("gates", "stats", "params"):
        leaves = zip(
            jax.tree.leaves(getattr(kept, part)),
            jax.tree.leaves(getattr(after, part)),
            strict=True,
        )
        assert any(not np.array_equal(a, b) for a, b in leaves), part
    np.testing.assert_array_equal(
        kept.key, after.key
    )  # a step's key is made of this and its number
    assert int(after.step) == 1


def test_the_model_survives_the_donation_of_its_state():
    network = model()
    step, state = begin(network, Training())
    step(state, batch(0))
    assert np.isfinite(network(jnp.zeros((1, 16, 16, 3)))).all()


def test_a_gated_network_is_called_as_any_other():
    network, space = supernet(model()), Space(SPEC.blocks)
    gates = decide(space, jax.tree.map(jnp.negative, initial_logits(space)))
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    gated = Gated(network, gates)
    stream, expected = gated.stream(images), network.stream(images, gates)
    jax.tree.map(np.testing.assert_array_equal, stream, expected)
    (logits,) = gated.heads(images)
    np.testing.assert_array_equal(logits, network(images, gates))
    np.testing.assert_array_equal(gated.classify(stream[-1])[0], logits)


if __name__ == "__main__":
    sharding.SMALL = 64  # the arrays of this network are small ones
    found = {
        f"{accumulation} {fsdp} {name}": value
        for accumulation, fsdp in SPLITS
        for name, value in search_steps(accumulation, fsdp).items()
    }
    np.savez(sys.argv[1], **found)
