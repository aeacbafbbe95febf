import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.models import Tokens
from spvit_jax.training.losses import (
    correct,
    cross_entropy,
    hard_distance,
    smooth_targets,
    soft_distance,
    stream_error,
)

LOGITS = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32) * 3
TEACHER = np.random.default_rng(1).standard_normal((5, 4), dtype=np.float32) * 2
LABELS = np.array([0, 3, 1, 1, 2], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs(smoothing):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(LABELS).long(), label_smoothing=smoothing
    )
    ours = cross_entropy(jnp.asarray(LOGITS), smooth_targets(jnp.asarray(LABELS), 4, smoothing))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_hard_distillation_is_cross_entropy_with_the_teachers_decision():
    found = hard_distance(jnp.asarray(LOGITS), jnp.asarray(TEACHER))
    chances = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    expected = -np.log(chances[np.arange(5), TEACHER.argmax(-1)]).mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_distillation_is_torchs_divergence(temperature):
    torch = pytest.importorskip("torch")
    student, teacher = (torch.tensor(x / temperature).log_softmax(-1) for x in (LOGITS, TEACHER))
    theirs = torch.nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    ours = soft_distance(jnp.asarray(LOGITS), jnp.asarray(TEACHER), temperature)
    np.testing.assert_allclose(ours, theirs * temperature**2, rtol=1e-5)


def test_correct_is_one_where_the_highest_logit_is_the_labels():
    labels = LOGITS.argmax(-1)
    labels[2] = (labels[2] + 1) % 4
    np.testing.assert_array_equal(
        correct(jnp.asarray(LOGITS), jnp.asarray(labels)), [1, 1, 0, 1, 1]
    )


def test_an_error_is_relative_to_the_variance_about_each_features_mean():
    taught = np.random.default_rng(2).standard_normal((3, 5, 4)) * 2 + np.arange(4) * 10
    student = taught + np.random.default_rng(3).standard_normal(taught.shape)
    variance = np.mean([taught[..., i].var() for i in range(4)])
    expected = ((student - taught) ** 2).mean() / variance
    wide, narrow = (
        stream_error(Tokens(jnp.asarray(student, dtype)), jnp.asarray(taught, dtype))
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    np.testing.assert_allclose(wide, expected, rtol=1e-4)
    assert wide.dtype == narrow.dtype == jnp.float32
    mean = jnp.broadcast_to(jnp.asarray(taught, jnp.float32).mean((0, 1)), taught.shape)
    np.testing.assert_allclose(stream_error(Tokens(mean), jnp.asarray(taught)), 1, rtol=1e-5)
    assert stream_error(Tokens(jnp.asarray(taught)), jnp.asarray(taught)) == 0


@pytest.mark.parametrize("count", [9, 1])
def test_class_tokens_that_are_read_weigh_a_quarter_of_the_patches(count):
    taught = np.random.default_rng(2).standard_normal((2, count, 3), dtype=np.float32)
    student = np.random.default_rng(3).standard_normal((2, count, 3), dtype=np.float32)
    missing = ((student - taught) ** 2).mean((0, 2))
    variance = np.mean([taught[..., i].var() for i in range(3)])
    expected = 0.2 * missing[0] + 0.8 * missing[1:].mean() if count > 1 else missing[0]
    found = stream_error(Tokens(jnp.asarray(student)), jnp.asarray(taught), 1)
    np.testing.assert_allclose(found, expected / variance, rtol=1e-5)


def test_an_error_of_merged_tokens_is_to_the_mean_of_what_is_taught():
    taught = np.random.default_rng(2).standard_normal((2, 4, 3), dtype=np.float32)
    student = np.random.default_rng(3).standard_normal((2, 2, 3), dtype=np.float32)
    sources = np.array([[0, 1, 1, 1], [0, 0, 1, 0]])  # where each of the four is now
    sizes = np.array([[1.0, 3.0], [3.0, 1.0]], np.float32)
    groups = [[0, [0], [1, 2, 3]], [1, [0, 1, 3], [2]]]
    means = np.array([[taught[i, group].mean(0) for group in both] for i, *both in groups])
    variance = np.mean([taught[..., i].var() for i in range(3)])
    tokens = Tokens(*map(jnp.asarray, (student, sizes, sources)))
    expected = ((student - means) ** 2).mean() / variance
    np.testing.assert_allclose(stream_error(tokens, jnp.asarray(taught)), expected, rtol=1e-5)
    exact = tokens._replace(x=jnp.asarray(means))
    assert stream_error(exact, jnp.asarray(taught)) < 1e-12
