"""The budget: its loss by definition, and a projection that never exceeds it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.config import Search
from spvit_jax.models import VARIANTS, SwinSpec, ViTSpec
from spvit_jax.single_path.architecture import OPS, from_gates
from spvit_jax.single_path.budget import (
    TOLERANCE,
    BudgetError,
    budget_loss,
    project,
    target_macs,
)
from spvit_jax.single_path.cost import dense_macs, op_macs, unit_macs
from spvit_jax.single_path.gates import BlockGates, decide

TINY = ViTSpec(width=24, depth=4, heads=3, hidden=48, patch_size=4, image_size=16, classes=7)
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
    TINY,
    SWIN,
    ViTSpec(width=16, depth=1, heads=1, hidden=5, patch_size=8, image_size=16, classes=2),
    ViTSpec(width=12, depth=3, heads=6, hidden=1, patch_size=4, image_size=32, distilled=True),
)
SEARCHABLE = [
    name for name, spec in VARIANTS.items() if hasattr(spec, "blocks") and "distilled" not in name
]


def draw(spec, seed, kind="normal"):
    rng = np.random.default_rng(seed)
    if kind == "units first":  # every unit outranks every kernel gate
        return tuple(g._replace(kernel=g.kernel - 9) for g in draw(spec, seed))
    values = {
        "normal": lambda size: rng.normal(0.3, 1, size),
        "ties": lambda size: rng.choice([-1.0, 0.0, 1.5], size),
        "equal": lambda size: np.full(size, 1.5),
        "negative": lambda size: -rng.uniform(0.1, 3, size),
    }[kind]
    return tuple(BlockGates(values(3), values(block.hidden)) for block in spec.blocks)


def floor(spec):
    return spec.fixed_macs + sum(2 * block.width * block.tokens for block in spec.blocks)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", ["normal", "ties", "equal", "negative", "units first"])
def test_projection_never_exceeds_its_target(spec, kind):
    rng = np.random.default_rng(0)
    for seed in range(40):
        target = int(rng.integers(floor(spec), dense_macs(spec) * 1.1))
        found = project(draw(spec, seed, kind), spec, target, "tiny")
        found.check(spec)
        assert found.macs(spec) <= target and found.model == "tiny"
        assert set(found.ops) <= set(OPS)
        if spec in (TINY, SWIN):  # fine a grain: within half a percent, or a unit if that is more
            miss = min(target, dense_macs(spec)) - found.macs(spec)
            assert miss <= max(TOLERANCE * target, unit_macs(spec.blocks[0]))


@pytest.mark.parametrize("name", SEARCHABLE)
@pytest.mark.parametrize("kind", ["normal", "equal", "units first"])
def test_projection_is_within_half_a_percent_on_every_model(name, kind):
    spec = VARIANTS[name]
    for ratio in (0.1, 0.35, 0.5, 0.8, 0.95, 0.99):
        target = round(ratio * dense_macs(spec))
        if target < floor(spec):
            continue
        found = project(draw(spec, int(100 * ratio), kind), spec, target).macs(spec)
        assert (1 - 0.005) * target <= found <= target


@pytest.mark.parametrize("spec", [TINY, SWIN])
@pytest.mark.parametrize("seed", range(10))
def test_the_highest_ranked_gates_are_open(seed, spec):
    """What is shut and could be opened next is weaker than all that is open, or was too dear."""
    logits, target = draw(spec, seed), round(0.55 * dense_macs(spec))
    found = project(logits, spec, target)
    opened, shut = [], []  # strength and cost of a gate
    for gates, op, units, block in zip(logits, found.ops, found.ffn, spec.blocks, strict=True):
        steps = np.diff(list(op_macs(block).values()))
        level = OPS.index(op)
        kernel = list(zip(np.minimum.accumulate(gates.kernel), steps, strict=True))
        opened += kernel[:level]
        shut += kernel[level : level + 1]
        for unit, strength in enumerate(gates.ffn):
            (opened if unit in units else shut).append((strength, unit_macs(block)))
    for strength, macs in shut:
        assert all(other >= strength for other, cost in opened if cost >= macs)
    threshold = sum(strength > 0 for strength, _ in opened) / len(opened)
    assert opened and shut and threshold > 0.5


def test_an_affordable_target_opens_everything():
    found = project(draw(TINY, 0, "negative"), TINY, dense_macs(TINY))
    assert found.ops == ("msa",) * 4 and found.widths == (48,) * 4
    assert project(draw(TINY, 0), TINY, 10 * dense_macs(TINY)) == project(
        draw(TINY, 1), TINY, dense_macs(TINY)
    )


def test_a_decision_that_meets_its_target_is_left_alone():
    logits = draw(TINY, 3)
    decided = decide(jax.tree.map(jnp.asarray, logits))
    expected = from_gates(decided)
    assert project(logits, TINY, expected.macs(TINY)) == expected


def test_passed_over_kernels_fill_a_budget_that_units_cannot():
    """All units open, the first block's 3x3 too dear: one is given up for it."""
    spec = ViTSpec(width=24, depth=1, heads=3, hidden=3, patch_size=4, image_size=16, classes=7)
    logits = (BlockGates(np.array([3.0, 0.0, -1.0]), np.array([2.0, 1.0, 0.5])),)
    conv3x3 = op_macs(spec.blocks[0])["conv3x3"]
    target = floor(spec) + conv3x3 + 2 * unit_macs(spec.blocks[0])
    found = project(logits, spec, target)
    assert found.ops == ("conv3x3",) and found.ffn == ((0, 1),)
    assert found.macs(spec) == target


def test_an_impossible_target_is_refused():
    least = floor(TINY)
    assert project(draw(TINY, 0), TINY, least).macs(TINY) == least
    with pytest.raises(BudgetError, match=rf"{least - 1:,} MACs is below the {least:,}.*target"):
        project(draw(TINY, 0), TINY, least - 1)


def test_budget_loss_has_the_gradient_of_its_definition(float64):
    logits = tuple(BlockGates(np.array(k), np.array(f)) for k, f in [
        ([0.7, 0.2, 1.1], [0.5, -0.3, 2.0]),
        ([0.4, -0.6, 0.9], [-1.0, 0.1, 0.3]),
    ])  # fmt: skip
    spec = ViTSpec(width=24, depth=2, heads=3, hidden=3, patch_size=4, image_size=16, classes=7)
    target, weight = 1e-4, 3e6

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    def slope(logit):  # of sigmoid(sigmoid(logit) - 1/2)
        inner, outer = sigmoid(logit), sigmoid(sigmoid(logit) - 0.5)
        return outer * (1 - outer) * inner * (1 - inner)

    steps = np.diff(list(op_macs(spec.blocks[0]).values()))
    unit = unit_macs(spec.blocks[0])
    macs, slopes = floor(spec), []
    for kernel, ffn in logits:
        hard = (kernel > 0).astype(float)
        macs += (steps * np.cumprod(hard)).sum() + unit * (ffn > 0).sum()
        by_gate = [
            sum(steps[j] * np.prod(np.delete(hard[: j + 1], i)) for j in range(i, 3))
            for i in range(3)
        ]
        slopes.append(BlockGates(np.array(by_gate) * slope(kernel), unit * slope(ffn)))
    miss = target - macs / 1e9
    expected = jax.tree.map(lambda s: -2 * weight * miss * s / 1e9, tuple(slopes))

    logits = jax.tree.map(jnp.asarray, logits)
    value, gradient = jax.value_and_grad(lambda g: budget_loss(spec, g, target, weight))(logits)
    np.testing.assert_allclose(value, weight * miss**2, rtol=1e-12)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-15)  # noqa: E731
    jax.tree.map(close, gradient, expected)
    assert abs(float(gradient[1].kernel[1])) > 0  # a shut gate hears of what it would open


def test_a_target_is_in_gmacs_or_a_share_of_the_dense_model():
    spec = VARIANTS["deit_tiny_patch16_224"]
    assert target_macs(Search(target_gmacs=0.7), spec) == 700_000_000
    assert target_macs(Search(target_ratio=0.25), spec) == round(dense_macs(spec) / 4)
