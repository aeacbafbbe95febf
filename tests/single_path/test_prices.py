"""Exact prices: of operations, heads and units, of gates, and of the traced program."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import MODELS, VARIANTS, Geometry
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.axes import AXES, GATED
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.ops import OPS
from spvit_jax.single_path.prices import Prices, cost, count_parameters
from spvit_jax.single_path.prune import fold, form, prune
from spvit_jax.single_path.space import Space

EVERY_AXIS = tuple(GATED)
EVERY_SPEC = pytest.mark.parametrize(
    "spec", ["vit", "distilled", "average", "swin", "oblong_swin"], indirect=True
)
VIT = Geometry(width=192, heads=3, hidden=768, grid=(14, 14), prefix=1)
LAST = dataclasses.replace(VIT, prefix=2, class_only=True)
SWIN = Geometry(width=96, heads=3, hidden=384, grid=(56, 56), window=(7, 7))  # 64 windows


def random_logits(space, seed):
    """Most of operations' gates open, so that there are heads to keep; some of the others."""
    rng = np.random.default_rng(seed)
    return tuple(
        {axis: rng.normal(1.5 if axis == "op" else 0.2, 1, x.shape) for axis, x in block.items()}
        for block in initial_logits(space)
    )


@pytest.mark.parametrize(
    ("block", "ops", "head", "unit"),
    [
        (
            VIT,
            {"conv1x1": 2 * 192 * 64 * 196, "conv3x3": (9 * 192 * 64 + 64 * 192) * 196},
            4 * 197 * 192 * 64 + 2 * 197**2 * 64,
            2 * 197 * 192,
        ),
        (  # two class tokens: queries, products and outputs of them alone, keys and values of all
            LAST,
            {},
            2 * 2 * 192 * 64 + 2 * 198 * 192 * 64 + 2 * 2 * 198 * 64,
            2 * 2 * 192,
        ),
        (
            SWIN,
            {"conv1x1": 2 * 96 * 32 * 56**2, "conv3x3": 10 * 96 * 32 * 56**2},
            64 * (4 * 49 * 96 * 32 + 2 * 49**2 * 32),
            2 * 56**2 * 96,
        ),
    ],
    ids=["vit", "last", "swin"],
)
def test_macs_of_a_block_as_it_runs(block, ops, head, unit):
    assert {name: op.macs(block) for name, op in OPS.items()} == dict.fromkeys(OPS, 0) | ops
    heads, units = (AXES[axis].macs(block, tuple(OPS)) for axis in ("heads", "ffn"))
    np.testing.assert_array_equal(heads, [head] * 3)
    np.testing.assert_array_equal(units, [unit] * block.hidden)


@pytest.mark.parametrize("block", [VIT, dataclasses.replace(VIT, class_only=True)])
def test_macs_of_a_block_as_published_are_of_all_tokens(block):
    """As released: attention's of all tokens, the FFN's of the patches."""
    assert OPS["conv3x3"].published_macs(block) == (9 * 192 * 64 + 64 * 192) * 196
    heads, units = (AXES[axis].published_macs(block, tuple(OPS)) for axis in ("heads", "ffn"))
    assert heads.sum() == 4 * 197 * 192**2 + 2 * 192 * 197**2
    assert units.sum() == 768 * 2 * 196 * 192


@pytest.mark.parametrize("seed", range(3))
@EVERY_SPEC
def test_gates_cost_what_their_architecture_costs(seed, spec):
    space = Space(spec.blocks, axes=EVERY_AXIS)
    gates = decide(space, jax.tree.map(jnp.asarray, random_logits(space, seed)))
    found = from_gates(gates, space.ops)
    counts = zip(found.head_counts(spec), spec.blocks, strict=True)
    assert any(0 < count < block.heads for count, block in counts)
    for price in (prices.macs, prices.published_macs, prices.parameters):
        exact = found.price(price, spec)
        assert isinstance(exact, int)
        assert int(cost(price(spec, space.ops), gates)) == exact  # float32 is exact below 2**24
    assert found.macs(spec) == found.price(prices.macs, spec)
    assert found.published_macs(spec) == found.price(prices.published_macs, spec)


@pytest.mark.parametrize("seed", range(3))
def test_the_published_count_by_hand(seed, spec, random_architecture):
    found = dataclasses.replace(random_architecture(seed), heads=())
    total = prices.published_macs(spec).base
    for block, op, width in zip(spec.blocks, found.ops, found.widths, strict=True):
        window = block.tokens // block.windows
        attention = block.windows * (4 * window * block.width**2 + 2 * window**2 * block.width)
        total += attention if op == "msa" else OPS[op].published_macs(block)
        total += 2 * math.prod(block.grid) * block.width * width
    assert found.published_macs(spec) == total


def test_a_soft_gate_costs_its_share():
    priced = Prices("MACs", 100, ({"op": np.array([3, 5]), "ffn": np.array([7])},))
    gates = ({"op": jnp.array([0.5, 0.25]), "ffn": jnp.array([1.0])},)
    assert float(cost(priced, gates)) == 100 + 1.5 + 1.25 + 7
    (slope,) = jax.grad(lambda gates: cost(priced, gates))(gates)
    assert slope["op"].tolist() == [3, 5] and slope["ffn"].tolist() == [7]
    assert priced.dense == 115


@pytest.mark.parametrize(
    "ops", [("skip", "msa"), ("conv1x1", "msa"), ("conv1x1", "conv3x3", "msa")]
)
def test_fewer_operations_cost_what_they_do_among_all(ops, spec):
    cheapest = Architecture((ops[0],) * 4, (5,) * 4)
    for price in (prices.macs, prices.published_macs, prices.parameters):
        assert price(spec, ops).dense == price(spec).dense
        few, many = (
            cost(price(spec, ops), cheapest.gates(spec, ops)),
            cheapest.price(price, spec),
        )
        assert few == many


def test_all_gates_open_cost_the_dense_model():
    spec = VARIANTS["deit_base_patch16_224"]
    everything = Architecture(("msa",) * 12, (3072,) * 12)
    assert everything.macs(spec) == prices.macs(spec).dense
    published = prices.published_macs(spec)
    assert everything.published_macs(spec) == published.dense == 17_510_836_224
    assert everything.price(prices.parameters, spec) == 86_567_656
    norm_skip, skip = (Architecture((op,) * 12, (3072,) * 12) for op in ("norm_skip", "skip"))
    assert norm_skip.macs(spec) == skip.macs(spec)
    assert norm_skip.published_macs(spec) == skip.published_macs(spec)


@pytest.mark.parametrize("seed", [0, 2, 3, 4])  # in the last block msa, 1x1, skip and 3x3
@EVERY_SPEC
def test_prices_are_those_of_the_program(seed, spec, random_architecture, macs_per_image):
    """MACs of every form; parameters of the one that is deployed."""
    found = random_architecture(seed)
    assert set(found.ops) == {"skip", "conv1x1", "conv3x3", "msa"}

    def pruned():
        shared = prune(MODELS[type(spec)](spec, rngs=nnx.Rngs(0)), found)
        return shared, fold(shared), fold(shared, batch_norm=True)

    models = nnx.eval_shape(pruned)
    assert [form(model) for model in models] == ["shared", "folded", "deploy"]
    assert [macs_per_image(model) for model in models] == [found.macs(spec)] * 3
    assert count_parameters(models[2]) == found.price(prices.parameters, spec)
