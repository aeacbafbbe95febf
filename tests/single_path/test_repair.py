"""Scores and repairs of small models: exact where theory says so, better where it cannot be."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.config import Budget
from spvit_jax.models import MODELS, Geometry, SwinSpec, Tokens, ViTSpec
from spvit_jax.single_path import repair as repairing
from spvit_jax.single_path import score as scoring
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.budget import BudgetError, budgets, select
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.eliminate import DAMPING
from spvit_jax.single_path.ops import PAPER
from spvit_jax.single_path.prices import cost
from spvit_jax.single_path.prune import form, prune
from spvit_jax.single_path.repair import repair
from spvit_jax.single_path.score import score, tap_rows
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet

SIZE = 8, 32
VIT = ViTSpec(width=24, depth=3, heads=3, hidden=40, patch_size=4, image_size=SIZE, classes=7)
POOLED = dataclasses.replace(VIT, pool="norm_average")
SWIN = SwinSpec(
    width=12, depths=(2, 2), heads=(3, 4), hidden=(48, 56), window=2, patch_size=2, image_size=SIZE
)
SPECS = {"vit": VIT, "pooled": POOLED, "swin": SWIN}


def centred(images):
    return images.astype(float) / 127.5 - 1


def images(count=48, seed=0):
    """Smooth enough for patches to say something of each other."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 2, 8, 3))
    return np.clip(
        coarse.repeat(4, 1).repeat(4, 2) + rng.integers(-30, 30, (count, *SIZE, 3)), 0, 255
    ).astype(np.uint8)


@pytest.mark.parametrize("grid", [(14, 24), (98, 4), (4, 98), (64, 12), (3, 5)])
def test_places_that_convolutions_are_scored_at_are_in_every_column(grid):
    places = jnp.arange(grid[0] * grid[1], dtype=float)[None, :, None]
    rows = np.asarray(tap_rows(places, places, Geometry(1, 1, 1, grid), 1))[0, :, 0].astype(int)
    columns, count = np.bincount(rows % grid[1], minlength=grid[1]), len(rows)
    assert min(places.size, 49) <= count <= 2 * 49 + 1
    assert columns.min() >= count // grid[1] and len(set(rows // grid[1])) >= min(grid[0], 7)


def build(spec, seed=0):
    return MODELS[type(spec)](spec, rngs=nnx.Rngs(seed), drop_path=0.1)


def calibration(count=48):
    return Calibration.of(images(count), centred, 8)


def whole(spec):
    return Architecture(("msa",) * len(spec.blocks), tuple(b.hidden for b in spec.blocks))


def halved(spec):
    blocks = spec.blocks
    return Architecture(
        ("msa",) * len(blocks),
        tuple(b.hidden // 2 for b in blocks),
        heads=tuple(b.heads - 1 for b in blocks),
    )


def lost(model, dense):
    """The squared error of the features that leave the last block, on other images."""
    x = centred(images(64, seed=1))
    expected, found = (m.stream(x)[-1].unmerged() for m in (dense, model))
    return float(jnp.square(found - expected).mean() / expected.var())


@pytest.mark.parametrize("name", SPECS)
def test_a_repaired_unpruned_model_is_the_dense_one(name):
    dense = build(SPECS[name])
    found = repair(dense, dense, calibration(), whole(SPECS[name]))
    x = centred(images(seed=1))
    assert form(found) == "deploy" and found.architecture.widths == whole(SPECS[name]).widths
    np.testing.assert_allclose(found(x), dense(x), rtol=1e-4, atol=2e-5)
    assert found.blocks[-1].drop_path == dense.blocks[-1].drop_path > 0


@pytest.mark.parametrize("name", SPECS)
def test_repair_helps_and_keeps_what_was_asked_for(name):
    spec = SPECS[name]
    dense, architecture = build(spec), halved(spec)
    pruned = prune(dense, architecture)
    found = repair(dense, dense, calibration(), architecture)
    assert lost(found, dense) < 0.6 * lost(pruned, dense)
    assert found.architecture == pruned.architecture
    again = repair(pruned, dense, calibration())  # cut already: other shapes, the same repair
    x = centred(images(seed=1))
    np.testing.assert_allclose(again(x), found(x), rtol=1e-3, atol=1e-3)


def test_class_tokens_weigh_a_quarter_of_the_patches_where_heads_read_them():
    rng = np.random.default_rng(0)
    inputs, now, aim = (jnp.asarray(rng.normal(size=(5, 18, 3)), np.float32) for _ in range(3))
    mask = jnp.array([True, True, False, True, True])
    for read, each in ((0, 1.0), (1, 0.25 * 17), (2, 0.25 * 16 / 2)):
        found = repairing._rows(inputs, Tokens(now), Tokens(aim), mask, read)
        weight = np.r_[np.full(read, each), np.ones(18 - read)] * np.asarray(mask)[:, None]
        rows = np.concatenate([inputs, aim - now], -1).reshape(-1, 6)
        assert float(found.count) == weight.sum()
        expected = np.average(rows, 0, weight.ravel())
        np.testing.assert_allclose(found.mean, expected, atol=1e-6)
    for name, read in (("vit", 1), ("pooled", 0)):
        worker = repairing._Repair(*(build(SPECS[name]),) * 2, None, calibration())
        assert worker.read == read


def test_convolutions_and_skips_are_repaired():
    dense = build(POOLED)
    architecture = Architecture(("conv3x3", "skip", "conv1x1"), (40, 0, 20))
    found = repair(dense, dense, calibration(), architecture)
    assert lost(found, dense) < 0.7 * lost(prune(dense, architecture), dense)
    searched = prune(supernet(dense), architecture)
    assert lost(repair(supernet(dense), dense, calibration(), architecture), dense) < lost(
        searched, dense
    )


@pytest.mark.parametrize("merges", [(), (3, 2, 0)])
def test_a_convolution_whose_patches_nobody_reads_stays(merges):
    """It aims behind the last skip, where there are class tokens alone."""
    dense = build(VIT)
    architecture = Architecture(("msa", "conv1x1", "skip"), (40, 0, 20), merges=merges)
    searched = supernet(dense)
    found = repair(searched, dense, calibration(), architecture)
    assert lost(found, dense) < 0.5 * lost(prune(searched, architecture), dense)
    assert all(jnp.isfinite(weights).all() for weights in jax.tree.leaves(nnx.state(found)))


@pytest.mark.parametrize("merges", [(5, 0, 0), (3, 4, 0)])
@pytest.mark.parametrize("name", ["vit", "pooled"])
def test_a_model_that_merges_is_repaired(name, merges):
    dense = build(SPECS[name])
    architecture = dataclasses.replace(halved(SPECS[name]), merges=merges)
    pruned = prune(dense, architecture)
    found = repair(dense, dense, calibration(), architecture)
    assert lost(found, dense) < 0.6 * lost(pruned, dense)
    assert found.architecture == pruned.architecture and found.architecture.merges == merges
    again = repair(pruned, dense, calibration())
    x = centred(images(seed=1))
    np.testing.assert_allclose(again(x), found(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["vit", "pooled"])
def test_where_equal_patches_are_merged_there_is_nothing_to_repair(name):
    """Every odd patch is the one before it, and attention counts those that are merged."""
    dense = build(SPECS[name])
    dense.pos_embed[...] = jnp.zeros_like(dense.pos_embed[...])

    def doubled(seed):
        x = images(seed=seed).reshape(48, 8, 4, 2, 4, 3)
        return x[:, :, :, [0, 0]].reshape(48, *SIZE, 3)

    architecture = dataclasses.replace(whole(SPECS[name]), merges=(3, 2, 0))
    found = repair(dense, dense, Calibration.of(doubled(0), centred, 8), architecture)
    x = centred(doubled(1))
    assert [tokens.x.shape[1] for tokens in found.stream(x)[:2]] == [14, 12]
    np.testing.assert_allclose(found(x), dense(x), rtol=1e-4, atol=2e-5)


def test_what_follows_merged_tokens_is_repaired():
    """Convolutions and skips, and what aims behind them."""
    dense = build(POOLED)
    architecture = Architecture(("conv3x3", "skip", "conv1x1"), (40, 0, 20), merges=(3, 2, 1))
    found = repair(dense, dense, calibration(), architecture)
    assert lost(found, dense) < 0.8 * lost(prune(dense, architecture), dense)
    searched = prune(supernet(dense), architecture)
    again = repair(supernet(dense), dense, calibration(), architecture)
    assert lost(again, dense) < lost(searched, dense)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_repair_that_merges_nothing_is_the_one_without(name):
    dense, spec = build(SPECS[name]), SPECS[name]
    none = dataclasses.replace(halved(spec), merges=(0,) * len(spec.blocks))
    x = centred(images(seed=1))
    logits = [repair(dense, dense, calibration(), one)(x) for one in (halved(spec), none)]
    np.testing.assert_array_equal(*logits)


def test_a_layer_aims_behind_what_is_gone(monkeypatch):
    dense = build(POOLED)
    gone = Architecture(("msa", "msa", "skip"), (40, 40, 0))
    found = repair(dense, dense, calibration(), gone)
    monkeypatch.setattr(repairing._Repair, "_aim", lambda self, station: station)
    near = repair(dense, dense, calibration(), gone)  # every layer aims at its own output
    assert lost(found, dense) < 0.9 * lost(near, dense)


def test_errors_of_earlier_blocks_are_corrected():
    """A later layer that lost nothing makes up for an earlier one's loss."""
    dense = build(POOLED)
    architecture = Architecture(("msa",) * 3, (4, 40, 40))
    found = repair(dense, dense, calibration(), architecture)
    local = repair(dense, dense, calibration(), architecture)
    for i in (1, 2):  # as if each block were repaired alone
        local.blocks[i] = nnx.clone(dense.blocks[i])
    assert lost(found, dense) < 0.95 * lost(local, dense)


ON_DEVICES = """
import dataclasses
import json
import sys
import numpy as np
from test_repair import PAPER, VIT, build, calibration, centred, halved, images, repair, score

dense = build(VIT)
found = score(dense, calibration(), PAPER)
parts = lambda b: (b.ops.values(), b.heads.errors, b.ffn.errors, b.keys, b.values)
errors = [[error for part in parts(b) for error in part] for b in found.blocks]
merging = dataclasses.replace(halved(VIT), merges=(4, 2, 0), dims=((5, 4),) * 3)
models = (repair(dense, dense, calibration(), found) for found in (halved(VIT), merging))
logits = [model(centred(images(seed=1))) for model in models]
np.savez(sys.argv[1], errors=errors, logits=logits)
"""


def test_one_device_scores_and_repairs_as_eight_do(tmp_path):
    found = []
    for devices in (1, 8):
        settings = {"JAX_NUM_CPU_DEVICES": str(devices)}
        settings["PYTHONPATH"] = str(Path(__file__).parent)
        file = tmp_path / f"{devices}.npz"
        command = [sys.executable, "-c", ON_DEVICES, file]
        done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(np.load(file))
    one, eight = found
    np.testing.assert_allclose(eight["errors"], one["errors"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(eight["logits"], one["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_scores_are_errors_relative_to_the_output(name):
    spec = SPECS[name]
    dense, seen = build(spec), calibration()
    found = score(dense, seen, PAPER)
    assert found.images == 48 and len(found.blocks) == len(spec.blocks)
    x = centred(images())
    before = [dense.embed(x), *(tokens.x for tokens in dense.stream(x)[:-1])]
    for i, block in enumerate(found.blocks):
        ops, heads, ffn = block.ops, block.heads, block.ffn
        assert heads.errors[0] == ffn.errors[0] == 0
        assert block.keys[-1] == block.values[-1] == 0 and min(block.keys) >= 0
        assert (np.diff(block.values) <= 1e-12).all()
        assert (np.diff(heads.errors) > 0).all() and (np.diff(ffn.errors) >= -1e-12).all()
        layer, geometry = dense.blocks[i], spec.blocks[i]
        entered = dense.enter(i, before[i])
        read = entered[:, : geometry.ffn_tokens]
        branch, _ = layer.mixer(layer.norm1(entered))
        output = layer(Tokens(entered)).x.reshape(-1, geometry.width)
        by_hand = branch.reshape(-1, geometry.width).var(0).sum() / output.var(0).sum()
        assert ops["skip"] == pytest.approx(float(by_hand), rel=1e-3)
        normed, fc2 = layer.norm2(read + branch), layer.ffn.fc2.kernel[...]
        given = layer.ffn(normed).reshape(-1, geometry.width).var(0).sum()
        units = layer.ffn.units(normed).reshape(-1, geometry.hidden)
        damped = given + DAMPING * units.var(0).mean() * jnp.square(fc2).sum()
        by_hand = damped / output.var(0).sum()
        assert ffn.errors[-1] == pytest.approx(float(by_hand), rel=1e-3)
        tokens = (branch - layer.norm1(entered))[:, : geometry.prefix]  # which convolutions pass
        passed = (
            float(jnp.square(tokens).sum(-1).mean() / output.var(0).sum()) if tokens.size else 0
        )
        assert ops["conv3x3"] <= ops["conv1x1"] + 1e-9
        assert min(ops["conv1x1"], ops["conv3x3"]) >= passed * (1 - 1e-3)
        assert (ops["conv1x1"] == pytest.approx(passed, rel=1e-3)) == (geometry.prefix > 0)


def test_scores_are_written_and_read(tmp_path):
    found = score(build(VIT), calibration(16), ("skip", "msa"))
    found.save(tmp_path / "scores.json")
    again = scoring.load(tmp_path / "scores.json")
    assert again.images == 16
    np.testing.assert_array_equal(again.blocks[1].ffn.order, found.blocks[1].ffn.order)
    np.testing.assert_array_equal(again.blocks[1].heads.errors, found.blocks[1].heads.errors)
    saved = json.loads((tmp_path / "scores.json").read_text())
    heads = saved["blocks"][0]["heads"]
    for damaged in (
        "{",
        "[" * 100_000,
        saved | {"blocks": {}},
        saved | {"blocks": [saved["blocks"][0] | {"ops": [0.5]}]},
        saved | {"blocks": [saved["blocks"][0] | {"heads": heads | {"order": [0, 0]}}]},
        saved | {"blocks": [saved["blocks"][0] | {"heads": heads | {"order": [10**30]}}]},
    ):
        text = damaged if isinstance(damaged, str) else json.dumps(damaged)
        (tmp_path / "scores.json").write_text(text)
        with pytest.raises(scoring.ScoreError, match="made again"):
            scoring.load(tmp_path / "scores.json")


def test_the_choice_spends_every_budget_and_errs_more_with_less():
    dense = build(VIT)
    found = score(dense, calibration(), PAPER)
    space = Space(VIT.blocks, PAPER, ("op", "heads", "ffn"))
    errors = []
    for share in (0.9, 0.7, 0.5, 0.3):
        held = budgets(Budget(macs=share, params=share + 0.05), VIT, PAPER)
        architecture = select(space, found, held)
        gates = architecture.gates(VIT, PAPER)
        spent = [cost(budget.prices, gates) / budget.target for budget in held]
        assert 0.98 < max(spent) <= 1
        errors.append(error_of(architecture, found))
    assert errors == sorted(errors)
    with pytest.raises(BudgetError, match="every gate shut"):
        select(space, found, budgets(Budget(macs=10), VIT, PAPER))


def error_of(architecture, scores):
    total = 0.0
    counts, blocks = architecture.head_counts(VIT), scores.blocks
    for op, heads, width, block in zip(
        architecture.ops, counts, architecture.widths, blocks, strict=True
    ):
        total += block.heads.errors[3 - heads] if op == "msa" else block.ops[op]
        total += block.ffn.errors[40 - width]
    return total


def test_what_is_not_gated_stays():
    found = score(build(VIT), calibration(), PAPER)
    space = Space(VIT.blocks, PAPER, ("ffn",))
    architecture = select(space, found, budgets(Budget(macs=0.8), VIT, PAPER))
    assert architecture.ops == ("msa",) * 3 and architecture.heads == ()
    members = tuple(np.arange(40) // 8 for _ in range(3))
    space = Space(VIT.blocks, PAPER, ("op", "heads", "ffn"), members)
    widths = select(space, found, budgets(Budget(macs=0.4), VIT, PAPER)).widths
    assert all(width % 8 == 0 for width in widths) and set(widths) != {40}
