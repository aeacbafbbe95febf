"""Distillation: steps whose numbers are worked out on paper, and what a teacher is fed."""

import dataclasses
from functools import partial
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spvit_jax.config import Training
from spvit_jax.models import RegNet, RegNetSpec, Swin, SwinSpec, ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.prepare import prepare_images
from spvit_jax.training.recipe import make_loss
from spvit_jax.training.sharding import make_mesh, replicated
from spvit_jax.training.step import Step
from spvit_jax.training.teacher import freeze

SPEC = ViTSpec(width=16, depth=2, heads=2, hidden=16, patch_size=8, image_size=16, classes=2)
SAME = Normalise((0.0,) * 3, (1.0,) * 3)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
BATCH = {"image": jnp.asarray(IMAGES), "label": jnp.ones(8, jnp.int32)}


def constant(*biases, **options):
    """A ViT that gives every image the same logits: its heads' biases."""
    spec = dataclasses.replace(SPEC, distilled=len(biases) == 2)
    model = ViT(spec, rngs=nnx.Rngs(0), **options)
    heads = (model.head, model.head_dist) if spec.distilled else (model.head,)
    for head, bias in zip(heads, biases, strict=True):
        head.kernel[...] = jnp.zeros_like(head.kernel[...])
        head.bias[...] = jnp.asarray(bias)
    return model


def descend(student, teacher, own=SAME, batch=BATCH, **training):
    """Metrics of one step of plain gradient descent at rate 1, and the parameters after it."""
    training, frozen = Training(**training), freeze(teacher, own)
    prepare = partial(
        prepare_images,
        normalise=SAME,
        classes=2,
        teacher=frozen,
        features=training.distillation == "features",
    )
    step = Step(make_loss(training), optax.sgd(1.0), prepare, accumulation=training.accumulation)
    state = jax.device_put(step.initial(student, seed=0), replicated(make_mesh()))
    take = step.program(nnx.graphdef(student), make_mesh(), state, frozen.state)
    state, metrics = take(jax.device_put(frozen.state, replicated(make_mesh())), state, batch)
    return {name: float(value) for name, value in metrics.items()}, state.params


# A student that says (1/4, 3/4) where all labels are 1, and a teacher that says (4/5, 1/5).
STUDENT, TEACHER = (0.0, log(3)), (log(4), 0.0)


def test_a_hard_step():
    metrics, after = descend(constant(STUDENT), constant(TEACHER), distillation="hard")
    assert metrics["cross_entropy"] == pytest.approx(log(4 / 3))
    assert metrics["distillation"] == pytest.approx(log(4))  # the teacher decides for class 0
    assert metrics["loss"] == pytest.approx(log(16 / 3) / 2)
    # Gradients (1/4, -1/4) of the labels and (-3/4, 3/4) of the teacher, half of each.
    np.testing.assert_allclose(after["head"]["bias"][...], (0.25, log(3) - 0.25), rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_weight_is_the_teachers_share(weight):
    student, teacher = constant(STUDENT), constant(TEACHER)
    metrics, after = descend(student, teacher, distillation="hard", distillation_weight=weight)
    assert metrics["loss"] == pytest.approx((1 - weight) * log(4 / 3) + weight * log(4))
    step = (1 - weight) * -0.25 + weight * 0.75
    np.testing.assert_allclose(after["head"]["bias"][...], (step, log(3) - step), rtol=1e-5)


def test_a_soft_step():
    student, teacher = constant((0.0, 2 * log(3))), constant((2 * log(4), 0.0))
    options = {"distillation": "soft", "distillation_weight": 1.0, "distillation_temperature": 2.0}
    metrics, after = descend(student, teacher, **options)
    # At temperature 2 they say (1/4, 3/4) and (4/5, 1/5).
    assert metrics["loss"] == pytest.approx(4 * (0.8 * log(3.2) + 0.2 * log(4 / 15)))
    # T (p - q) = 2 (1/4 - 4/5, 3/4 - 1/5)
    np.testing.assert_allclose(after["head"]["bias"][...], (1.1, 2 * log(3) - 1.1), rtol=1e-5)


def test_labels_teach_the_first_head_and_the_teacher_the_second():
    student, teacher = constant(STUDENT, (0.0, 0.0)), constant(TEACHER)
    metrics, after = descend(student, teacher, distillation="hard")
    assert metrics["loss"] == pytest.approx((log(4 / 3) + log(2)) / 2)
    np.testing.assert_allclose(after["head"]["bias"][...], (-1 / 8, log(3) + 1 / 8), rtol=1e-5)
    np.testing.assert_allclose(after["head_dist"]["bias"][...], (1 / 4, -1 / 4), rtol=1e-5)


def teachers():
    regnet = RegNetSpec((8, 16), (1, 1), 8, image_size=16, classes=2)
    swin = SwinSpec(16, (2, 2), (2, 2), (16, 16), 2, 2, 16, 2)
    pruned = Architecture(("conv3x3", "msa"), ((0, 3), (1,)))
    return {
        "regnet": RegNet(regnet, rngs=nnx.Rngs(0)),
        "swin": Swin(swin, rngs=nnx.Rngs(0)),
        "distilled": ViT(dataclasses.replace(SPEC, distilled=True), rngs=nnx.Rngs(0)),
        "folded": fold(prune(ViT(SPEC, rngs=nnx.Rngs(0)), pruned), batch_norm=True),
    }


@pytest.mark.parametrize("name", ["regnet", "swin", "distilled", "folded"])
def test_any_model_teaches_on_images_normalised_its_own_way(name):
    model = teachers()[name]
    own = Normalise((0.3, 0.4, 0.5), (0.2, 0.3, 0.1))
    student = ViT(SPEC, rngs=nnx.Rngs(1))
    expected = optax.softmax_cross_entropy_with_integer_labels(
        student(SAME(BATCH["image"])), model(own(BATCH["image"])).argmax(-1)
    )
    metrics, _ = descend(student, model, own, distillation="hard")
    np.testing.assert_allclose(metrics["distillation"], expected.mean(), rtol=1e-4)


def test_a_bfloat16_teacher_takes_half_the_memory_and_says_the_same():
    options = {"rngs": nnx.Rngs(0), "dtype": jnp.dtype("bfloat16")}
    model = ViT(dataclasses.replace(SPEC, width=32), **options)
    frozen = freeze(model, SAME)
    sizes = [sum(x.nbytes for x in jax.tree.leaves(s)) for s in (nnx.state(model), frozen.state)]
    assert sizes[1] < 0.6 * sizes[0]
    found = frozen.logits(frozen.state, SAME(BATCH["image"]), SAME)
    np.testing.assert_array_equal(found, model(SAME(BATCH["image"])))


def test_a_teacher_is_no_part_of_the_state_and_stays_as_it_is():
    student, teacher = constant(STUDENT), constant(TEACHER)
    before = jax.tree.map(np.asarray, nnx.state(teacher))
    descend(student, teacher, distillation="soft")
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(teacher))


def streams(student, teacher):
    """The error of each block's output, and the student's logits."""
    images = SAME(BATCH["image"])
    stream = student.stream(images, train=True)
    pairs = zip(stream, teacher.stream(images), strict=True)
    errors = [
        np.square(x - y).mean() / np.square(y - y.mean((0, 1))).mean()
        for x, y in ((np.float32(mine.x), np.float32(taught.x)) for mine, taught in pairs)
    ]
    return errors, student.classify(stream[-1])[0]


@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_features_are_those_of_every_block(weight, dtype):
    dtype = dtype and jnp.dtype(dtype)
    student, teacher = (ViT(SPEC, dtype=dtype, rngs=nnx.Rngs(seed)) for seed in (1, 0))
    stream = student.stream(SAME(BATCH["image"]))
    assert [mine.x.shape for mine in stream] == [(8, 5, 16), (8, 1, 16)]
    errors, logits = streams(student, teacher)
    labels = optax.softmax_cross_entropy_with_integer_labels(logits, BATCH["label"]).mean()
    expected = weight * np.mean(errors) + (1 - weight) * labels
    metrics, after = descend(student, teacher, distillation="features", distillation_weight=weight)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=2e-2 if dtype else 1e-4)
    assert ("cross_entropy" in metrics) == ("accuracy" in metrics) == (weight < 1)
    same = np.array_equal(after["head"]["kernel"][...], student.head.kernel[...])
    assert same == (weight == 1), "the head learns from labels alone"


@pytest.mark.parametrize("accumulation", [1, 4])
def test_features_with_all_the_weight_read_no_label(accumulation):
    student, teacher = (ViT(SPEC, rngs=nnx.Rngs(seed)) for seed in (1, 0))
    options = {"distillation": "features", "distillation_weight": 1.0}
    found = [
        descend(student, teacher, batch=batch, accumulation=accumulation, **options)
        for batch in (BATCH, {**BATCH, "label": jnp.arange(8) % 2})
    ]
    assert found[0][0] == found[1][0]
    jax.tree.map(np.testing.assert_array_equal, found[0][1], found[1][1])


def test_what_computes_the_same_has_nothing_to_learn_from_features():
    dense = ViT(SPEC, rngs=nnx.Rngs(0))
    options = {"distillation": "features", "distillation_weight": 1.0}
    metrics, _ = descend(prune(dense, Architecture(("msa",) * 2, (16, 16))), dense, **options)
    assert metrics["loss"] < 1e-10
    pruned = prune(dense, Architecture(("msa",) * 2, (16, 4)))
    before, after = descend(pruned, dense, **options)
    nnx.update(
        pruned, jax.tree.map(lambda a, b: b - 1e-3 * (b - a), after, nnx.state(pruned, nnx.Param))
    )
    assert descend(pruned, dense, **options)[0]["loss"] < before["loss"]


def test_swins_features_are_of_all_its_stages():
    spec = SwinSpec(16, (2, 2), (2, 2), (16, 16), 2, 2, 16, 2)
    student, teacher = (Swin(spec, rngs=nnx.Rngs(seed)) for seed in (1, 0))
    errors, _ = streams(student, teacher)
    assert len(errors) == 4
    options = {"distillation": "features", "distillation_weight": 1.0}
    np.testing.assert_allclose(
        descend(student, teacher, **options)[0]["loss"], np.mean(errors), rtol=1e-4
    )


def test_what_another_normalised_is_normalised_anew():
    one, other = Normalise((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)), Normalise((0.5,) * 3, (0.2,) * 3)
    found = other.convert(one(BATCH["image"]), one)
    np.testing.assert_allclose(found, other(BATCH["image"]), rtol=1e-4, atol=1e-5)
    same = one(BATCH["image"])
    assert one.convert(same, Normalise(one.mean, one.std)) is same


def test_pixels_are_normalised_in_the_default_float():
    with jax.enable_x64(True):
        assert SAME(jnp.zeros((1, 2, 2, 3), jnp.uint8)).dtype == jnp.float64
    found = Normalise((0.5, 0.0, 1.0), (0.5, 1.0, 2.0))(jnp.full((1, 1, 1, 3), 255, jnp.uint8))
    np.testing.assert_allclose(found[0, 0, 0], (1.0, 1.0, 0.0))
