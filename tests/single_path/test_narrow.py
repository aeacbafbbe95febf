"""Heads of fewer features: the best bases of a rank, exact where nothing is lost, priced as run."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.config import Budget
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.to_torch import state_for_torch
from spvit_jax.models import MODELS, Geometry
from spvit_jax.planning.parts import distinct, table
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture, ArchitectureError
from spvit_jax.single_path.axes import AXES
from spvit_jax.single_path.budget import budgets, select
from spvit_jax.single_path.narrow import PARTS, Keys, levels, value_bases
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.single_path.repair import repair
from spvit_jax.single_path.score import load, score
from spvit_jax.single_path.space import Space
from tests.single_path.conftest import SPECS
from tests.single_path.test_repair import VIT, build, calibration

OPS = ("skip", "msa")


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def covariance(rng, heads, width):
    rows = rng.standard_normal((heads, 50, width)) * np.linspace(1, 3, width)
    return rows.transpose(0, 2, 1) @ rows / 50


def whole(spec, **options):
    ops = ("msa",) * len(spec.blocks)
    return Architecture(ops, tuple(b.hidden for b in spec.blocks), **options)


def narrowed(spec, keys, values):
    """Heads that lose so many features."""
    return whole(spec, dims=tuple((b.head_dim - keys, b.head_dim - values) for b in spec.blocks))


def test_bases_of_all_features_change_no_product(rng):
    queries, keys = Keys(covariance(rng, 2, 6), covariance(rng, 2, 6)).bases(6)
    np.testing.assert_allclose(queries @ keys.transpose(0, 2, 1), [np.eye(6)] * 2, atol=1e-9)
    np.testing.assert_allclose(keys.transpose(0, 2, 1) @ keys, [np.eye(6)] * 2, atol=1e-12)
    kernel = rng.standard_normal((2, 6, 20))
    bases, out = value_bases(covariance(rng, 2, 6), kernel, 6)
    np.testing.assert_allclose(bases @ out, kernel, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_other_rank_is_nearer(rng, rank):
    """Products of queries and keys by their moments, and outputs by those of the values."""
    seen = Keys(covariance(rng, 1, 6), covariance(rng, 1, 6))
    (queries,), (keys,) = seen.bases(rank)
    kernel, own = rng.standard_normal((1, 6, 20)), covariance(rng, 1, 6)
    (basis,), (out,) = value_bases(own, kernel, rank)

    def missed(product):  # E (q' (1 - P) k)^2
        rest = np.eye(6) - product
        return np.trace(rest.T @ seen.queries[0] @ rest @ seen.keys[0])

    def lost(product):
        rest = kernel[0] - product
        return np.trace(rest.T @ own[0] @ rest)

    best, least = missed(queries @ keys.T), lost(basis @ out)
    for _ in range(200):
        moved = queries + 0.1 * rng.standard_normal(queries.shape)
        assert missed(moved @ keys.T) > best
        moved = basis + 0.1 * rng.standard_normal(basis.shape)
        fit = np.linalg.solve(moved.T @ own[0] @ moved, moved.T @ own[0] @ kernel[0])
        assert lost(moved @ fit) >= least - 1e-9
    root = np.linalg.cholesky(own[0]).T
    np.testing.assert_allclose(
        least, (np.linalg.svd(root @ kernel[0], compute_uv=False)[rank:] ** 2).sum()
    )


def test_heads_that_keep_the_same_features_keep_their_mean(rng):
    """Tokens are merged by the mean of the heads' keys, so it has to say what it did."""
    kept = np.linalg.qr(rng.standard_normal((6, 3)))[0]
    rows = rng.standard_normal((2, 50, 3)) @ np.diag([3, 2, 1]) @ kept.T
    rows += 0.01 * rng.standard_normal(rows.shape)
    queries = rng.standard_normal((2, 50, 6))
    seen = Keys(*(a.transpose(0, 2, 1) @ a for a in (queries, rows)))
    _, bases = seen.bases(3)
    mean, turned = rows.mean(0), np.einsum("htd,hdr->tr", rows, bases) / 2
    alike, before = turned @ turned.T, mean @ mean.T
    assert np.abs(alike - before).max() < 0.15 * np.abs(before).max()


@pytest.mark.parametrize("spec", ["vit", "average", "swin", "oblong_swin"], indirect=True)
def test_what_heads_do_not_use_is_not_missed(rng, spec, dense, images, run, float64):
    """Queries and values of a lower rank, and biases that are in their span."""
    model = dense()
    for block, geometry in zip(model.blocks, spec.blocks, strict=True):
        mixer, width = block.mixer, geometry.head_dim
        for layer, many in ((mixer.qk, 2), (mixer.v, 1)):
            low = rng.standard_normal((many * geometry.heads, width, width - 2))
            low = low @ rng.standard_normal((many * geometry.heads, width - 2, width)) / width
            for part in (layer.kernel, layer.bias):
                by_heads = part[...].reshape(-1, many * geometry.heads, width)
                turned = jnp.einsum("nhd,hde->nhe", by_heads, low)
                part[...] = turned.reshape(part[...].shape)
    small = prune(model, narrowed(spec, 2, 2))
    assert (
        small.blocks[0].mixer.v.kernel.shape[1] == spec.blocks[0].width - 2 * spec.blocks[0].heads
    )
    np.testing.assert_allclose(run(small, images), run(model, images), rtol=1e-8, atol=1e-8)
    worse = prune(model, narrowed(spec, 3, 2))
    assert np.abs(run(worse, images) - run(model, images)).max() > 1e-6


@pytest.mark.parametrize("spec", list(SPECS), indirect=True)
def test_prices_are_those_of_the_program(spec, random_architecture, macs_per_image):
    found = random_architecture(0)
    dims = tuple(
        (b.head_dim - 1 - i % 2, b.head_dim - i) if op == "msa" else ()
        for i, (op, b) in enumerate(zip(found.ops, spec.blocks, strict=True))
    )
    found = dataclasses.replace(found, dims=dims, heads=())
    model = nnx.eval_shape(
        lambda: fold(prune(MODELS[type(spec)](spec, rngs=nnx.Rngs(0)), found), batch_norm=True)
    )
    assert macs_per_image(model) == found.macs(spec)
    assert count_parameters(model) == found.price(prices.parameters, spec)
    assert found.macs(spec) < dataclasses.replace(found, dims=()).macs(spec)


@pytest.mark.parametrize("change", [{"qk_norm": True}, {"rotary": "eva"}])
def test_keys_that_cannot_turn_stay(change):
    spec = dataclasses.replace(VIT, **change)
    model = build(spec)
    with pytest.raises(
        ArchitectureError, match=r"keys \(8, since they are normalised or turned,\)"
    ):
        prune(model, narrowed(spec, 1, 1))
    prune(model, narrowed(spec, 0, 1))
    scores = score(model, calibration(16), OPS)
    assert all(block.keys == () and len(block.values) == PARTS for block in scores.blocks)
    chosen = select(_space(spec), scores, _held(spec, 0.6))
    assert all(kept[0] == 8 for kept in chosen.dims if kept)


def _space(spec):
    return Space(spec.blocks, OPS, ("op", "heads", "dims", "ffn"))


def _held(spec, macs, **options):
    return budgets(Budget(macs=macs, **options), spec, OPS)


@pytest.fixture(scope="module")
def scored():
    model = build(VIT)
    return model, score(model, calibration(), OPS)


def test_errors_fall_with_the_features_that_are_kept(scored, tmp_path):
    _, scores = scored
    for block in scores.blocks:
        for errors in (block.keys, block.values):
            assert len(errors) == PARTS and errors[-1] == 0 and errors[0] > 0
        assert list(block.values) == sorted(block.values, reverse=True)
        assert block.keys[0] > block.keys[-2]
    scores.save(tmp_path / "scores.json")
    again = load(tmp_path / "scores.json")
    assert [(b.keys, b.values) for b in again.blocks] == [(b.keys, b.values) for b in scores.blocks]


def test_levels_are_eighths():
    assert levels(Geometry(64, 1, 1, (2, 2))) == (8, 16, 24, 32, 40, 48, 56, 64)
    assert levels(Geometry(12, 1, 1, (2, 2))) == (2, 3, 5, 6, 8, 9, 11, 12)


@pytest.mark.parametrize(("macs", "params"), [(0.7, 0), (0.4, 0), (0.9, 0.6)])
def test_a_choice_holds_its_budgets_and_is_better_for_the_axis(scored, macs, params):
    _, scores = scored
    held = _held(VIT, macs, params=params)
    chosen = select(_space(VIT), scores, held)
    plain = select(Space(VIT.blocks, OPS, ("op", "heads", "ffn")), scores, held)
    assert any(kept not in ((), (8, 8)) for kept in chosen.dims) and not plain.dims
    for budget in budgets(Budget(macs=macs, params=params), VIT, OPS, dims=chosen.dims):
        assert prices.cost(budget.prices, chosen.gates(VIT, OPS)) <= budget.target

    def error(found):
        total = 0.0
        for i, block in enumerate(scores.blocks):
            total += block.ffn.errors[40 - found.widths[i]]
            if found.ops[i] == "skip":
                total += block.ops["skip"]
                continue
            total += block.heads.errors[3 - found.head_counts(VIT)[i]]
            keys, values = found.dims[i] if found.dims else (8, 8)
            total += block.keys[keys - 1] + block.values[values - 1]
        return total

    assert error(chosen) < error(plain)


def test_a_budget_of_time_narrows_heads_where_its_table_has_them(scored, tmp_path):
    """Each part's time is its MACs, on top of 1,000 of a block."""
    _, scores = scored
    for axes, narrower in (((), False), (("dims",), True)):
        parts = distinct(VIT, OPS, axes)
        times = [4e3, 1e3, *(4 * (1e3 + macs_of(part)) for part in parts)]
        table(VIT, OPS, np.array([times]), {}, axes).save(tmp_path / "table.json")
        given = Budget(macs=0, latency=f"{tmp_path}/table.json:0.6")
        chosen = select(_space(VIT), scores, budgets(given, VIT, OPS))
        assert any(kept not in ((), (8, 8)) for kept in chosen.dims) == narrower
        (held,) = budgets(given, VIT, OPS, dims=chosen.dims)
        taken = prices.cost(held.prices, chosen.gates(VIT, OPS)).item()
        assert 0.9 * held.target < taken <= held.target


def macs_of(part):
    keys, values = part.dims or (0, 0)
    geometry = dataclasses.replace(part.geometry, keys=keys, values=values)
    by_head, by_unit = (AXES[name].macs(geometry, OPS) for name in ("heads", "ffn"))
    return by_head[: part.heads].sum() + by_unit[: part.ffn].sum()


def test_a_choice_is_the_best_there_is(scored):
    """Of one block, by brute force."""
    _, scores = scored
    spec = dataclasses.replace(VIT, depth=1)
    scores = dataclasses.replace(scores, blocks=scores.blocks[:1])
    (held,) = _held(spec, 0.55)
    found = select(_space(spec), scores, (held,))
    block, best = scores.blocks[0], np.inf
    for heads, keys, values, units in itertools.product(range(4), *[range(1, 9)] * 2, range(41)):
        one = Architecture(
            ("msa",) if heads else ("skip",), (units,), heads=(heads,),
            dims=((keys, values) if heads else (),),
        )  # fmt: skip
        if one.published_macs(spec) > held.target or one.macs(spec) > held.target:
            continue
        error = block.ffn.errors[40 - units]
        if heads:
            error += block.heads.errors[3 - heads] + block.keys[keys - 1] + block.values[values - 1]
        else:
            error += block.ops["skip"]
        best = min(best, error)
    error = block.ffn.errors[40 - found.widths[0]]
    if found.ops[0] == "msa":
        error += block.heads.errors[3 - found.head_counts(spec)[0]]
        error += block.keys[found.dims[0][0] - 1] + block.values[found.dims[0][1] - 1]
    else:
        error += block.ops["skip"]
    assert error <= best + 1e-9


@pytest.mark.parametrize("merges", [(), (3, 2, 0)])
def test_a_repair_sees_more_than_weights(scored, merges):
    model, _ = scored
    small = dataclasses.replace(narrowed(VIT, 3, 3), merges=merges, heads=(2, 3, 2))
    repaired, cut = repair(model, model, calibration(), small), prune(model, small)
    assert repaired.architecture == cut.architecture
    assert [p.shape for p in jax.tree.leaves(nnx.state(repaired))] == [
        p.shape for p in jax.tree.leaves(nnx.state(cut))
    ]
    ((images, _),) = calibration(8).batches
    images = images / 127.5 - 1.0
    expected = model(images)
    errors = [float(jnp.square(m(images) - expected).sum()) for m in (repaired, cut)]
    assert errors[0] < 0.7 * errors[1]


def test_the_released_names_know_no_such_heads(scored):
    model, _ = scored
    with pytest.raises(CheckpointError, match=r"heads of block 0 keep \(7, 7\) of 8 features"):
        state_for_torch(prune(model, narrowed(VIT, 1, 1)))
    state_for_torch(prune(model, narrowed(VIT, 0, 0)))


def test_all_features_are_the_model_without_the_axis(scored):
    model, _ = scored
    one, other = (
        repair(model, model, calibration(16), a) for a in (whole(VIT), narrowed(VIT, 0, 0))
    )
    for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)
