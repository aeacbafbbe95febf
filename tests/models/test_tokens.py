"""Merging against plain loops, and what a stream of merged tokens knows of those it had."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from spvit_jax.models import Tokens, ViT, ViTSpec
from spvit_jax.models import tokens as merging
from spvit_jax.models.tokens import merge

SPEC = ViTSpec(width=12, depth=3, heads=3, hidden=10, patch_size=4, image_size=12, classes=5)
CASES = [  # patches, class tokens, merges; the last of each is as many as there are pairs
    *[(8, prefix, count) for prefix in (0, 1, 2) for count in (1, 3, 4)],
    *[(9, prefix, count) for prefix in (0, 1, 2) for count in (1, 2, 4)],
    (2, 1, 1),
]


class Merging(nnx.Module):
    """``merge`` as a network, for the fixtures that look into one."""

    def __init__(self, count, prefix):
        self.count, self.prefix = count, prefix

    def __call__(self, tokens, alike):
        return merge(tokens, alike, self.count, self.prefix)


class Pullback(Merging):
    """The gradient of merging, and merging what is left."""

    def __call__(self, x, alike):
        y, back = jax.vjp(partial(self.twice, alike=alike), x)
        return back(y)

    def twice(self, x, alike):
        once = merge(Tokens(x), alike, self.count, self.prefix)
        return merge(once, alike[:, : once.x.shape[1]], 1, self.prefix).x


def by_hand(tokens, alike, count, prefix):
    """What ``merge`` says, of one image, patch by patch."""
    x, sizes, sources = tokens
    patches = range(len(x) - prefix)
    unit = alike[prefix:] / np.linalg.norm(alike[prefix:], axis=1, keepdims=True)
    found = {}  # of each odd patch: how alike the best of the even ones is, and which it is
    for odd in patches[1::2]:
        found[odd] = max((unit[odd] @ unit[even], even) for even in patches[::2])
    gone = sorted(found, key=lambda odd: -found[odd][0])[:count]
    groups = [[place] for place in range(prefix)]
    groups += [
        [prefix + patch, *(prefix + odd for odd in gone if found[odd][1] == patch)]
        for patch in patches
        if patch not in gone
    ]
    merged = [np.average(x[group], axis=0, weights=sizes[group]) for group in groups]
    where = {place: number for number, group in enumerate(groups) for place in group}
    return Tokens(
        np.array(merged),
        np.array([sizes[group].sum() for group in groups]),
        np.array([where[place] for place in sources]),
    )


def draw(patches, prefix, batch=3, width=5, seed=0):
    """Tokens, what they are compared by, and the same for those that a merge leaves."""
    rng, total = np.random.default_rng(seed), prefix + patches
    return rng.standard_normal((batch, total, width)), rng.standard_normal((2, batch, total, 4))


@pytest.mark.parametrize(("patches", "prefix", "count"), CASES)
def test_the_most_alike_pairs_become_their_average(patches, prefix, count, float64):
    check(patches, prefix, count, jnp.float64, rtol=1e-12)


@pytest.mark.parametrize(("patches", "prefix", "count"), CASES[4:12:3])
def test_they_do_in_float32(patches, prefix, count):
    check(patches, prefix, count, jnp.float32, rtol=1e-5)


def check(patches, prefix, count, dtype, rtol):
    """Merges twice, by hand and in a program."""
    x, alike = draw(patches, prefix)
    again = min(count, (patches - count) // 2)

    @jax.jit
    def program(x, first, second):
        once = merge(Tokens(x), first, count, prefix)
        return once, merge(once, second[:, : once.x.shape[1]], again, prefix) if again else once

    found = program(*(jnp.asarray(a, dtype) for a in (x, *alike)))
    for image in range(len(x)):
        total = prefix + patches
        expected = by_hand(
            Tokens(x[image], np.ones(total), np.arange(total)), alike[0, image], count, prefix
        )
        assert len(expected.x) == total - count
        for number, stage in enumerate(found):
            if number and again:
                left = alike[1, image, : total - count]
                expected = by_hand(expected, left, again, prefix)
            np.testing.assert_allclose(stage.x[image], expected.x, rtol=rtol, atol=rtol)
            np.testing.assert_array_equal(stage.sizes[image], expected.sizes)
            np.testing.assert_array_equal(stage.sources[image], expected.sources)
            assert stage.x.dtype == stage.sizes.dtype == dtype


def test_sizes_are_float32_whatever_the_tokens_are_in():
    x, (alike, _) = draw(8, 1)
    narrow = Tokens(jnp.asarray(x, jnp.bfloat16))
    found = merge(narrow, jnp.asarray(alike, jnp.bfloat16), 3, 1)
    assert (found.x.dtype, found.sizes.dtype) == (jnp.bfloat16, jnp.float32)
    wide = merge(Tokens(jnp.asarray(x, jnp.float32)), narrow.x * 0 + 1, 3, 1)
    np.testing.assert_array_equal(wide.sizes.sum(1), 9)


def test_of_equals_the_first():
    """Odd patches 1 and 3 go, into patch 0: all are as alike as can be."""
    x = jnp.arange(14.0).reshape(1, 7, 2)
    alike = jnp.broadcast_to(jnp.array([0.0, 1.0]), (1, 7, 2))
    found = merge(Tokens(x), alike, 2, 1)
    assert found.sources.tolist() == [[0, 1, 1, 2, 1, 3, 4]]
    assert found.sizes.tolist() == [[1, 3, 1, 1, 1]]
    expected = [x[0, 0], x[0, jnp.array([1, 2, 4])].mean(0), *x[0, jnp.array([3, 5, 6])]]
    np.testing.assert_allclose(found.x[0], jnp.stack(expected), rtol=1e-6)


def test_zeros_are_alike_to_nothing_and_do_no_harm():
    x = jax.random.normal(jax.random.key(0), (1, 7, 2))
    nothing = merge(Tokens(x), jnp.zeros((1, 7, 3)), 2, 1)
    assert nothing.sources.tolist() == [[0, 1, 1, 2, 1, 3, 4]]  # all at 0: the first
    alike = jnp.zeros((1, 7, 2)).at[0, 4:6].set(jnp.array([3.0, 4.0]))  # patches 3 and 4
    some = merge(Tokens(x), alike, 1, 1)
    assert some.sources.tolist() == [[0, 1, 2, 3, 4, 4, 5]]
    gradient = jax.grad(lambda x: jnp.square(merge(Tokens(x), x * 0, 2, 1).x).sum())(x)
    for values in (nothing.x, nothing.sizes, some.x, gradient):
        assert bool(jnp.isfinite(values).all())


def test_length_does_not_count_but_direction():
    """A cosine: the long vector's product is larger, the short one's direction is the same."""
    alike = jnp.array([[[10.0, 10.0], [0.1, 0.0], [0.01, 0.0], [-9.0, 0.0]]])
    found = merge(Tokens(jnp.arange(4.0).reshape(1, 4, 1)), alike, 1, 0)
    assert found.sources.tolist() == [[0, 1, 1, 2]]


@pytest.mark.parametrize("prefix", [1, 2])
def test_class_tokens_never_move(prefix):
    """Though they are what every patch is most alike to."""
    x, (alike, _) = draw(9, prefix)
    alike[:, :prefix] = alike[:, prefix : prefix + 1]
    tokens, total = Tokens(jnp.asarray(x, jnp.float32)), prefix + 9
    for count in (4, 2, 1):
        tokens = merge(tokens, jnp.asarray(alike[:, : tokens.x.shape[1]]), count, prefix)
        np.testing.assert_array_equal(tokens.x[:, :prefix], jnp.asarray(x[:, :prefix], jnp.float32))
        np.testing.assert_array_equal(tokens.sizes[:, :prefix], 1)
        np.testing.assert_array_equal(tokens.sources[:, :prefix], [range(prefix)] * 3)
        np.testing.assert_array_equal((tokens.sources[..., None] < prefix).sum((1, 2)), prefix)
        np.testing.assert_array_equal(tokens.sizes.sum(1), total)
        counts = [np.bincount(image, minlength=tokens.x.shape[1]) for image in tokens.sources]
        np.testing.assert_array_equal(tokens.sizes, counts)


def test_means_are_of_groups_and_undo_unmerging(float64):
    x, (first, second) = draw(9, 1)
    once = merge(Tokens(jnp.asarray(x)), jnp.asarray(first), 4, 1)
    twice = merge(once, jnp.asarray(second[:, :6]), 2, 1)
    assert int(twice.sizes.max()) > 2
    other = np.random.default_rng(1).standard_normal((3, 10, 7))
    for tokens in (once, twice):
        whole, means = tokens.unmerged(), np.asarray(tokens.means(jnp.asarray(other)))
        assert means.shape == (*tokens.x.shape[:2], 7)
        np.testing.assert_allclose(tokens.means(whole), tokens.x, rtol=1e-14)
        np.testing.assert_allclose(tokens.means(jnp.asarray(x)), tokens.x, rtol=1e-12)
        for image, sources in enumerate(np.asarray(tokens.sources)):
            np.testing.assert_array_equal(whole[image], np.asarray(tokens.x)[image][sources])
            for place, mean in enumerate(means[image]):
                expected = other[image, sources == place].mean(0)
                np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_what_was_not_merged_stays_as_it_is():
    x, (alike, _) = draw(8, 1)
    plain = Tokens(jnp.asarray(x))
    assert plain.unmerged() is plain.x and plain.means(plain.x) is plain.x
    merged = merge(plain, jnp.asarray(alike), 3, 1)
    alone = jnp.ones((3, 1, 5))  # class tokens alone
    assert merged.means(alone) is alone


def equal_patches(others):
    """Tokens of two images, some odd patches of which are the same as patch 4."""
    x = np.random.default_rng(0).standard_normal((2, 10, 12))
    x[:, [1 + other for other in others]] = x[:, [1 + 4]]
    return Tokens(jnp.asarray(x))


@pytest.mark.parametrize("others", [(1,), (7, 3)])
def test_tokens_that_are_equal_may_be_merged(others, run, float64):
    """What attends afterwards reads one that counts as all of them: nothing changes."""
    model = ViT(SPEC, rngs=nnx.Rngs(0))
    merges = ViT(SPEC, rngs=nnx.Rngs(0))
    merges.blocks[0].merges = len(others)
    tokens = equal_patches(others)
    first, found = (run(m.blocks[0], tokens) for m in (model, merges))
    assert first.sizes is None and found.sizes.max(1).tolist() == [1 + len(others)] * 2
    for other in others:
        np.testing.assert_array_equal(found.sources[:, 1 + other], found.sources[:, 1 + 4])
    close = partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13)
    close(found.unmerged(), first.x)
    for number in (1, 2):  # the last reads class tokens alone
        expected = run(model.blocks[number], first)
        merged = run(model.blocks[number], found)
        close(merged.unmerged(), expected.x)
        blind = run(model.blocks[number], Tokens(found.x)).x[:, 0]  # all of them count as one
        assert float(jnp.abs(blind - expected.x[:, 0]).min()) > 1e-5
    assert merged.sizes is None and merged.x.shape == (2, 1, 12)


@pytest.mark.parametrize(("patches", "prefix", "count"), [(8, 1, 3), (9, 0, 4), (9, 2, 1)])
def test_the_gradient_is_that_of_the_averages(patches, prefix, count, float64):
    x, (alike, _) = draw(patches, prefix)
    twice = Pullback(count, prefix).twice
    check_grads(partial(twice, alike=jnp.asarray(alike)), (jnp.asarray(x),), order=1, modes=["rev"])
    by_likeness = jax.grad(lambda a: twice(jnp.asarray(x), a).sum())(jnp.asarray(alike))
    np.testing.assert_array_equal(by_likeness, 0)


def primitives(found):
    return {equation.primitive.name for equation in found}


def test_merging_neither_sorts_nor_scatters(equations):
    """Nor does its gradient: both are slow on accelerators."""
    x, (alike, _) = (jnp.asarray(a, jnp.float32) for a in draw(9, 1))
    forward = primitives(equations(Merging(3, 1), Tokens(x), alike))
    backward = primitives(equations(Pullback(3, 1), x, alike))
    for found in (forward, backward):
        assert {"dot_general", "gather"} <= found
        assert not [name for name in found if "scatter" in name or name in ("sort", "top_k")]


@pytest.mark.parametrize(("patches", "prefix", "count"), [*CASES[:6], *CASES[-3:]])
def test_merging_costs_what_its_program_does(patches, prefix, count, traced_macs):
    x, (alike, _) = (jnp.asarray(a, jnp.float32)[..., :1, :, :] for a in draw(patches, prefix))
    priced = merging.macs(patches, prefix, count, width=5, key_width=4)
    total = x.shape[1]
    fresh, grown = Tokens(x), Tokens(x, jnp.ones((1, total)), jnp.arange(total)[None])
    for tokens in (fresh, grown):
        assert traced_macs(Merging(count, prefix), tokens, alike) == priced > 0
    assert merging.macs(patches, prefix, 0, width=5, key_width=4) == 0
