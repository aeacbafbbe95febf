"""Only the tokens that are read: the last block of a class-token ViT leaves the patches alone.

It is compared with itself made to compute all of them, the same weights: nothing may change.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.models import VARIANTS, SwinSpec, ViT, ViTSpec
from spvit_jax.models.vit import POOLS
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.gates import initial_logits, nested
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet

VIT = ViTSpec(width=12, depth=2, heads=3, hidden=10, patch_size=4, image_size=16, classes=5)
SPECS = {"vit": VIT, "distilled": dataclasses.replace(VIT, distilled=True)}
CASES = [("vit", False), ("distilled", True), ("vit", True), ("distilled", False)]
CLOSE = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)


@pytest.fixture(autouse=True)
def wide(float64):
    """All of it in float64."""


@pytest.fixture
def outcome(images):
    """``outcome(model, *gates)``: logits, gradients of weights and gates, and new statistics."""

    def compute(model, *gates, train):
        graph, params, stats = nnx.split(model, nnx.Param, nnx.BatchStat)
        key = jax.random.key(3) if train else None

        def loss(params, gates):
            inner = nnx.merge(graph, params, stats, copy=True)
            heads = inner.heads(images, *gates, key=key, train=train)
            value = sum((weight * jnp.square(head)).mean() for weight, head in enumerate(heads, 1))
            return value, (heads, nnx.state(inner, nnx.BatchStat))

        gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
        (of_weights, of_gates), (heads, stats) = gradient(params, gates)
        return {"heads": heads, "weights": of_weights, "gates": of_gates, "stats": stats}

    return compute


def reading_all(model):
    """The same model with a last block that computes every token."""
    model = nnx.clone(model)
    block, whole = model.blocks[-1], dataclasses.replace(model.spec.blocks[-1], class_only=False)
    block.read = whole.tokens
    for part in (block.mixer, getattr(block.mixer, "attention", None)):
        if hasattr(part, "geometry"):
            part.geometry = whole
        if hasattr(part, "read"):
            part.read = whole.tokens
    return model


def random_model(name, randomise):
    return randomise(ViT(SPECS[name], drop_path=0.4, rngs=nnx.Rngs(0)))


def assert_same(found, expected):
    """Each part, its numbers not all zero."""
    jax.tree.map(CLOSE, found, expected)
    for part, values in expected.items():
        leaves = [np.abs(leaf).max() for leaf in jax.tree.leaves(values)]
        assert not leaves or max(leaves) > 1e-4, part


def test_only_class_tokens_are_read_where_they_alone_are_pooled():
    for pool in POOLS:
        blocks = dataclasses.replace(VIT, pool=pool).blocks
        assert [block.class_only for block in blocks] == [False, pool == "token"]
    for spec in VARIANTS.values():
        if isinstance(spec, SwinSpec):
            assert not any(block.class_only for block in spec.blocks)
    last = SPECS["distilled"].blocks[-1]
    assert (last.tokens, last.read, last.ffn_tokens) == (18, 2, 2)


@pytest.mark.parametrize(("name", "train"), CASES)
def test_a_dense_model_computes_what_it_did(name, train, outcome, randomise, traced_macs):
    model = random_model(name, randomise)
    assert_same(outcome(model, train=train), outcome(reading_all(model), train=train))
    image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float64)
    patches, tokens, width, hidden = 16, model.spec.blocks[-1].tokens, 12, 10
    saved = 2 * patches * width * (width + tokens + hidden)  # queries, outputs, products and FFN
    assert traced_macs(reading_all(model), image) - traced_macs(model, image) == saved


@pytest.mark.parametrize(("name", "train"), CASES[:3])
def test_a_supernet_computes_what_it_did(name, train, outcome, randomise):
    """Under soft gates, which mix all operations; batch norms see the patches in training."""
    model = randomise(supernet(random_model(name, randomise)), 1)
    space, rng = Space(model.spec.blocks, axes=("op", "heads", "ffn")), np.random.default_rng(0)
    own = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.2, 0.9, x.shape)), initial_logits(space))
    gates = nested(space, own)
    found, expected = (outcome(m, gates, train=train) for m in (model, reading_all(model)))
    assert_same(found, expected)
    before = model.blocks[-1].mixer.parts.conv3x3.mean[...]
    moved = np.abs(found["stats"]["blocks"][1]["mixer"]["parts"]["conv3x3"]["mean"][...] - before)
    assert (moved.max() > 1e-3) == train


@pytest.mark.parametrize(
    ("op", "folded", "train"),
    [
        ("skip", False, False),
        ("norm_skip", False, True),
        ("conv1x1", False, True),
        ("conv3x3", False, True),
        ("conv3x3", True, True),
        ("conv3x3", True, False),
        ("msa", False, True),
    ],
)
def test_a_pruned_model_computes_what_it_did(op, folded, train, outcome, randomise):
    """Class tokens pass a convolution, whose own weights then learn nothing, as before."""
    heads = ((0, 1), (0, 2) if op == "msa" else ())
    found = Architecture(("msa", op), ((0, 3, 7), (1, 2)), heads=heads)
    model = randomise(prune(random_model("distilled", randomise), found), 1)
    model = fold(model) if folded else model
    found, expected = (outcome(m, train=train) for m in (model, reading_all(model)))
    for result in (found, expected):
        result.pop("gates")
        result.pop("stats")  # of a norm whose output nobody reads
    assert_same(found, expected)
    if op.startswith("conv"):
        learnt = jax.tree.leaves(found["weights"]["blocks"][1]["mixer"])
        assert learnt and not any(leaf.any() for leaf in learnt)
