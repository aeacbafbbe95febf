"""Models that merge tokens: what they compute, cost, keep in files, learn; and what cannot be."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.convert import load, save
from spvit_jax.models import MODELS, VARIANTS, Tokens
from spvit_jax.models.tokens import merge
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import (
    Architecture,
    ArchitectureError,
    describe,
    from_json,
)
from spvit_jax.single_path.ops import OPS, PAPER
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, form, prune
from spvit_jax.training.losses import feature_distillation

VITS = pytest.mark.parametrize("spec", ["vit", "distilled", "average"], indirect=True)
ONE_VIT = pytest.mark.parametrize("spec", ["vit"], indirect=True)
WHOLE = Architecture(("msa",) * 4, (tuple(range(48)),) * 4)
FOUND = Architecture(  # merges behind every operation
    ("conv3x3", "msa", "conv1x1", "msa"),
    (20, 48, (0, 7, 47), 9),
    heads=(0, (0, 2), 0, 3),
    merges=(3, 4, 2, 0),
)


def some(rng, count, of):
    return tuple(sorted(rng.permutation(of)[:count].tolist()))


@pytest.fixture
def streamed():
    """``streamed(model, images)``: what leaves each block, as NumPy arrays."""

    def compiled(model, images):
        graph, state = nnx.split(model)
        program = jax.jit(lambda state: nnx.merge(graph, state).stream(images))
        return jax.tree.map(np.asarray, program(state))

    return compiled


@pytest.fixture
def random_merging(spec):
    """``random_merging(seed)``: any schedule, a 3x3 convolution at most where it first merges."""

    def draw(seed):
        rng = np.random.default_rng(seed)
        first, left, merges = rng.integers(0, 2), spec.blocks[0].patches, []
        for i, block in enumerate(spec.blocks):
            most = 0 if block.class_only or i < first else left // 2
            merges.append(int(rng.integers(min(i == first, most), most + 1)))
            left -= merges[-1]
        after = [op for op in OPS if op != "conv3x3"]
        ops = tuple(str(rng.choice(PAPER if i <= first else after)) for i in range(4))
        heads = tuple(some(rng, rng.integers(1, 4), 3) if op == "msa" else () for op in ops)
        ffn = tuple(some(rng, count, 48) for count in rng.integers(0, 49, 4))
        return Architecture(ops, ffn, heads=heads, merges=tuple(merges))

    return draw


@pytest.mark.parametrize("spec", ["vit", "average", "swin"], indirect=True)
def test_none_merged_is_the_program_without(spec, dense, images, run, streamed):
    model = dense()
    whole = dataclasses.replace(WHOLE, ffn=tuple(block.hidden for block in spec.blocks))
    expected = run(model, images)
    for merges in ((), (0,) * 4):
        pruned = prune(model, dataclasses.replace(whole, merges=merges))
        assert pruned.architecture.merges == merges
        np.testing.assert_array_equal(run(pruned, images), expected)
        assert all(tokens.sizes is tokens.sources is None for tokens in streamed(pruned, images))


@ONE_VIT
def test_every_block_merges_as_many_as_it_is_told(spec, dense, images, streamed):
    stream = streamed(prune(dense(), FOUND), images)
    assert [tokens.x.shape[1] for tokens in stream] == [14, 10, 8, 1]
    for tokens in stream[:3]:
        np.testing.assert_array_equal(tokens.sizes.sum(1), 17)
        assert tokens.unmerged().shape == (3, 17, 24)
    assert stream[3].sizes is stream[3].sources is None
    assert [(b.patches, b.ffn_tokens) for b in FOUND.geometries(spec)] == [
        (16, 14),
        (13, 10),
        (9, 8),
        (7, 1),
    ]


@pytest.mark.parametrize("op", OPS)
@ONE_VIT
def test_patches_are_merged_by_keys_or_by_what_enters_the_ffn(op, spec, dense, float64):
    """By the mean key of the heads that are kept, where there is attention."""
    heads = (((0, 2) if op == "msa" else ()), *[(0, 1, 2)] * 3)
    found = Architecture((op, *["msa"] * 3), WHOLE.ffn, heads=heads, merges=(5, 0, 0, 0))
    graph, state = nnx.split(fold(prune(dense(), found)).blocks[0])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 17, 24)))

    @jax.jit
    def both(state):
        block = nnx.merge(graph, state)
        found = block(Tokens(x)).x
        block.merges = 0
        middle = block.mix(Tokens(x)).x
        alike = block.norm2(middle)
        if op == "msa":
            width = block.mixer.heads * 8
            keys = block.mixer.qk(block.norm1(x))[..., width:]
            alike = (keys[..., :8] + keys[..., 8:]) / 2
        by_hand = merge(Tokens(middle), alike, 5, 1).x
        return found, by_hand + block.ffn(block.norm2(by_hand))

    np.testing.assert_allclose(*both(state), rtol=1e-10, atol=1e-12)


@VITS
def test_folding_a_model_that_merges_computes_the_same(
    spec, dense, images, run, randomise, float64
):
    shared = randomise(prune(dense(), FOUND), 1)
    expected = run(shared, images)
    for model in (fold(shared), fold(shared, batch_norm=True)):
        np.testing.assert_allclose(run(model, images), expected, rtol=1e-9, atol=1e-11)
    without = prune(dense(), dataclasses.replace(FOUND, merges=()))
    nnx.update(without, nnx.state(shared))
    assert float(jnp.abs(run(without, images) - expected).max()) > 1e-3


def forms(spec, found):
    """Abstract models of ``found``, in each form."""

    def pruned():
        shared = prune(MODELS[type(spec)](spec, rngs=nnx.Rngs(0)), found)
        return shared, fold(shared), fold(shared, batch_norm=True)

    return nnx.eval_shape(pruned)


def assert_priced(spec, found, macs_per_image):
    assert [macs_per_image(model) for model in forms(spec, found)] == [found.macs(spec)] * 3


@pytest.mark.parametrize("seed", range(6))
@VITS
def test_prices_are_those_of_the_program(seed, spec, random_merging, macs_per_image):
    found = random_merging(seed)
    assert sum(found.merges) > 0
    assert_priced(spec, found, macs_per_image)


@pytest.mark.parametrize("op", OPS)
@VITS
def test_prices_are_those_of_the_program_behind_every_operation(op, spec, macs_per_image):
    """Where it is first to merge and where others have; a 3x3 convolution only then."""
    ops, merges = ("msa", op, "msa", "msa"), (2, 3, 1, 0)
    if op == "conv3x3":
        merges = (0, 3, 1, 0)
    heads = tuple((0, 2) if op == "msa" else () for op in ops)
    ffn = ((0, 5), tuple(range(48)), (), (7,))
    assert_priced(spec, Architecture(ops, ffn, heads=heads, merges=merges), macs_per_image)


@pytest.mark.parametrize("merges", [(4, 0, 0, 0), (0, 2, 3, 0), (8, 4, 2, 0)])
@VITS
def test_fewer_tokens_cost_less_and_weigh_the_same(merges, spec):
    found = dataclasses.replace(WHOLE, merges=merges)
    for counted in (prices.macs, prices.published_macs):
        assert found.price(counted, spec) < WHOLE.price(counted, spec)
    assert found.price(prices.parameters, spec) == WHOLE.price(prices.parameters, spec)
    last = forms(spec, found)[2]
    assert count_parameters(last) == found.price(prices.parameters, spec)


def test_the_published_count_by_hand():
    """As released, and of every merge the cosines and the average of what it leaves."""
    spec, merges = VARIANTS["deit_tiny_patch16_224"], [16] * 11 + [0]
    found = Architecture(("msa",) * 12, (768,) * 12, merges=tuple(merges))
    width, patches = 192, 196
    total = patches * 3 * 16**2 * width + width * 1000
    for count in merges:
        tokens = patches + 1
        total += 4 * tokens * width**2 + 2 * tokens**2 * width  # attention
        total += (tokens + tokens - count) * width  # norms
        if count:
            total += (patches // 2) * (patches - patches // 2) * 64
            total += (tokens - count) * count * (width + 1)
        patches -= count
        total += 2 * patches * width * 768
    dense = Architecture(("msa",) * 12, (768,) * 12).published_macs(spec)
    assert found.published_macs(spec) == total < 0.65 * dense


@VITS
def test_merges_survive_json(spec, random_merging):
    for seed in range(10):
        found = random_merging(seed)
        assert from_json(found.to_json()) == found
        assert json.loads(found.to_json())["merges"] == list(found.merges)
        without = dataclasses.replace(found, merges=())
        assert from_json(without.to_json()) == without
        assert "merges" not in json.loads(without.to_json())
    assert from_json('{"ops": ["skip", "msa"], "ffn": [8, [2, 5]]}').merges == ()


@ONE_VIT
def test_a_description_says_how_many_are_merged(spec):
    assert describe(FOUND, spec) == "conv3x3-3 msa:2-4 conv1x1-2 msa"


@pytest.mark.parametrize("deploy", [False, True])
@ONE_VIT
def test_files_keep_merges(deploy, spec, dense, images, run, randomise, tmp_path):
    folded = fold(randomise(prune(dense(), FOUND), 1), batch_norm=deploy)
    save(folded, tmp_path / "m.safetensors")
    loaded = load(str(tmp_path / "m.safetensors"))
    assert form(loaded) == form(folded) == ("deploy" if deploy else "folded")
    assert loaded.architecture == folded.architecture
    assert loaded.architecture.merges == FOUND.merges
    np.testing.assert_array_equal(run(loaded, images), run(folded, images))


@pytest.mark.parametrize("pool", ["norm_average", "average_norm"])
@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("spec", ["average"], indirect=True)
def test_averages_are_of_all_patches(
    pool, class_token, spec, randomise, images, run, streamed, float64
):
    spec = dataclasses.replace(spec, pool=pool, class_token=class_token)
    model = randomise(nnx.eval_shape(lambda: MODELS[type(spec)](spec, rngs=nnx.Rngs(0))))
    pruned = prune(model, dataclasses.replace(WHOLE, merges=(8, 0, 4, 1)))
    last = streamed(pruned, images)[-1]
    assert last.x.shape[1] == spec.prefix + 3 and int(last.sizes.max()) > 2
    patches = last.unmerged()[:, spec.prefix :]
    norm = pruned.norm
    by_hand = norm(patches).mean(1) if pool == "norm_average" else norm(patches.mean(1))
    np.testing.assert_allclose(pruned.features(last)[:, 0], by_hand, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(run(pruned, images), pruned.head(by_hand), rtol=1e-10, atol=1e-12)
    blind = pruned.features(last._replace(sizes=None))[:, 0]
    assert float(jnp.abs(blind - by_hand).max()) > 1e-2


@VITS
def test_features_are_learnt_as_means_of_what_was_merged(spec, dense, images, streamed, float64):
    teacher = dense()
    student = prune(teacher, dataclasses.replace(WHOLE, merges=(5, 0, 4, 0)))
    taught = [tokens.x for tokens in streamed(teacher, images)]
    batch = {"images": images, "taught": taught}
    graph, state = nnx.split(student)

    @jax.jit
    def loss(state):
        return feature_distillation(nnx.merge(graph, state), batch, jax.random.key(0), weight=1.0)[
            0
        ]

    errors, read = [], spec.blocks[0].class_tokens if spec.pool == "token" else 0
    for mine, said in zip(streamed(student, images), taught, strict=True):
        count = mine.x.shape[1]
        weight = max(0.25 * (count - read) / read, 1) if read else 1  # of each class token
        total = 0.0
        for image in range(len(said)):
            for place, token in enumerate(mine.x[image]):
                group = [place] if mine.sources is None else mine.sources[image] == place
                missing = np.square(token - said[image][group].mean(0)).mean()
                total += (weight if place < read else 1) * missing
        total /= len(said) * (count - read + weight * read)
        errors.append(total / said.var((0, 1)).mean())
    assert min(errors) > 1e-4
    np.testing.assert_allclose(loss(state), np.mean(errors), rtol=1e-9)


@pytest.mark.parametrize(
    ("spec", "ops", "merges", "message"),
    [
        ("vit", "msa", (9, 0, 0, 0), r"block 0: merges .* from 0 to 8, half of .* left; got 9"),
        ("vit", "msa", (5, 6, 0, 0), r"block 1: merges .* from 0 to 5, half of .* left; got 6"),
        ("average", "msa", (8, 4, 2, 2), r"block 3: merges .* from 0 to 1, half of .*; got 2"),
        ("vit", "msa", (0, 0, 0, 1), r"block 3: merges must be 0, for only class tokens go on"),
        ("distilled", "skip", (1, 0, 0, 1), r"block 3: merges must be 0, for only class tokens"),
        ("swin", "msa", (0, 1, 0, 0), r"block 1: merges must be 0, for windows of a Swin"),
        (
            "vit",
            "conv3x3",
            (0, 1, 0, 0),
            r"block 2: conv3x3 reads a map, of whose 16 patches 1 ",
        ),
        ("vit", "msa", (-1, 0, 0, 0), r"block 0: merges .* number from 0 to 8.*; got -1"),
        ("vit", "msa", (0, 1.0, 0, 0), r"block 1: merges must be a number .*; got 1\.0"),
        ("vit", "msa", (0, True, 0, 0), r"block 1: merges must be a number .*; got True"),
        ("vit", "msa", ("2", 0, 0, 0), r"block 0: merges must be a number .*; got '2'"),
        ("vit", "msa", ((2, 3), 0, 0, 0), r"block 0: merges must be a number .*; got \(2, 3\)"),
        ("vit", "msa", (1, 0, 0), r"merges must name 4 blocks, as the model has; it names 3"),
        ("vit", "msa", (1,) * 5, r"merges must name 4 blocks, as the model has; it names 5"),
    ],
    indirect=["spec"],
)
def test_what_cannot_be_merged_is_refused(spec, ops, merges, message, dense):
    found = Architecture((ops,) * 4, (48,) * 4, merges=merges)
    for use in (found.check, found.gates, found.macs, found.geometries):
        with pytest.raises(ArchitectureError, match=message):
            use(spec)
    with pytest.raises(ArchitectureError, match=message):
        prune(dense(), found)


@pytest.mark.parametrize("value", ["3", '"3"', "{}", "null"])
def test_merges_in_json_are_a_list(value):
    with pytest.raises(ArchitectureError, match="merges must be a list, got"):
        from_json(f'{{"ops": ["msa"], "ffn": [8], "merges": {value}}}')
