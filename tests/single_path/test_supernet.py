"""The supernet under gates: the pruned network where they are hard, the mixture where soft."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import MODELS, VARIANTS
from spvit_jax.single_path.architecture import Architecture, by_magnitude
from spvit_jax.single_path.gates import BlockGates, initial_logits
from spvit_jax.single_path.prune import prune
from spvit_jax.single_path.sharing import SharedConv
from spvit_jax.single_path.supernet import SinglePathAttention, supernet


def as_float(gates):
    return jax.tree.map(lambda g: jnp.asarray(g, float), gates)


@pytest.mark.parametrize(
    ("seed", "train", "spec"),
    [
        (0, False, "vit"),
        (2, True, "vit"),
        (3, True, "distilled"),
        (4, True, "average"),
        (0, False, "swin"),
        (1, True, "swin"),
        (2, True, "swin"),
    ],
    indirect=["spec"],
)
def test_hard_gates_compute_the_pruned_network(
    seed, train, spec, dense, images, run, randomise, random_architecture, float64
):
    found = random_architecture(seed)
    searched = randomise(supernet(dense(drop_path=0.3)), seed)
    pruned = prune(searched, found)
    options = {"train": train, "key": jax.random.key(seed) if train else None}
    expected = run(searched, images, as_float(found.gates(spec)), **options)
    assert expected.dtype == jnp.float64
    np.testing.assert_allclose(run(pruned, images, **options), expected, rtol=1e-9, atol=1e-11)
    convolutions = 0
    for big, small in zip(searched.blocks, pruned.blocks, strict=True):
        if isinstance(small.mixer, SharedConv):  # its statistics took the same step
            norm = big.mixer.norm1x1 if small.mixer.size == 1 else big.mixer.norm3x3
            np.testing.assert_allclose(small.mixer.norm.mean[...], norm.mean[...], rtol=1e-9)
            np.testing.assert_allclose(small.mixer.norm.var[...], norm.var[...], rtol=1e-9)
            convolutions += 1
    assert convolutions == 2


def test_hard_gates_compute_the_pruned_network_in_float32(
    spec, dense, images, run, randomise, random_architecture
):
    found = random_architecture(7)
    searched = randomise(supernet(dense()), 7)
    expected = run(searched, images, as_float(found.gates(spec)))
    assert expected.dtype == jnp.float32
    np.testing.assert_allclose(run(prune(searched, found), images), expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_kept_weights_are_those_of_the_pruned_network(
    spec, dense, images, randomise, quick_jit, float64
):
    found = Architecture(("conv3x3", "conv1x1", "skip", "msa"), (20, (0, 7, 47), 48, ()))
    searched = randomise(supernet(dense()), 2)

    def gradients(model, *gates):
        graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

        def loss(params):
            logits = nnx.merge(graph, params, stats, copy=True)(images, *gates, train=True)
            return jnp.square(logits).mean()

        return nnx.merge(graph, quick_jit(jax.grad(loss))(params), stats)

    found = by_magnitude(found, searched)
    whole = gradients(searched, as_float(found.gates(spec)))
    part = gradients(prune(searched, found))
    learnt = []
    for big, small, op, units in zip(whole.blocks, part.blocks, found.ops, found.ffn, strict=True):
        kept = big.ffn.fc1.kernel[...][:, np.array(units, int)]
        np.testing.assert_allclose(small.ffn.fc1.kernel[...], kept, rtol=1e-8, atol=1e-12)
        if op.startswith("conv"):
            for name in ("v", "out"):
                np.testing.assert_allclose(
                    getattr(small.mixer, name).kernel[...],
                    getattr(big.mixer.attention, name).kernel[...],
                    rtol=1e-8,
                    atol=1e-12,
                )
            logits = big.mixer.head_logits[...]
            np.testing.assert_allclose(small.mixer.head_logits[...], logits, rtol=1e-8, atol=1e-12)
            learnt.append(float(jnp.abs(logits).max()))
    assert min(learnt) > 0


def test_soft_gates_mix_the_operations(spec, dense, images, randomise, float64):
    block, geometry = randomise(supernet(dense()), 1).blocks[1], spec.blocks[1]
    shape = (2, geometry.tokens, geometry.width)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    attend = nnx.jit(lambda mixer, gates: mixer(x, gates, False))
    skip, conv1, conv3, msa = (attend(block.mixer, jnp.arange(3.0) < level) for level in range(4))
    np.testing.assert_array_equal(skip, 0)
    prefix = geometry.prefix
    np.testing.assert_array_equal(conv1[:, :prefix], x[:, :prefix])  # class tokens pass through
    np.testing.assert_array_equal(conv3[:, :prefix], x[:, :prefix])
    g0, g1, g2 = gates = np.array([0.9, 0.6, 0.3])
    expected = g2 * msa + g1 * (1 - g2) * conv3 + g0 * (1 - g1) * (1 - g2) * conv1
    np.testing.assert_allclose(attend(block.mixer, jnp.asarray(gates)), expected, rtol=1e-9)


def test_open_gates_compute_the_dense_network_which_stays_as_it_was(spec, dense, images, run):
    model = dense()
    before = jax.tree.leaves(nnx.state(model))
    searched = supernet(model)
    gates = jax.tree.map(jnp.ones_like, initial_logits(spec.blocks))
    np.testing.assert_allclose(
        run(searched, images, gates), run(model, images), rtol=1e-5, atol=1e-5
    )
    searched.head.kernel[...] += 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(nnx.state(model)))
    assert not any(isinstance(block.mixer, SinglePathAttention) for block in model.blocks)


def test_closed_blocks_leave_the_tokens_alone(spec, dense, run):
    searched = supernet(dense())
    pruned = prune(searched, Architecture(("skip",) * 4, (0,) * 4))
    for i, geometry in enumerate(spec.blocks):
        x = np.random.default_rng(i).standard_normal((2, geometry.tokens, geometry.width))
        x = x.astype(np.float32)
        shut = BlockGates(jnp.zeros(3), jnp.zeros(geometry.hidden))
        for block, gates in ((searched.blocks[i], (shut,)), (pruned.blocks[i], ())):
            block.ffn.fc2.bias[...] = jnp.zeros(geometry.width)
            np.testing.assert_array_equal(run(block, x, *gates), x)


@pytest.mark.parametrize("spec", ["swin"], indirect=True)
def test_convolutions_see_the_whole_unshifted_map(spec, dense, randomise):
    """Where attention would have shifted windows; in the search as in what is pruned from it."""
    searched = randomise(supernet(dense()), 1)
    pruned = prune(searched, Architecture(("conv3x3",) * 4, (0,) * 4))
    mixer, geometry = searched.blocks[1].mixer, spec.blocks[1]
    assert (geometry.grid, geometry.window, geometry.shift) == (8, 2, 1)
    x = np.random.default_rng(0).standard_normal((8, 64, 12)).astype(np.float32)
    call = nnx.jit(lambda mixer, x, gates: mixer(x, gates, False))
    conv3, msa = jnp.array([1.0, 1, 0]), jnp.array([1.0, 1, 1])
    before = call(mixer, x, conv3)
    for row, column in ((0, 0), (3, 4), (7, 2)):
        changed = x.copy()
        changed[:, 8 * row + column] += 5
        near = [max(abs(row - i // 8), abs(column - i % 8)) <= 1 for i in range(64)]
        for found in (call(mixer, changed, conv3), pruned.blocks[1].mixer(jnp.asarray(changed))):
            np.testing.assert_array_equal(np.abs(found - before).max((0, 2)) > 1e-4, near)

    shifted_msa = call(mixer, x, msa)
    mixer.geometry = mixer.attention.geometry = dataclasses.replace(geometry, shift=0)
    np.testing.assert_array_equal(call(mixer, x, conv3), before)
    assert float(jnp.abs(call(mixer, x, msa) - shifted_msa).max()) > 0.1


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_search_forward_costs_little_more_than_a_dense_one(name, traced_macs):
    """No D -> 9d projection: that alone would add 9 / heads of a D x D product a block."""
    spec = VARIANTS[name]
    network = MODELS[type(spec)]
    model = nnx.eval_shape(lambda: network(spec, rngs=nnx.Rngs(0)))
    searched = nnx.eval_shape(lambda: supernet(network(spec, rngs=nnx.Rngs(0))))
    batch = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32)
    gates = nnx.eval_shape(lambda: initial_logits(spec.blocks))
    assert traced_macs(searched, batch, gates) < 1.07 * traced_macs(model, batch)
