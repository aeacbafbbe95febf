"""What ``docs/extending.md`` adds besides an operation: an axis, and a kind of budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.single_path import prices
from spvit_jax.single_path.axes import AXES, GATED
from spvit_jax.single_path.budget import Budget, penalty, project
from spvit_jax.single_path.gates import initial_logits, sample
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.single_path.space import Space

KEPT = (0, 2, 3, 6)


@pytest.fixture
def axes(monkeypatch, example):
    """The table of axes with a line more, and heads less the price of their features."""
    module = example("an_axis")
    new = {"heads": module.WholeHeadsAxis(), "head_width": module.HeadWidthAxis()}
    for name, axis in new.items():
        monkeypatch.setitem(AXES, name, axis)
        monkeypatch.setitem(GATED, name, axis)
    return new


@pytest.mark.parametrize("pricing", [prices.macs, prices.published_macs, prices.parameters])
@pytest.mark.parametrize("spec", ["vit", "swin"], indirect=True)
def test_an_axis_takes_its_part_of_the_price_of_another(spec, pricing, axes, monkeypatch):
    divided = pricing(spec)
    monkeypatch.undo()
    whole = pricing(spec)
    assert divided.dense == whole.dense and divided.base == whole.base
    for new, old in zip(divided.blocks, whole.blocks, strict=True):
        assert new["head_width"].min() > 0 <= new["heads"].min()
        assert new["heads"].sum() + new["head_width"].sum() == old["heads"].sum()


@pytest.mark.parametrize("spec", ["vit"], indirect=True)
def test_its_gates_are_sampled_nested_and_punished(spec, axes):
    space = Space(spec.blocks, axes=("op", "heads", "head_width", "ffn"))
    logits = initial_logits(space)
    assert logits[0]["head_width"].shape == (spec.width // spec.heads,)
    gates = sample(space, logits, jax.random.key(0))
    for block, geometry in zip(gates, spec.blocks, strict=True):
        by_head = block["head_width"].reshape(geometry.heads, -1)
        assert not by_head[block["heads"] == 0].any()
    budget = Budget(prices.macs(spec, space.ops), 1.0)
    slopes = jax.grad(lambda logits: penalty(space, logits, (budget,), 1.0))(logits)
    assert all(float(block["head_width"].min()) > 0 for block in slopes)


@pytest.mark.parametrize("spec", ["vit"], indirect=True)
def test_it_cuts_what_its_gates_shut_and_prices_what_it_cut(spec, dense, axes, traced_macs):
    block, geometry, axis = dense().blocks[0], spec.blocks[0], axes["head_width"]
    before, x = count_parameters(block), np.random.default_rng(0).normal(size=(2, 17, 24))
    gate = jnp.tile(jnp.isin(jnp.arange(geometry.head_dim), jnp.asarray(KEPT)), spec.heads)
    shut = nnx.clone(block.mixer)
    for projection, open_ in ((shut.qk, jnp.tile(gate, 2)), (shut.v, gate)):
        projection.kernel = nnx.Param(projection.kernel[...] * open_)
        projection.bias = nnx.Param(projection.bias[...] * open_)
    assert axis.prune(block, KEPT) == KEPT
    np.testing.assert_allclose(block.mixer(x)[0], shut(x)[0], rtol=1e-5, atol=1e-6)
    gone = (geometry.head_dim - len(KEPT)) * spec.heads
    assert before - count_parameters(block) == gone * axis.parameters(geometry, ())[0]
    shape = jax.ShapeDtypeStruct((1, 17, 24), jnp.float32)
    saved = traced_macs(shut, shape) - traced_macs(block.mixer, shape)
    assert saved == gone * axis.macs(geometry, ())[0]


@pytest.mark.parametrize("spec", ["vit", "swin"], indirect=True)
def test_a_budget_is_a_price(spec, dense, example):
    module = example("a_budget")
    budget = module.energy_budget(spec, 0.5)
    space = Space(spec.blocks, axes=("op", "heads", "ffn"))
    rng = np.random.default_rng(0)
    logits = jax.tree.map(lambda x: rng.normal(size=x.shape), initial_logits(space))
    architecture = project(space, logits, (module.energy_budget(spec, 0.5, space.ops),))
    energy = architecture.price(module.energy, spec)
    assert 0.98 * budget.target < energy <= budget.target
    small = fold(prune(dense(), architecture), batch_norm=True)
    reads = module.PER_WEIGHT * count_parameters(small)
    assert energy == pytest.approx(module.PER_MAC * architecture.macs(spec) + reads)
