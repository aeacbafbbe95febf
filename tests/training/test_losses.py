import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.training.losses import correct, cross_entropy

LOGITS = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32) * 3
LABELS = np.array([0, 3, 1, 1, 2], np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_is_torchs(smoothing):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(LABELS).long(), label_smoothing=smoothing
    )
    ours = cross_entropy(jnp.asarray(LOGITS), jnp.asarray(LABELS), smoothing)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_correct_is_one_where_the_highest_logit_is_the_labels():
    labels = LOGITS.argmax(-1)
    labels[2] = (labels[2] + 1) % 4
    np.testing.assert_array_equal(
        correct(jnp.asarray(LOGITS), jnp.asarray(labels)), [1, 1, 0, 1, 1]
    )
