"""The supernet under gates: the pruned network where they are hard, the mixture where soft."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import MODELS, VARIANTS, Tokens
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.gates import nested
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.single_path.sharing import SharedConv
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import SinglePathAttention, supernet


def gates_of(found, spec):
    """The gates of an architecture, as a search has them: of the paper's operations, floats."""
    return jax.tree.map(lambda g: jnp.asarray(g, float), found.gates(spec, PAPER))


def open_gates(spec):
    space = Space(spec.blocks)
    return nested(space, tuple({"op": jnp.ones(len(PAPER) - 1)} for _ in spec.blocks))


@pytest.mark.parametrize(
    ("seed", "train", "spec"),
    [  # of a ViT's last block the seeds are msa, msa, 1x1, skip, 3x3
        (0, False, "vit"),
        (2, True, "vit"),
        (4, True, "vit"),
        (1, False, "distilled"),
        (3, True, "distilled"),
        (4, True, "average"),
        (0, False, "swin"),
        (1, True, "swin"),
        (2, True, "swin"),
        (1, False, "oblong_swin"),
        (2, True, "oblong_swin"),
    ],
    indirect=["spec"],
)
def test_hard_gates_compute_the_pruned_and_the_folded_network(
    seed, train, spec, dense, images, run, randomise, random_architecture, float64
):
    found = random_architecture(seed)
    assert any(found.heads) and {"conv1x1", "conv3x3", "msa"} < set(found.ops)
    searched = randomise(supernet(dense(drop_path=0.3)), seed)
    pruned = prune(searched, found)
    folded = fold(pruned)
    options = {"train": train, "key": jax.random.key(seed) if train else None}
    expected = run(searched, images, gates_of(found, spec), **options)
    assert expected.dtype == jnp.float64
    for model in (pruned, folded):
        np.testing.assert_allclose(run(model, images, **options), expected, rtol=1e-9, atol=1e-11)
    convolutions = 0
    for big, small, plain in zip(searched.blocks, pruned.blocks, folded.blocks, strict=True):
        if isinstance(small.mixer, SharedConv):
            convolutions += 1
            if not small.mixer.geometry.class_only:  # its statistics took the same step
                norm = big.mixer.parts[f"conv{small.mixer.size}x{small.mixer.size}"]
                for other in (small.mixer.norm, plain.mixer.norm):
                    np.testing.assert_allclose(other.mean[...], norm.mean[...], rtol=1e-9)
                    np.testing.assert_allclose(other.var[...], norm.var[...], rtol=1e-9)
    assert convolutions == 2


def test_hard_gates_compute_the_pruned_network_in_float32(
    spec, dense, images, run, randomise, random_architecture
):
    found = random_architecture(7)
    searched = randomise(supernet(dense()), 7)
    expected = run(searched, images, gates_of(found, spec))
    assert expected.dtype == jnp.float32
    np.testing.assert_allclose(run(prune(searched, found), images), expected, rtol=1e-5, atol=1e-5)


def test_gradients_of_the_kept_weights_are_those_of_the_pruned_network(
    spec, dense, images, randomise, float64
):
    found = Architecture(
        ("conv3x3", "conv1x1", "msa", "msa"),
        (20, (0, 7, 47), 48, ()),
        heads=((), (), (0, 2), (1,)),
    )
    searched = randomise(supernet(dense()), 2)
    pruned = prune(searched, found)
    found = pruned.architecture

    def gradients(model, *gates):
        graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)

        def loss(params):
            logits = nnx.merge(graph, params, stats, copy=True)(images, *gates, train=True)
            return jnp.square(logits).mean()

        return nnx.merge(graph, jax.jit(jax.grad(loss))(params), stats)

    def close(small, big):
        np.testing.assert_allclose(small, big, rtol=1e-8, atol=1e-12)

    whole, part = gradients(searched, gates_of(found, spec)), gradients(pruned)
    learnt = []
    for i, (big, small) in enumerate(zip(whole.blocks, part.blocks, strict=True)):
        units = np.array(found.ffn[i], int)
        close(small.ffn.fc1.kernel[...], big.ffn.fc1.kernel[...][:, units])
        attention = big.mixer.attention
        if found.ops[i] == "msa":
            heads = np.array(found.heads[i])
            own = small.mixer.heads, spec.blocks[i].head_dim
            values, out = attention.v.kernel[...], attention.out.kernel[...]
            values = values.reshape(len(values), -1, own[1])[:, heads]
            out = out.reshape(-1, own[1], out.shape[1])[heads]
            close(small.mixer.v.kernel[...].reshape(values.shape), values)
            close(small.mixer.out.kernel[...].reshape(out.shape), out)
            assert float(jnp.abs(values).max()) > 0
        else:
            close(small.mixer.v.kernel[...], attention.v.kernel[...])
            close(small.mixer.out.kernel[...], attention.out.kernel[...])
            logits = big.mixer.head_logits[...]
            close(small.mixer.head_logits[...], logits)
            learnt.append(float(jnp.abs(logits).max()))
    assert min(learnt) > 0 and len(learnt) == 2


def test_soft_gates_mix_the_operations(spec, dense, images, randomise, float64):
    block, geometry = randomise(supernet(dense()), 1).blocks[1], spec.blocks[1]
    shape = (2, geometry.tokens, geometry.width)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    call = nnx.jit(lambda mixer, gates: mixer(x, gates, False))

    def attend(op):
        op = jnp.asarray(op, float)
        return call(block.mixer, {"op": op, "heads": jnp.full(geometry.heads, op[2])})

    skip, conv1, conv3, msa = (attend(np.arange(3) < level) for level in range(4))
    np.testing.assert_array_equal(skip, 0)
    prefix = geometry.prefix
    np.testing.assert_array_equal(conv1[:, :prefix], x[:, :prefix])  # class tokens pass through
    np.testing.assert_array_equal(conv3[:, :prefix], x[:, :prefix])
    g0, g1, g2 = gates = np.array([0.9, 0.6, 0.3])
    expected = g2 * msa + g1 * (1 - g2) * conv3 + g0 * (1 - g1) * (1 - g2) * conv1
    np.testing.assert_allclose(attend(gates), expected, rtol=1e-9)


def test_head_gates_and_their_gradient_are_of_rows_of_the_output_projection(
    spec, dense, randomise, float64
):
    """Half a head is the head with half of its rows; the slope of its gate is the whole of it."""
    geometry = spec.blocks[-1]
    mixer = randomise(supernet(dense()), 1).blocks[-1].mixer
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, geometry.tokens, geometry.width)))
    weights = rng.standard_normal((2, geometry.ffn_tokens, geometry.width))
    heads = jnp.asarray(rng.uniform(0.1, 0.9, geometry.heads))

    @jax.jit
    def slopes(heads):
        def loss(heads):
            return (weights * mixer(x, {"op": jnp.ones(3), "heads": heads}, False)).sum()

        return jax.value_and_grad(loss)(heads)

    @jax.jit
    def parts():
        attention = mixer.attention
        attended = attention.attend(*attention.queries_and_keys(x), attention.v(x))
        split = attended.reshape(*attended.shape[:2], geometry.heads, -1)
        rows = attention.out.kernel[...].reshape(geometry.heads, -1, geometry.width)
        return jnp.einsum("bthd,hdo,bto->h", split, rows, weights)

    bias = (weights * np.asarray(mixer.attention.out.bias[...])).sum()
    value, gradient = slopes(heads)
    by_head = np.asarray(parts())
    assert by_head.shape == (geometry.heads,) and np.abs(by_head).min() > 1e-3
    np.testing.assert_allclose(gradient, by_head, rtol=1e-9)
    np.testing.assert_allclose(value, by_head @ heads + bias, rtol=1e-9)
    step = 1e-4 * np.eye(geometry.heads)[1]
    difference = slopes(heads + step)[0] - slopes(heads - step)[0]
    np.testing.assert_allclose(difference / 2e-4, gradient[1], rtol=1e-6)


def test_head_gates_cost_no_work_on_activations(spec, traced_macs):
    """They are a part of the program even where they are all open: it multiplies no more."""
    network = MODELS[type(spec)]
    searched = nnx.eval_shape(lambda: supernet(network(spec, rngs=nnx.Rngs(0)), ("skip", "msa")))
    model = nnx.eval_shape(lambda: network(spec, rngs=nnx.Rngs(0)))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    space = Space(spec.blocks, ("skip", "msa"), ("heads",))
    gates = jax.eval_shape(
        lambda: nested(space, tuple({"heads": jnp.ones(b.heads)} for b in spec.blocks))
    )
    assert traced_macs(searched, image, gates) == traced_macs(model, image)


def test_open_gates_compute_the_dense_network_which_stays_as_it_was(spec, dense, images, run):
    model = dense()
    before = jax.tree.leaves(nnx.state(model))
    searched = supernet(model)
    np.testing.assert_allclose(
        run(searched, images, open_gates(spec)), run(model, images), rtol=1e-5, atol=1e-5
    )
    searched.head.kernel[...] += 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(nnx.state(model)))
    assert not any(isinstance(block.mixer, SinglePathAttention) for block in model.blocks)


def test_closed_blocks_leave_the_tokens_alone(spec, dense, run):
    searched = supernet(dense())
    pruned = prune(searched, Architecture(("skip",) * 4, (0,) * 4))
    shut = gates_of(pruned.architecture, spec)
    for i, geometry in enumerate(spec.blocks):
        x = np.random.default_rng(i).standard_normal((2, geometry.tokens, geometry.width))
        x = x.astype(np.float32)
        for block, gates in ((searched.blocks[i], (shut[i],)), (pruned.blocks[i], ())):
            block.ffn.fc2.bias[...] = jnp.zeros(geometry.width)
            found = run(block, Tokens(x), *gates).x
            np.testing.assert_array_equal(found, x[:, : geometry.ffn_tokens])


@pytest.mark.parametrize("spec", ["swin"], indirect=True)
def test_convolutions_see_the_whole_unshifted_map(spec, dense, randomise):
    """Where attention would have shifted windows; in the search as in what is pruned from it."""
    searched = randomise(supernet(dense()), 1)
    pruned = prune(searched, Architecture(("conv3x3",) * 4, (0,) * 4))
    mixer, geometry = searched.blocks[1].mixer, spec.blocks[1]
    assert (geometry.grid, geometry.window, geometry.shift) == ((8, 8), (2, 2), (1, 1))
    x = np.random.default_rng(0).standard_normal((8, 64, 12)).astype(np.float32)
    call = nnx.jit(lambda mixer, x, gates: mixer(x, gates, False))
    heads = jnp.ones(geometry.heads)
    conv3 = {"op": jnp.array([1.0, 1, 0]), "heads": 0 * heads}
    msa = {"op": jnp.array([1.0, 1, 1]), "heads": heads}
    before = call(mixer, x, conv3)
    for row, column in ((0, 0), (3, 4), (7, 2)):
        changed = x.copy()
        changed[:, 8 * row + column] += 5
        near = [max(abs(row - i // 8), abs(column - i % 8)) <= 1 for i in range(64)]
        for found in (call(mixer, changed, conv3), pruned.blocks[1].mixer(jnp.asarray(changed))):
            np.testing.assert_array_equal(np.abs(found - before).max((0, 2)) > 1e-4, near)

    shifted_msa = call(mixer, x, msa)
    mixer.geometry = mixer.attention.geometry = dataclasses.replace(geometry, shift=(0, 0))
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
    gates = jax.eval_shape(lambda: open_gates(spec))
    assert traced_macs(searched, batch, gates) < 1.07 * traced_macs(model, batch)
