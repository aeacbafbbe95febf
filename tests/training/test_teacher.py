"""Distillation: steps whose numbers are worked out on paper, and what a teacher is fed."""

import dataclasses
from math import log

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from spvit_jax.models import RegNet, RegNetSpec, Swin, SwinSpec, ViT, ViTSpec
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.prune import fold, prune
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import make_mesh, replicated
from spvit_jax.training.step import Objective, init_state, make_train_step
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


def descend(student, teacher, **objective):
    """Metrics of one step of plain gradient descent at rate 1, and the parameters after it."""
    descent = optax.sgd(1.0)
    objective = Objective(SAME, **objective)
    state = jax.device_put(init_state(student, descent, seed=0), replicated(make_mesh()))
    graph = nnx.graphdef(student)
    step = make_train_step(graph, descent, objective, make_mesh(), state, freeze(teacher, SAME))
    state, metrics = step(state, BATCH)
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
    descent, graph = optax.sgd(1.0), nnx.graphdef(student)
    state = jax.device_put(init_state(student, descent, seed=0), replicated(make_mesh()))
    objective = Objective(SAME, distillation="hard")
    step = make_train_step(graph, descent, objective, make_mesh(), state, freeze(model, own))
    _, metrics = step(state, BATCH)
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
