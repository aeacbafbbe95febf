"""A new operation, as a stranger would add it: an object, and its line in the table.

It is the one that ``docs/extending.md`` shows. Nothing in the package knows of it.
"""

import ast
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.config import Budget, Search
from spvit_jax.convert import CheckpointError, load, save, state_for_torch
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.ops import OPS, Op
from spvit_jax.single_path.prices import count_parameters, macs, parameters
from spvit_jax.single_path.prune import fold, form, prune
from spvit_jax.single_path.score import ScoreError, score
from spvit_jax.single_path.supernet import supernet
from spvit_jax.training.losses import classification
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.optim import optimizer
from spvit_jax.training.prepare import prepare_images
from spvit_jax.training.sharding import make_mesh
from spvit_jax.training.step import Step


@pytest.fixture
def table(monkeypatch, example):
    """The table of operations with a line more, before attention's."""
    last = OPS["msa"]
    monkeypatch.delitem(OPS, "msa")
    monkeypatch.setitem(OPS, "depthwise", example("an_operation").Depthwise())
    monkeypatch.setitem(OPS, "msa", last)


def searched(spec, model):
    """One step of a search over the new operation; the supernet after it, and what it decides."""
    search = Search(ops=("skip", "conv1x1", "depthwise", "msa"), axes=("op", "heads", "ffn"))
    gating = Gating.of(search, Budget(macs=0.6), spec, model)
    network = supernet(model, gating.space.ops)
    adamw = optimizer(search, 1e-3, 1e-2)
    normalise = Normalise((0.5,) * 3, (0.5,) * 3)
    prepare = partial(prepare_images, normalise=normalise, classes=spec.classes)
    step = Step(classification, adamw, prepare, gating)
    state = step.initial(network, seed=0)
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    take = step.program(nnx.graphdef(network), make_mesh(), state)
    state, metrics = take(None, state, {"image": jnp.asarray(images), "label": jnp.arange(8) % 7})
    assert np.isfinite(float(metrics["loss"]))
    trained = nnx.merge(nnx.graphdef(network), state.params, state.stats, copy=True)
    found = gating.project(state.gates)
    assert found.price(macs, spec) <= gating.budgets[0].target
    return trained, found


@pytest.mark.parametrize("spec", ["distilled", "swin"], indirect=True)
def test_an_operation_is_an_object_and_a_line_in_the_table(
    spec, dense, images, run, traced_macs, table, tmp_path
):
    network, _ = searched(spec, dense())
    taps = network.blocks[0].mixer.parts["depthwise"].taps[...]
    assert float(jnp.abs(taps - 1 / 9).max()) > 0  # the step has trained them

    found = Architecture(("depthwise", "conv1x1", "depthwise", "msa"), (20, 7, 0, 48))
    pruned = prune(network, found)
    folded = fold(pruned, batch_norm=True)
    assert (form(pruned), form(folded)) == ("shared", "deploy")
    gates = pruned.architecture.gates(spec, network.blocks[0].mixer.ops)
    gates = jax.tree.map(lambda gate: jnp.asarray(gate, jnp.float32), gates)
    expected = run(network, images, gates)
    for model in (pruned, folded):
        np.testing.assert_allclose(run(model, images), expected, rtol=1e-4, atol=1e-5)

    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    assert traced_macs(folded, image) == found.macs(spec)
    assert count_parameters(folded) == found.price(parameters, spec)

    save(folded, tmp_path / "small.safetensors")
    loaded = load(str(tmp_path / "small.safetensors"))
    assert loaded.architecture == folded.architecture
    np.testing.assert_array_equal(run(loaded, images), run(folded, images))
    with pytest.raises(CheckpointError, match="no depthwise convolution"):
        state_for_torch(folded)


def test_scores_name_an_operation_that_they_do_not_know(table):
    with pytest.raises(ScoreError, match="got depthwise in search.ops"):
        score(None, None, ("skip", "conv1x1", "depthwise", "msa"))


def test_its_file_may_be_imported_by_the_table():
    """In the package the table imports it: that it imports from the table would be a circle."""
    source = Path(__file__).parents[2] / "docs" / "examples" / "an_operation.py"
    tree = ast.parse(source.read_text())
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert Op.__module__ in modules and "spvit_jax.single_path.ops" not in modules
