"""Candidates fit every budget, and a search starts from logits that say what scores say."""

import dataclasses

import numpy as np
import pytest

from spvit_jax.config import Budget
from spvit_jax.models import SwinSpec, ViTSpec
from spvit_jax.single_path.budget import BudgetError, budgets, price_of, select
from spvit_jax.single_path.candidates import candidates
from spvit_jax.single_path.eliminate import Elimination
from spvit_jax.single_path.gates import INITIAL_LOGIT, decide
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.prior import SPREAD, _slopes, scored_logits
from spvit_jax.single_path.score import BlockScores, Scores
from spvit_jax.single_path.space import Space, group_units

VIT = ViTSpec(width=32, depth=6, heads=4, hidden=64, patch_size=4, image_size=16, classes=7)
SWIN = SwinSpec(
    width=12, depths=(2, 2), heads=(2, 4), hidden=(48, 96), window=2, patch_size=2, image_size=16,
    classes=7,
)  # fmt: skip
EVERY = ("op", "heads", "ffn")


def scores_of(spec, seed=0):
    """Errors as elimination finds them: more and more for each further removal."""
    rng = np.random.default_rng(seed)

    def elimination(size):
        steps = np.sort(rng.gamma(1, 1 / size, size))
        return Elimination(rng.permutation(size), np.concatenate([[0], np.cumsum(steps)]))

    blocks = []
    for geometry in spec.blocks:
        heads, skip = elimination(geometry.heads), rng.uniform(0.1, 1)
        ops = {"skip": skip, "conv1x1": 0.9 * skip, "conv3x3": 0.6 * skip}
        blocks.append(BlockScores(ops, heads, elimination(geometry.hidden)))
    return Scores(tuple(blocks), 1)


def shapes(architecture, spec):
    return architecture.ops, architecture.head_counts(spec), architecture.widths


@pytest.mark.parametrize("axes", [EVERY, ("op", "ffn"), ("heads", "ffn"), ("ffn",)])
@pytest.mark.parametrize("spec", [VIT, SWIN])
@pytest.mark.parametrize("share", [0.75, 0.6])
def test_every_candidate_is_within_every_budget_and_unlike_the_others(spec, axes, share):
    held = budgets(Budget(macs=share, params=0.8), spec, PAPER)
    space, scores = Space(spec.blocks, axes=axes), scores_of(spec)
    found = candidates(space, scores, held)
    assert found["scored"] == select(space, scores, held) and next(iter(found)) == "scored"
    assert len(set(found.values())) == len(found) > 1
    for name, architecture in found.items():
        gates = architecture.gates(spec, space.ops)
        assert all(cost(b.prices, gates) <= b.target for b in held), name
    skips = {name for name, one in found.items() if "skip" in one.ops} - {"scored"}
    assert bool(skips) == ("op" in axes)
    assert ("uniform shares" in found) <= ("heads" in axes)


def test_uniform_ones_are_uniform_and_as_wide_as_may_be():
    held = budgets(Budget(macs=0.6), VIT, PAPER)
    scores = scores_of(VIT)
    found = candidates(Space(VIT.blocks, axes=EVERY), scores, held)
    wide = found["uniform width"]
    assert set(wide.ops) == {"msa"} and set(wide.head_counts(VIT)) == {4}
    shares = found["uniform shares"]
    assert set(shares.ops) == {"msa"} and len(set(shares.head_counts(VIT))) == 1
    assert 0 < shares.head_counts(VIT)[0] < 4 and shares.widths[0] > wide.widths[0]
    deep = found["uniform depth"]
    kept = deep.ops.count("msa")
    assert 0 < kept < 6 and deep.ops == ("msa",) * kept + ("skip",) * (6 - kept)
    for one in (wide, shares, deep):
        (width,) = set(one.widths)
        wider = dataclasses.replace(one, ffn=(width + 1,) * 6)
        assert one.macs(VIT) <= held[0].target < wider.macs(VIT)
        for units, block in zip(one.ffn, scores.blocks, strict=True):
            assert set(units) == set(block.ffn.order[64 - width :])  # those that go last
    assert abs(deep.widths[0] / 64 - kept / 6) < 0.25


def test_mixtures_skip_where_it_costs_least_and_choose_the_rest_by_scores():
    held, scores = budgets(Budget(macs=0.6), VIT, PAPER), scores_of(VIT)
    space = Space(VIT.blocks, axes=EVERY)
    found = candidates(space, scores, held)
    cheap = np.argsort([block.ops["skip"] for block in scores.blocks])
    counts = {"a sixth": 1, "a third": 2, "half": 3}
    mixtures = {n: found[f"scored, {n} skipped"] for n in counts if f"scored, {n} skipped" in found}
    assert len(mixtures) > 1
    for name, one in mixtures.items():
        assert all(one.ops[i] == "skip" for i in cheap[: counts[name]]), name
        assert len(set(one.widths)) > 1


def test_what_does_not_fit_is_not_proposed_and_what_cannot_fit_is_an_error():
    scores = scores_of(VIT)
    tight = candidates(Space(VIT.blocks, axes=EVERY), scores, budgets(Budget(macs=0.3), VIT, PAPER))
    assert "uniform width" not in tight and "uniform depth" in tight
    with pytest.raises(BudgetError, match=r"search\.axes"):
        candidates(Space(VIT.blocks, axes=("ffn",)), scores, budgets(Budget(macs=0.3), VIT, PAPER))


@pytest.mark.parametrize("axes", [EVERY, ("op", "ffn"), ("heads", "ffn")])
@pytest.mark.parametrize("spec", [VIT, SWIN])
def test_prior_logits_decide_within_the_budgets_and_by_error(spec, axes):
    held = budgets(Budget(macs=0.7, params=0.8), spec, PAPER)
    space, scores = Space(spec.blocks, axes=axes), scores_of(spec)
    logits = scored_logits(space, scores, held)
    gates = decide(space, logits)
    spent = [float(cost(b.prices, gates)) / b.target for b in held]
    assert 0.9 < max(spent) <= 1
    for block, scored in zip(logits, scores.blocks, strict=True):
        assert set(block) == set(axes)
        assert all(np.abs(x).max() <= INITIAL_LOGIT * SPREAD + 1e-5 for x in block.values())
        assert (np.diff(np.asarray(block["ffn"])[scored.ffn.order]) >= 0).all()


def test_a_logit_is_what_a_gate_saves_for_its_price():
    held = budgets(Budget(macs=0.6), VIT, PAPER)
    space, scores = Space(VIT.blocks, axes=("ffn",)), scores_of(VIT)
    logits = np.concatenate([np.asarray(b["ffn"]) for b in scored_logits(space, scores, held)])
    worth = []
    for i, block in enumerate(scores.blocks):
        saved = np.zeros(64)
        saved[block.ffn.order] = np.diff(block.ffn.errors)
        worth.append(np.log(saved / price_of(held, i, "ffn")[:, 0]))
    worth = np.concatenate(worth)
    inner = np.abs(logits) < INITIAL_LOGIT * SPREAD - 1e-4
    slope, _ = np.polyfit(worth[inner], logits[inner], 1)
    assert slope == pytest.approx(INITIAL_LOGIT / worth.std(), rel=1e-4)


def test_groups_have_a_logit_each():
    members = group_units(VIT, 8)
    space = Space(VIT.blocks, axes=("op", "ffn"), members=members)
    held = budgets(Budget(macs=0.6), VIT, PAPER)
    logits = scored_logits(space, scores_of(VIT), held)
    assert [len(block["ffn"]) for block in logits] == [8] * 6


def test_an_operation_above_the_hull_is_passed():
    errors, prices = np.array([1.0, 0.9, 0.1, 0.0]), np.array([0.0, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(_slopes(errors, prices), [0.45, 0.45, 0.05])
    np.testing.assert_allclose(_slopes(errors, np.array([0, 0.1, 2, 4])), [1, 8 / 19, 0.05])
