"""The ViTs of today under gates, pruned, merged, scored and repaired: each option they have."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import Tokens, ViT, ViTSpec
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.features import feature_error
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.single_path.repair import repair, repaired_error
from spvit_jax.single_path.score import score
from spvit_jax.single_path.supernet import supernet

VIT = ViTSpec(width=24, depth=3, heads=3, hidden=40, patch_size=4, image_size=16, classes=7)
SPECS = {
    "dinov3": dataclasses.replace(
        VIT, registers=2, gated=True, activation="silu", rotary="dinov3", positions=False,
    ),
    "clip": dataclasses.replace(VIT, norm_pre=True, activation="quick_gelu", qk_norm=True),
    "siglip": dataclasses.replace(
        VIT, class_token=False, pool="attention", activation="gelu_tanh", classes=0
    ),
    "patches": dataclasses.replace(VIT, registers=3, patches=True, classes=0, rotary="eva"),
}  # fmt: skip
FOUND = Architecture(
    ("msa", "conv3x3", "msa"), ((0, 3, 5, 8, 39), (1, 2), tuple(range(40))),
    heads=((0, 2), (), (1,)),
)  # fmt: skip


@pytest.fixture(scope="session", params=SPECS)
def spec(request):
    return SPECS[request.param]


def images(count=32):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 4, 4, 3))
    noise = rng.integers(-30, 30, (count, 16, 16, 3))
    return np.clip(coarse.repeat(4, 1).repeat(4, 2) + noise, 0, 255).astype(np.uint8)


def centred(images):
    return images.astype(float) / 127.5 - 1


def calibration(count=32):
    return Calibration.of(images(count), centred, 8)


def test_hard_gates_pruned_and_folded_are_one_function(spec, dense, run, float64):
    x = np.random.default_rng(5).standard_normal((2, 16, 16, 3))
    network = supernet(dense(), temperature=0.7)
    gates = FOUND.gates(spec, ("skip", "conv1x1", "conv3x3", "msa"))
    gates = jax.tree.map(lambda g: jnp.asarray(g, float), gates)
    pruned = prune(network, FOUND)
    expected = run(network, x, gates)
    for model in (pruned, fold(pruned), fold(pruned, batch_norm=True)):
        np.testing.assert_allclose(run(model, x), expected, rtol=1e-9, atol=1e-9)
    whole = run(dense(), x)
    assert np.abs(whole - expected).max() > 1e-3


@pytest.mark.parametrize("merges", [(), (3, 2, 0)])
def test_prices_are_those_of_the_program(spec, merges, traced_macs):
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    dense = ViT(spec, rngs=nnx.Rngs(0))
    assert traced_macs(dense, image) == prices.macs(spec).dense
    assert count_parameters(dense) == prices.parameters(spec).dense
    ops = ("msa", "conv1x1", "msa") if merges else FOUND.ops
    found = dataclasses.replace(FOUND, ops=ops, merges=merges)
    model = fold(prune(dense, found), batch_norm=True)
    assert traced_macs(model, image) == found.macs(spec)
    assert count_parameters(model) == found.price(prices.parameters, spec)


def test_a_repair_without_a_loss_changes_nothing(spec):
    dense = ViT(spec, rngs=nnx.Rngs(0))
    whole = Architecture(("msa",) * 3, (40,) * 3)
    found, x = repair(dense, dense, calibration(), whole), centred(images(4))
    np.testing.assert_allclose(found(x), dense(x), atol=2e-4)


@pytest.mark.parametrize("merges", [(), (3, 2, 0)])
def test_what_scores_choose_is_repaired_and_its_error_known(spec, merges):
    """The error of a repair that was not built is that of the one that was."""
    dense = ViT(spec, rngs=nnx.Rngs(0))
    found = score(dense, calibration(), ("skip", "msa"))
    orders = [(block.heads.order, block.ffn.order) for block in found.blocks]
    architecture = Architecture(
        ("msa",) * 3,
        tuple(tuple(sorted(map(int, units[20:]))) for _, units in orders),
        heads=tuple(tuple(sorted(map(int, heads[1:]))) for heads, _ in orders),
        merges=merges,
    )
    some, judges = calibration(32), calibration(16)
    built = repair(dense, dense, some, architecture)
    error = feature_error(built, dense, judges)
    assert 0 < error < feature_error(prune(dense, architecture), dense, judges)
    assert repaired_error(dense, some, judges, architecture) == pytest.approx(error, rel=1e-3)


def test_weakest_units_of_a_gated_ffn_go_with_their_gates(dense):
    model = ViT(SPECS["dinov3"], rngs=nnx.Rngs(0))
    ffn = model.blocks[0].ffn
    ffn.gate.kernel[...] = ffn.gate.kernel[...].at[:, 7].multiply(1e-3)
    small = prune(model, Architecture(("msa",) * 3, (39, 40, 40)))
    kept = small.architecture.ffn[0]
    assert set(range(40)) - set(kept) == {7}
    gate = small.blocks[0].ffn.gate
    np.testing.assert_array_equal(gate.kernel[...], np.asarray(ffn.gate.kernel[...])[:, list(kept)])
    assert gate.bias.shape == (39,)


@pytest.mark.parametrize("name", ["dinov3", "patches"])
def test_merged_patches_turn_as_their_mean_place(name, float64):
    """Patches that are equal and in one place: attention cannot tell them from one merged."""
    spec = SPECS[name]
    rotary = ViT(spec, rngs=nnx.Rngs(0)).blocks[0].mixer.rotary
    whole = rotary.angles(None, 8)
    sources = np.arange(spec.blocks[0].tokens)
    sources[spec.prefix + 1 :] -= 1  # the first two patches are one
    x = jnp.zeros((1, len(sources) - 1, 24))
    merged = rotary.angles(Tokens(x, jnp.ones(x.shape[:2]), jnp.asarray(sources[None])), 8)
    assert merged.shape == (1, 15, 4) and whole.shape == (1, 16, 4)
    np.testing.assert_allclose(merged[0, 0], whole[0, :2].mean(0))
    np.testing.assert_allclose(merged[0, 1:], whole[0, 2:])
