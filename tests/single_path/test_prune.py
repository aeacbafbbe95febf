"""Pruning and folding: what is carried over, and that folding changes nothing."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import Tokens
from spvit_jax.single_path.architecture import Architecture, ArchitectureError
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import FORMS, fold, form, prune
from spvit_jax.single_path.sharing import FoldedConv, SharedConv
from spvit_jax.single_path.supernet import supernet

FOUND = Architecture(("conv1x1", "conv3x3", "msa", "norm_skip"), ((0, 5, 47), (), 48, 7))
HEADS = dataclasses.replace(FOUND, heads=((), (), (0, 2), ()))


@pytest.mark.parametrize("spec", ["vit", "distilled", "average", "swin"], indirect=True)
def test_folding_computes_the_same(dense, images, run, randomise, random_architecture):
    shared = randomise(prune(dense(), random_architecture(0)))
    folded = fold(shared)
    deployed = fold(shared, batch_norm=True)
    expected = run(shared, images)
    for model in (folded, deployed):
        np.testing.assert_allclose(run(model, images), expected, rtol=1e-5, atol=1e-5)
    again = fold(folded, batch_norm=True)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(deployed))
    expected = run(shared, images, train=True)
    np.testing.assert_allclose(run(folded, images, train=True), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(shared.blocks, folded.blocks, strict=True):
        if isinstance(one.mixer, SharedConv):
            np.testing.assert_allclose(
                other.mixer.norm.var[...], one.mixer.norm.var[...], rtol=1e-5
            )


def test_folding_replaces_every_convolution_and_leaves_its_argument(dense, randomise):
    shared = randomise(prune(dense(), FOUND))
    deployed = fold(shared, batch_norm=True)
    for model, kind in ((shared, SharedConv), (deployed, FoldedConv)):
        assert [type(b.mixer) is kind for b in model.blocks] == [True, True, False, False]
    assert all(b.mixer.norm is None for b in deployed.blocks[:2])
    assert all(b.mixer.norm is not None for b in shared.blocks[:2])
    assert not nnx.to_flat_state(nnx.state(deployed, nnx.BatchStat)).leaves
    kernel = shared.blocks[1].mixer.kernels()[0]
    np.testing.assert_array_equal(fold(shared).blocks[1].mixer.kernel[...], kernel)


def test_a_dense_model_gives_slices_equal_shares_and_fresh_norms(spec, dense):
    model = dense()
    pruned = prune(model, FOUND)
    for block, source in zip(pruned.blocks[:2], model.blocks, strict=False):
        np.testing.assert_array_equal(block.mixer.v.kernel[...], source.mixer.v.kernel[...])
        np.testing.assert_array_equal(block.mixer.out.kernel[...], source.mixer.out.kernel[...])
        heads = source.mixer.heads
        np.testing.assert_array_equal(block.mixer.head_logits[...], np.ones((heads, 9)))
        norm = block.mixer.norm
        for found, value in ((norm.mean, 0), (norm.var, 1), (norm.scale, 1), (norm.bias, 0)):
            np.testing.assert_array_equal(found[...], np.full(spec.blocks[0].head_dim, value))
    assert [block.mixer.size for block in pruned.blocks[:2]] == [1, 3]
    units = np.array(FOUND.ffn[0])
    ffn, source = pruned.blocks[0].ffn, model.blocks[0].ffn
    np.testing.assert_array_equal(ffn.fc1.kernel[...], source.fc1.kernel[...][:, units])
    np.testing.assert_array_equal(ffn.fc1.bias[...], source.fc1.bias[...][units])
    np.testing.assert_array_equal(ffn.fc2.kernel[...], source.fc2.kernel[...][units])
    np.testing.assert_array_equal(ffn.fc2.bias[...], source.fc2.bias[...])
    assert [b.ffn.fc1.kernel.shape[1] for b in pruned.blocks] == [3, 0, 48, 7]


def test_a_supernet_gives_what_it_has_learnt(dense, randomise):
    searched = randomise(supernet(dense()), 3)
    pruned = prune(searched, FOUND)
    for i, name in enumerate(("conv1x1", "conv3x3")):
        source, found = searched.blocks[i].mixer, pruned.blocks[i].mixer
        np.testing.assert_array_equal(found.head_logits[...], source.head_logits[...])
        for part in ("mean", "var", "scale", "bias"):
            expected = getattr(source.parts[name], part)[...]
            np.testing.assert_array_equal(getattr(found.norm, part)[...], expected)


def test_the_model_that_is_pruned_stays_as_it_was(dense):
    model = dense()
    before = count_parameters(model)
    pruned = prune(model, FOUND)
    assert count_parameters(model) == before > count_parameters(pruned)
    pruned.head.kernel[...] += 1
    assert float(jnp.abs(pruned.head.kernel[...] - model.head.kernel[...]).min()) > 0.5


def test_other_widths_are_not_compiled_anew(dense):
    compiled, model = [], dense()
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name)
    )
    try:
        for widths in ((47, 31, 48, 7), (46, 30, 45, 11)):
            compiled.clear()
            prune(model, Architecture(("msa",) * 4, widths, heads=(2, 1, 3, 2)))
    finally:
        jax.monitoring.clear_event_listeners()
    assert not [name for name in compiled if "compile" in name]


def test_norm_skip_adds_the_norm_and_skip_adds_nothing(spec, dense):
    model = dense()
    first, geometry = model.blocks[0], spec.blocks[0]
    shape = (2, geometry.tokens, geometry.width)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    skip, norm_skip = (
        prune(model, Architecture((op,) * 4, (geometry.hidden, 48, 48, 48))).blocks[0]
        for op in ("skip", "norm_skip")
    )
    for block, expected in ((skip, x), (norm_skip, x + first.norm1(x))):
        expected = expected + first.ffn(first.norm2(expected))
        np.testing.assert_allclose(block(Tokens(x)).x, expected, rtol=1e-5, atol=1e-5)
    assert skip.norm1 is None


@pytest.mark.parametrize("op", ["skip", "norm_skip", "conv1x1", "conv3x3", "msa"])
def test_a_pruned_model_is_not_pruned_again(op, dense):
    pruned = prune(dense(), Architecture((op, "msa", "msa", "msa"), (47, 48, 48, 48)))
    for model in (pruned, fold(pruned)):
        with pytest.raises(ArchitectureError, match=rf"not one of {form(model)} form"):
            prune(model, FOUND)


def test_a_model_knows_its_form_and_carries_its_architecture(dense):
    model = dense()
    pruned = prune(model, HEADS)
    models = model, supernet(model), pruned, fold(pruned), fold(pruned, batch_norm=True)
    assert tuple(map(form, models)) == FORMS
    kept = pruned.architecture
    assert kept.ffn[:3] == ((0, 5, 47), (), tuple(range(48))) and len(kept.ffn[3]) == 7
    assert (kept.ops, kept.heads, kept.widths) == (HEADS.ops, HEADS.heads, HEADS.widths)
    assert [m.architecture for m in models] == [None, None, kept, kept, kept]
    whole = prune(model, Architecture(("msa",) * 4, (48,) * 4))
    assert form(whole) == "deploy" and whole.architecture.heads == ()
    for one in models[:2]:
        with pytest.raises(ArchitectureError, match=rf"only a pruned .* of {form(one)} form"):
            fold(one)


def test_pruned_heads_are_slices_of_every_projection(spec, dense, float64):
    """And what is left computes attention with the others' outputs left out."""
    model, geometry = dense(), spec.blocks[2]
    found, source = prune(model, HEADS).blocks[2].mixer, model.blocks[2].mixer
    width, head_dim = geometry.width, geometry.head_dim
    rows = np.concatenate([np.arange(head_dim) + head_dim * head for head in (0, 2)])
    assert found.heads == 2 and head_dim * 2 != width
    for part in ("kernel", "bias"):
        qk, v = (np.asarray(getattr(layer, part)[...]) for layer in (source.qk, source.v))
        expected = qk[..., np.concatenate([rows, width + rows])]
        np.testing.assert_array_equal(getattr(found.qk, part)[...], expected)
        np.testing.assert_array_equal(getattr(found.v, part)[...], v[..., rows])
    np.testing.assert_array_equal(found.out.kernel[...], source.out.kernel[...][rows])
    np.testing.assert_array_equal(found.out.bias[...], source.out.bias[...])

    shape = (2, geometry.tokens, geometry.width)
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
    without = np.setdiff1d(np.arange(width), rows)
    source.out.kernel[...] = source.out.kernel[...].at[without].set(0)
    attend = nnx.jit(lambda mixer: mixer(x)[0])
    np.testing.assert_allclose(attend(found), attend(source), rtol=1e-9, atol=1e-12)


def test_an_architecture_of_another_depth_is_refused(dense):
    with pytest.raises(ArchitectureError, match="ops must name 4 blocks"):
        prune(dense(), Architecture(("msa",), (48,)))


def parameters_of(op, heads, units, block, form):
    """A block's parameters, counted part by part."""
    width, part = block.width, block.head_dim
    inner = heads * part
    table = math.prod(2 * side - 1 for side in block.window) * heads if block.window else 0
    square = width**2 + width
    taps = {"conv1x1": 1, "conv3x3": 9}.get(op, 0)
    mixer = {
        "skip": 0,
        "norm_skip": 2 * width,
        "msa": 2 * width + 3 * (width + 1) * inner + (inner + 1) * width + table,
    }
    shared = 2 * width + 2 * square + 9 * block.heads + 2 * part
    folded = 2 * width + taps * width * part + part + 2 * part + part * width + width
    deployed = folded - 2 * part
    convolution = {"shared": shared, "folded": folded, "deploy": deployed}[form]
    return mixer.get(op, convolution) + 2 * width + units * (2 * width + 1) + width


@pytest.mark.parametrize("seed", range(2))
def test_parameters_are_those_of_the_parts(seed, spec, dense, random_architecture):
    model, found = dense(), random_architecture(seed)
    found = Architecture(tuple(op.replace("skip", "norm_skip") for op in found.ops), found.ffn)
    for given in (found, FOUND, HEADS, random_architecture(seed)):
        pruned = prune(model, given)
        whole = [parameters_of("msa", b.heads, b.hidden, b, "shared") for b in spec.blocks]
        outside = count_parameters(model) - sum(whole)
        for smaller in (pruned, fold(pruned), fold(pruned, batch_norm=True)):
            sizes = given.ops, given.head_counts(spec), given.widths, spec.blocks
            blocks = sum(parameters_of(*part, form(smaller)) for part in zip(*sizes, strict=True))
            assert count_parameters(smaller) == outside + blocks
