"""Budgets: the penalty by its definition, and a choice that never exceeds any of them."""

import dataclasses
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax import config
from spvit_jax.models import VARIANTS, SwinSpec, ViTSpec
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture, from_gates
from spvit_jax.single_path.budget import Budget, BudgetError, budgets, penalty, project
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.ops import OPS, PAPER
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.space import Space, group_units

VIT = ViTSpec(width=24, depth=4, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)
AVERAGE = dataclasses.replace(VIT, class_token=False, pool="norm_average")
SWIN = SwinSpec(
    width=12,
    depths=(2, 2),
    heads=(3, 4),
    hidden=(50, 48),
    window=2,
    patch_size=2,
    image_size=16,
    classes=7,
)
SPECS = (
    VIT,
    SWIN,
    ViTSpec(width=16, depth=1, heads=1, hidden=5, patch_size=8, image_size=16, classes=2),
    ViTSpec(width=12, depth=3, heads=6, hidden=1, patch_size=4, image_size=32, distilled=True),
)
PAPERS, EVERY = ("op", "ffn"), ("op", "heads", "ffn")
SEARCHABLE = [
    name for name, spec in VARIANTS.items() if hasattr(spec, "blocks") and "distilled" not in name
]
RELEASED = {  # lambda and F*, in GMACs, of each search
    ("deit_tiny_patch16_224", 20.0, 1.0),
    ("deit_small_patch16_224", 3.0, 3.2),
    ("deit_base_patch16_224", 0.08, 6.0),
    ("deit_base_patch16_224", 0.06, 10.0),
    ("swin_tiny_patch4_window7_224", 2.8, 3.2),
    ("swin_small_patch4_window7_224", 0.4, 5.5),
    ("swin_base_patch4_window7_224", 0.1, 10.0),
}


def draw(space, seed, kind="normal"):
    """Gate logits as a search might leave them."""
    rng = np.random.default_rng(seed)
    values = {
        "normal": lambda axis, size: rng.normal(0.3, 1, size),
        "ties": lambda axis, size: rng.choice([-1.0, 0.0, 1.5], size),
        "equal": lambda axis, size: np.full(size, 1.5),
        "negative": lambda axis, size: -rng.uniform(0.1, 3, size),
        "units first": lambda axis, size: rng.normal(0.3, 1, size) - (0 if axis == "ffn" else 9),
    }[kind]
    return tuple(
        {axis: values(axis, x.size) for axis, x in block.items()} for block in initial_logits(space)
    )


def held(space, spec, *shares, count=prices.macs):
    """Budgets of so much of what gates may open: of MACs, and of parameters."""
    priced = [price(spec, space.ops) for price in (count, prices.parameters)[: len(shares)]]
    pairs = zip(priced, shares, strict=True)
    return tuple(Budget(p, round(p.base + share * (p.dense - p.base))) for p, share in pairs)


def spent(found, spec, given):
    """What the architecture costs of each budget, exactly."""
    gates = found.gates(spec, PAPER)
    return [int(cost(budget.prices, gates)) for budget in given]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "negative", "units first"])
@pytest.mark.parametrize("axes", [PAPERS, EVERY])
def test_no_budget_is_ever_exceeded_and_no_unit_more_would_fit(spec, kind, axes):
    space, rng = Space(spec.blocks, axes=axes), np.random.default_rng(0)
    for seed in range(2):
        given = held(space, spec, *rng.uniform(0, 1.1, 1 + seed % 2))
        found = project(space, draw(space, seed, kind), given, "tiny")
        found.check(spec)
        assert found.model == "tiny" and set(found.ops) <= set(PAPER)
        left = [b.target - cost for b, cost in zip(given, spent(found, spec, given), strict=True)]
        assert min(left) >= 0
        for i, (block, width) in enumerate(zip(spec.blocks, found.widths, strict=True)):
            unit = [budget.prices.blocks[i]["ffn"][0] for budget in given]
            dear = any(one > rest for one, rest in zip(unit, left, strict=True))
            assert dear or width == block.hidden


@pytest.mark.parametrize("name", SEARCHABLE)
@pytest.mark.parametrize("kind", ["normal", "units first"])
def test_a_budget_is_filled_to_half_a_percent_on_every_model(name, kind):
    spec = VARIANTS[name]
    for axes, share in itertools.product((PAPERS, EVERY), (0.1, 0.35, 0.5, 0.8, 0.95)):
        space = Space(spec.blocks, axes=axes)
        given = held(space, spec, share)
        found = project(space, draw(space, int(100 * share), kind), given)
        (macs,) = spent(found, spec, given)
        assert 0.995 * given[0].target <= macs <= given[0].target


@pytest.mark.parametrize(
    "name", ["deit_base_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
@pytest.mark.parametrize("axes", [PAPERS, EVERY])
def test_the_tightest_of_two_budgets_is_filled_in_less_than_two_seconds(name, axes):
    spec = VARIANTS[name]
    space = Space(spec.blocks, axes=axes)
    for seed, shares in enumerate([(0.5, 0.5), (0.8, 0.8), (0.4, 0.6), (0.7, 0.5)]):
        given, logits = held(space, spec, *shares), draw(space, seed)
        start = time.process_time()
        found = project(space, logits, given)
        assert time.process_time() - start < 2
        pairs = zip(spent(found, spec, given), given, strict=True)
        filled = [cost / budget.target for cost, budget in pairs]
        assert 0.995 < max(filled) <= 1


def levels_of(logits):
    """What ``project`` says gates are worth for their price: logits by their axis' mean size."""
    sizes = {a: np.abs(np.concatenate([block[a] for block in logits])).mean() for a in logits[0]}
    scaled = [{axis: x / sizes[axis] for axis, x in block.items()} for block in logits]
    every = np.concatenate([x for block in scaled for x in block.values()])
    floor = every.min() - 1e-3 * np.ptp(every)
    return [{axis: x - floor for axis, x in block.items()} for block in scaled]


@pytest.mark.parametrize("count", [prices.macs, prices.published_macs, prices.parameters])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_chosen_is_worth_most(seed, count):
    """Against every architecture of a small space, each gate worth its price times its level."""
    spec = dataclasses.replace(AVERAGE, depth=2, hidden=4)
    space = Space(spec.blocks)
    logits, given = draw(space, seed), held(space, spec, 0.6, count=count)
    levels = levels_of(logits)
    of_block = []
    for i, level in enumerate(levels):
        price = given[0].prices.blocks[i]
        steps = np.append(price["op"][:-1], price["op"][-1] + price["heads"].sum())
        worth = steps * np.minimum.accumulate(level["op"])
        of_block.append(
            [
                (
                    steps[:op].sum() + price["ffn"] @ units,
                    worth[:op].sum() + (price["ffn"] * level["ffn"]) @ units,
                    op,
                    units,
                )
                for op in range(4)
                for units in map(np.array, itertools.product((0, 1), repeat=4))
            ]
        )
    room = given[0].target - given[0].prices.base
    fitting = [(one, two) for one, two in itertools.product(*of_block) if one[0] + two[0] <= room]
    best = max(fitting, key=lambda pair: pair[0][1] + pair[1][1])
    found = project(space, logits, given)
    assert found.ops == tuple(PAPER[op] for _, _, op, _ in best)
    assert found.ffn == tuple(tuple(np.flatnonzero(units).tolist()) for *_, units in best)


@pytest.mark.parametrize("axes", [PAPERS, EVERY])
@pytest.mark.parametrize("spec", [VIT, SWIN])
def test_louder_logits_of_one_axis_change_nothing(spec, axes):
    """Gates of one kind are compared with each other, kinds by what their decisions say."""
    space = Space(spec.blocks, axes=axes)
    for seed, louder in enumerate(axes):
        logits, given = draw(space, seed), held(space, spec, 0.5)
        loud = tuple(
            {axis: x * (10 if axis == louder else 1) for axis, x in block.items()}
            for block in logits
        )
        assert project(space, loud, given) == project(space, logits, given)


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        (VIT, prices.published_macs),
        (AVERAGE, prices.macs),
        (SWIN, prices.macs),
        (SWIN, prices.parameters),
        (VARIANTS["deit_tiny_patch16_224"], prices.published_macs),
    ],
)
def test_a_decision_that_just_meets_its_budget_is_left_alone(spec, count):
    space = Space(spec.blocks)
    for seed in range(4):
        logits = draw(space, seed)
        decided = from_gates(decide(space, jax.tree.map(jnp.asarray, logits)), space.ops)
        target = decided.price(count, spec)
        assert project(space, logits, (Budget(count(spec, space.ops), target),)) == decided


def test_an_affordable_budget_opens_everything():
    for axes in (PAPERS, EVERY, ("heads",)):
        space = Space(VIT.blocks, axes=axes)
        for share in (1, 10):
            found = project(space, draw(space, share, "negative"), held(space, VIT, share, share))
            assert found == Architecture(("msa",) * 4, tuple(tuple(range(48)) for _ in range(4)))


def test_attention_keeps_its_best_heads():
    space = Space(VIT.blocks, axes=("heads",))
    logits = tuple({"heads": np.roll([3.0, 2.0, 1.0], i)} for i in range(4))
    found = project(space, logits, held(space, VIT, 0.7))
    assert found.ops == ("msa",) * 4 and found.widths == (48,) * 4
    counts = found.head_counts(VIT)
    assert 4 < sum(counts) < 12 and min(counts) > 0
    for kept, block in zip(found.heads, logits, strict=True):
        best = np.argsort(-block["heads"])[: len(kept)]
        assert kept == tuple(sorted(best.tolist()))


def test_groups_are_chosen_whole():
    space = Space(VIT.blocks, axes=EVERY, members=group_units(VIT, 8))
    given = held(space, VIT, 0.5)
    found = project(space, draw(space, 0), given)
    (macs,) = spent(found, VIT, given)
    assert set(np.array(found.widths) % 8) == {0} and 0 < sum(found.widths) < 4 * 48
    assert macs <= given[0].target


@pytest.mark.parametrize("axes", [PAPERS, ("heads",), ("heads", "ffn")])
def test_an_impossible_budget_is_refused_with_what_is_the_least(axes):
    space = Space(VIT.blocks, axes=axes)
    macs = prices.macs(VIT, space.ops)
    units = {} if "ffn" in axes else {"ffn": (48,) * 4}
    op, heads = ("skip", ()) if "op" in axes else ("msa", (1,) * 4)
    least = Architecture((op,) * 4, **({"ffn": (0,) * 4} | units), heads=heads).macs(VIT)
    found = project(space, draw(space, 0), (Budget(macs, least),))
    assert found.macs(VIT) == least
    with pytest.raises(BudgetError, match=rf"budget\.x: {least - 1:,} MACs .* {least:,} of.*raise"):
        project(space, draw(space, 0), (Budget(macs, least - 1, "budget.x"),))


def test_each_budget_is_named_when_it_cannot_be_held():
    space = Space(VIT.blocks)
    given = (*held(space, VIT, 0.5), Budget(prices.parameters(VIT, PAPER), 10, "budget.params"))
    with pytest.raises(BudgetError, match=r"budget\.params: 10 parameters are below"):
        project(space, draw(space, 0), given)


@pytest.mark.parametrize(("name", "weight", "target"), sorted(RELEASED))
def test_a_released_lambda_gives_the_released_penalty(name, weight, target, float64):
    """``lambda (F* - F)^2``, F in GMACs, is ours of weight ``lambda F*^2``."""
    spec = VARIANTS[name]
    space = Space(spec.blocks)
    logits = jax.tree.map(jnp.asarray, draw(space, 0))
    decided = from_gates(decide(space, logits), space.ops)
    gmacs = decided.published_macs(spec) / 1e9
    budget = Budget(prices.published_macs(spec, space.ops), target * 1e9)

    found = penalty(space, logits, (budget,), weight * target**2)
    np.testing.assert_allclose(found, weight * (target - gmacs) ** 2, rtol=1e-12)


def test_a_penalty_has_the_gradient_of_its_definition(float64):
    logits = tuple({"op": np.array(o), "heads": np.array(h), "ffn": np.array(f)} for o, h, f in [
        ([0.7, 0.2, 1.1], [0.4, -0.2, 0.9], [0.5, -0.3, 2.0]),
        ([0.4, -0.6, 0.9], [-0.1, 0.3, -0.5], [-1.0, 0.1, 0.3]),
    ])  # fmt: skip
    spec = dataclasses.replace(AVERAGE, depth=2, hidden=3)
    space = Space(spec.blocks, axes=EVERY)
    priced, target, weight = prices.macs(spec, space.ops), 1e5, 3.0

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def slope(logit):  # of sigmoid(sigmoid(logit) - 1/2)
        inner, outer = sigmoid(logit), sigmoid(sigmoid(logit) - 0.5)
        return outer * (1 - outer) * inner * (1 - inner)

    macs, slopes = priced.base, []
    for block, price in zip(logits, priced.blocks, strict=True):
        hard = {axis: (x > 0).astype(float) for axis, x in block.items()}
        steps, heads = price["op"].astype(float), (price["heads"] * hard["heads"]).sum()
        steps[-1] += heads  # nested in the last gate
        macs += (steps * np.cumprod(hard["op"])).sum() + (price["ffn"] * hard["ffn"]).sum()
        by_op = [
            sum(steps[j] * np.prod(np.delete(hard["op"][: j + 1], i)) for j in range(i, 3))
            for i in range(3)
        ]
        by_head = price["heads"] * np.prod(hard["op"])
        by_gate = {"op": np.array(by_op), "heads": by_head, "ffn": price["ffn"]}
        slopes.append({axis: by_gate[axis] * slope(x) for axis, x in block.items()})
    miss = macs / target - 1
    expected = jax.tree.map(lambda s: 2 * weight * miss * s / target, tuple(slopes))

    given = (Budget(priced, target),)
    logits = jax.tree.map(jnp.asarray, logits)
    value, gradient = jax.value_and_grad(lambda g: penalty(space, g, given, weight))(logits)
    np.testing.assert_allclose(value, weight * miss**2, rtol=1e-12)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-15)  # noqa: E731
    jax.tree.map(close, gradient, expected)
    assert abs(float(gradient[1]["op"][1])) > 0  # a shut gate hears of what it would open
    assert float(jnp.abs(gradient[0]["heads"]).min()) > 0


def test_budgets_together_are_penalised_together(float64):
    space = Space(VIT.blocks)
    logits = jax.tree.map(jnp.asarray, draw(space, 0))
    one, two = held(space, VIT, 0.4, 0.7)
    each = [penalty(space, logits, (budget,), 2.0) for budget in (one, two)]
    np.testing.assert_allclose(penalty(space, logits, (one, two), 2.0), sum(each), rtol=1e-12)
    assert min(each) > 0


def test_a_target_is_a_share_of_the_dense_model_as_published_or_a_number():
    spec = VARIANTS["deit_tiny_patch16_224"]
    macs, published = prices.macs(spec, PAPER), prices.published_macs(spec, PAPER)

    def only(**fields):
        (found,) = budgets(config.Budget(**fields), spec, PAPER)
        return found

    for share in (0.25, 1.0):
        found = only(macs=share)
        assert (found.target, found.field) == (round(share * published.dense), "budget.macs")
        assert found.prices.dense == macs.dense < published.dense
    assert only(macs=0.7e9).target == 700_000_000
    counted = only(macs=0.5, count="published")
    assert counted.prices.dense == published.dense == 2 * counted.target
    assert only(params=0.5).target == round(5_717_416 / 2)
    assert only(params=3e6).target == 3_000_000 and only(params=3e6).field == "budget.params"
    both = budgets(config.Budget(macs=0.5, params=0.6), spec, PAPER)
    assert [budget.field for budget in both] == ["budget.macs", "budget.params"]
    with pytest.raises(BudgetError, match="no budget is set: give budget.macs, budget.params or"):
        budgets(config.Budget(), spec, PAPER)
    assert [b.target for b in budgets(config.Budget(macs=1e-300, params=1e-300), spec, PAPER)] == [
        1,
        1,
    ]
    assert set(PAPER) < set(OPS)
