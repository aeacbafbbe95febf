"""Gates against their definition: spelt out here for one block, term by term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.single_path.gates import (
    INITIAL_LOGIT,
    BlockGates,
    budget_gates,
    decide,
    initial_logits,
    sample,
)

LEVELS = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1))
HARD = tuple((a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1))


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logit(p):
    return np.log(p) - np.log1p(-p)


def uniforms_for(hard, logits, rng):
    """Uniforms under which the gates come out as ``hard``: open where u > 1 - sigma(logit)."""
    closed = 1 - sigmoid(logits)
    low, high = np.where(hard, closed, 0), np.where(hard, 1, closed)
    return low + (high - low) * rng.uniform(0.01, 0.99, np.shape(logits))


def draw(hard, seed=0):
    """Logits, uniforms and weights of a loss, for one block with ``hard`` kernel draws."""
    rng = np.random.default_rng(seed)
    logits = BlockGates(rng.normal(0, 1.5, 3), rng.normal(0, 1.5, 20))
    ffn = rng.integers(0, 2, 20)
    uniforms = BlockGates(
        uniforms_for(np.array(hard), logits.kernel, rng), uniforms_for(ffn, logits.ffn, rng)
    )
    return logits, uniforms, ffn, BlockGates(rng.normal(size=3), rng.normal(size=20))


def weighted(gates, weights):
    return (gates.kernel * weights.kernel).sum() + (gates.ffn * weights.ffn).sum()


@pytest.mark.parametrize("hard", HARD)
def test_sampled_gates_are_hard_and_nested(hard):
    logits, uniforms, ffn, _ = draw(hard)
    (gates,) = sample((logits,), uniforms=(uniforms,))
    np.testing.assert_array_equal(gates.kernel, np.cumprod(hard))
    np.testing.assert_array_equal(gates.ffn, ffn)


@pytest.mark.parametrize("hard", HARD)
def test_straight_through_gradients_of_samples(hard):
    logits, uniforms, _, weights = draw(hard)
    gradient = jax.grad(lambda x: weighted(sample((x,), uniforms=(uniforms,))[0], weights))(logits)

    def soft_derivative(theta, u):
        soft = sigmoid(logit(u) + logit(sigmoid(theta)))
        return soft * (1 - soft)

    np.testing.assert_allclose(
        gradient.ffn, weights.ffn * soft_derivative(logits.ffn, uniforms.ffn), rtol=1e-9
    )
    z0, z1, z2 = hard
    w0, w1, w2 = weights.kernel
    w0 = 0 if z0 * z1 else w0  # both on: the cheaper gate is a constant
    w1 = 0 if z0 * z1 * z2 else w1  # all on: so is the next
    of_hard = np.array([w0 + w1 * z1 + w2 * z1 * z2, w1 * z0 + w2 * z0 * z2, w2 * z0 * z1])
    expected = of_hard * soft_derivative(logits.kernel, uniforms.kernel)
    np.testing.assert_allclose(gradient.kernel, expected, rtol=1e-9, atol=1e-15)


def test_only_the_chosen_operation_is_rewarded():
    """The gradient of gate sums by level: with MSA on, neither cheaper gate adds to it."""
    logits, uniforms, _, _ = draw((1, 1, 1))
    gates, pull = jax.vjp(lambda x: sample((x,), uniforms=(uniforms,))[0].kernel, logits)
    np.testing.assert_array_equal(gates, [1, 1, 1])
    for cheaper in (0, 1):
        assert not pull(jnp.eye(3)[cheaper])[0].kernel.any()
    assert pull(jnp.eye(3)[2])[0].kernel.all()


def test_frequencies_are_the_probabilities():
    logits = BlockGates(np.array([0.8, 0.3, -0.4]), np.linspace(-4, 4, 9))
    keys = jax.random.split(jax.random.key(0), 20_000)
    gates = jax.vmap(lambda key: sample((logits,), key)[0])(keys)
    np.testing.assert_allclose(gates.ffn.mean(0), sigmoid(logits.ffn), atol=0.015)
    np.testing.assert_allclose(gates.kernel.mean(0), np.cumprod(sigmoid(logits.kernel)), atol=0.015)


def test_a_key_draws_the_same_gates_again_and_another_key_others():
    logits = initial_logits_of(200)
    first, again = (sample(logits, jax.random.key(3)) for _ in range(2))
    other = sample(logits, jax.random.key(4))
    np.testing.assert_array_equal(first[0].ffn, again[0].ffn)
    assert (first[0].ffn != other[0].ffn).any()
    assert (first[0].ffn != first[1].ffn).any()


def initial_logits_of(hidden):
    block = type("Block", (), {"hidden": hidden})
    return initial_logits((block, block))


def test_initial_logits():
    logits = initial_logits_of(7)
    assert [g.kernel.shape for g in logits] == [(3,)] * 2
    assert [g.ffn.shape for g in logits] == [(7,)] * 2
    assert all((part == INITIAL_LOGIT).all() for g in logits for part in g)
    assert INITIAL_LOGIT == 1.5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_extreme_logits_and_uniforms_stay_finite(dtype):
    extremes = jnp.array([-1e4, -30.0, 30.0, 1e4], dtype)
    logits = (BlockGates(extremes[1:], extremes),)
    for u in (0.0, 1.0, 0.5):
        uniforms = jax.tree.map(lambda x, u=u: jnp.full_like(x, u), logits)

        def loss(logits, uniforms=uniforms):
            return sum(jnp.sum(part) for part in sample(logits, uniforms=uniforms)[0])

        gates = sample(logits, uniforms=uniforms)[0]
        assert gates.ffn.dtype == dtype
        assert set(np.asarray(gates.ffn).tolist()) <= {0.0, 1.0}
        for gradient in (jax.grad(loss)(logits), jax.grad(lambda x: budget_sum(x))(logits)):
            assert all(jnp.isfinite(part).all() for part in gradient[0])


@pytest.mark.parametrize(("edge", "sign"), [(0.0, 1), (1.0, -1)])
def test_uniforms_and_probabilities_are_clamped_to_eps(edge, sign):
    eps = np.finfo(np.float64).eps
    inside = edge + sign * eps

    def gradient(theta, u):
        block = BlockGates(jnp.full(3, theta), jnp.full(1, theta))
        noise = (BlockGates(jnp.full(3, 0.5), jnp.full(1, u)),)
        return float(jax.grad(lambda x: sample((x,), uniforms=noise)[0].ffn.sum())(block).ffn[0])

    assert gradient(sign * 30.0, edge) == gradient(sign * 30.0, inside) > 1e-3
    assert gradient(sign * 50.0, edge) == 0


def budget_sum(logits):
    return sum(jnp.sum(part) for part in budget_gates(logits)[0])


@pytest.mark.parametrize("level", range(4))
def test_decision_is_a_probability_above_a_half(level):
    kernel = np.where(LEVELS[level], 0.2, -0.2)
    (gates,) = decide((BlockGates(kernel, np.array([1e-9, -1e-9, 0.0])),))
    np.testing.assert_array_equal(gates.kernel, LEVELS[level])
    np.testing.assert_array_equal(gates.ffn, [1, 0, 0])


@pytest.mark.parametrize("hard", HARD)
def test_budget_gates_and_their_gradient(hard):
    logits, _, _, weights = draw(hard)
    kernel = np.where(hard, np.abs(logits.kernel), -np.abs(logits.kernel))
    logits = logits._replace(kernel=kernel)
    (gates,), pull = jax.vjp(lambda x: budget_gates((x,)), logits)
    (decided,) = decide((logits,))
    np.testing.assert_array_equal(gates.kernel, decided.kernel)
    np.testing.assert_array_equal(gates.ffn, decided.ffn)

    def soft_derivative(theta):
        s = sigmoid(theta)
        soft = sigmoid(s - 0.5)
        return soft * (1 - soft) * s * (1 - s)

    gradient = pull((weights,))[0]
    np.testing.assert_allclose(gradient.ffn, weights.ffn * soft_derivative(logits.ffn), rtol=1e-9)
    z0, z1, z2 = hard
    w0, w1, w2 = weights.kernel  # nothing is slowed down here
    of_hard = np.array([w0 + w1 * z1 + w2 * z1 * z2, w1 * z0 + w2 * z0 * z2, w2 * z0 * z1])
    np.testing.assert_allclose(
        gradient.kernel, of_hard * soft_derivative(kernel), rtol=1e-9, atol=1e-15
    )
