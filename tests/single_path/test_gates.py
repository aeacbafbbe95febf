"""Gates against their definition: spelt out here for one block, term by term."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.models import Geometry
from spvit_jax.single_path.gates import (
    INITIAL_LOGIT,
    budget_gates,
    decide,
    initial_logits,
    sample,
)
from spvit_jax.single_path.space import Space

LEVELS = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1))
HARD = tuple(itertools.product((0, 1), repeat=3))
BLOCK = Geometry(width=8, heads=4, hidden=20, grid=(4, 4))
SPACE = Space((BLOCK,), axes=("op", "heads", "ffn"))


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


def draw(op, seed=0):
    """Logits, own gates, their uniforms and weights of a loss; for one block, those of ``op``."""
    rng = np.random.default_rng(seed)
    sizes = {"op": 3, "heads": 4, "ffn": 20}
    logits = {axis: rng.normal(0, 1.5, size) for axis, size in sizes.items()}
    own = {"op": np.array(op), "heads": np.array([0, 1, 1, 0]), "ffn": rng.integers(0, 2, 20)}
    uniforms = {axis: uniforms_for(own[axis], x, rng) for axis, x in logits.items()}
    weights = {axis: rng.normal(size=size) for axis, size in sizes.items()}
    return logits, own, uniforms, weights


def weighted(gates, weights):
    return sum((gates[axis] * weights[axis]).sum() for axis in weights)


def slopes_of(hard, weights, op_weights):
    """The derivative of ``weighted`` in each gate by itself, were they not nested already."""
    (z0, z1, z2), (w0, w1, w2), heads = hard["op"], op_weights, hard["heads"]
    w2 = w2 + (weights["heads"] * heads).sum()  # heads are nested in the last gate
    return {
        "op": np.array([w0 + w1 * z1 + w2 * z1 * z2, w1 * z0 + w2 * z0 * z2, w2 * z0 * z1]),
        "heads": weights["heads"] * z0 * z1 * z2,
        "ffn": weights["ffn"],
    }


@pytest.mark.parametrize("op", HARD)
def test_sampled_gates_are_hard_and_nested(op):
    logits, own, uniforms, _ = draw(op)
    (gates,) = sample(SPACE, (logits,), uniforms=(uniforms,))
    np.testing.assert_array_equal(gates["op"], np.cumprod(op))
    np.testing.assert_array_equal(gates["heads"], own["heads"] * np.prod(op))
    np.testing.assert_array_equal(gates["ffn"], own["ffn"])
    assert list(gates) == ["op", "heads", "ffn"]


@pytest.mark.parametrize("op", HARD)
def test_straight_through_gradients_of_samples(op):
    logits, own, uniforms, weights = draw(op)

    def loss(logits):
        (gates,) = sample(SPACE, (logits,), uniforms=(uniforms,))
        return weighted(gates, weights)

    def soft_derivative(theta, u):
        soft = sigmoid(logit(u) + logit(sigmoid(theta)))
        return soft * (1 - soft)

    z0, z1, z2 = op
    w0, w1, w2 = weights["op"]
    w0 = 0 if z0 * z1 else w0  # both on: the cheaper gate is a constant
    w1 = 0 if z0 * z1 * z2 else w1  # all on: so is the next
    slopes = slopes_of(own, weights, (w0, w1, w2))
    gradient = jax.grad(loss)(logits)
    for axis, slope in slopes.items():
        expected = slope * soft_derivative(logits[axis], uniforms[axis])
        np.testing.assert_allclose(gradient[axis], expected, rtol=1e-9, atol=1e-15)


def test_only_the_chosen_operation_is_rewarded():
    """The gradient of gate sums by level: with MSA on, neither cheaper gate adds to it."""
    logits, _, uniforms, _ = draw((1, 1, 1))
    gates, pull = jax.vjp(lambda x: sample(SPACE, (x,), uniforms=(uniforms,))[0]["op"], logits)
    np.testing.assert_array_equal(gates, [1, 1, 1])
    for cheaper in (0, 1):
        assert not pull(jnp.eye(3)[cheaper])[0]["op"].any()
    assert pull(jnp.eye(3)[2])[0]["op"].all()


def test_axes_that_are_not_gated_are_open_but_for_nesting():
    logits = {"op": jnp.array([0.3, 0.2, -0.1])}
    (gates,) = decide(Space((BLOCK,), axes=("op",)), (logits,))
    assert gates["op"].tolist() == [1, 1, 0]
    assert not gates["heads"].any() and gates["ffn"].all() and gates["ffn"].shape == (20,)
    (gates,) = decide(Space((BLOCK,), axes=("op",)), ({"op": jnp.ones(3)},))
    assert gates["heads"].all() and gates["heads"].shape == (4,)
    (gates,) = decide(Space((BLOCK,), axes=("heads",)), ({"heads": jnp.array([1.0, -1, 1, -1])},))
    assert gates["op"].all() and gates["ffn"].all()
    assert gates["heads"].tolist() == [1, 0, 1, 0]


def test_frequencies_are_the_probabilities():
    logits = {
        "op": np.array([0.8, 0.3, -0.4]),
        "heads": np.array([-1.0, 0.0, 0.5, 2.0]),
        "ffn": np.linspace(-4, 4, 20),
    }
    keys = jax.random.split(jax.random.key(0), 20_000)
    gates = jax.vmap(lambda key: sample(SPACE, (logits,), key)[0])(keys)
    found = {axis: gate.mean(0) for axis, gate in gates.items()}
    op = np.cumprod(sigmoid(logits["op"]))
    np.testing.assert_allclose(found["op"], op, atol=0.015)
    np.testing.assert_allclose(found["heads"], op[-1] * sigmoid(logits["heads"]), atol=0.015)
    np.testing.assert_allclose(found["ffn"], sigmoid(logits["ffn"]), atol=0.015)


def test_a_key_draws_the_same_gates_again_and_another_key_others():
    space = Space((Geometry(8, 4, 200, (4, 4)),) * 2)
    logits = initial_logits(space)
    first, again = (sample(space, logits, jax.random.key(3)) for _ in range(2))
    other = sample(space, logits, jax.random.key(4))
    np.testing.assert_array_equal(first[0]["ffn"], again[0]["ffn"])
    assert (first[0]["ffn"] != other[0]["ffn"]).any()
    assert (first[0]["ffn"] != first[1]["ffn"]).any()


def test_a_draw_needs_a_key_or_uniforms():
    with pytest.raises(ValueError, match="a key or the uniforms"):
        sample(SPACE, initial_logits(SPACE))


@pytest.mark.parametrize("axes", [("op", "ffn"), ("heads",), ("op", "heads", "ffn")])
def test_initial_logits_are_of_the_gated_axes(axes):
    space = Space((Geometry(8, 4, 7, (4, 4)), BLOCK), axes=axes)
    logits = initial_logits(space)
    assert [set(block) for block in logits] == [set(axes)] * 2
    sizes = {"op": (3, 3), "heads": (4, 4), "ffn": (7, 20)}
    for axis in axes:
        assert tuple(block[axis].size for block in logits) == sizes[axis]
    assert all((x == INITIAL_LOGIT).all() for block in logits for x in block.values())
    assert INITIAL_LOGIT == 1.5


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_extreme_logits_and_uniforms_stay_finite(dtype):
    extremes = jnp.array([-1e4, -30.0, 30.0, 1e4], dtype)
    logits = ({"op": extremes[1:], "heads": extremes, "ffn": jnp.tile(extremes, 5)},)
    for u in (0.0, 1.0, 0.5):
        uniforms = jax.tree.map(lambda x, u=u: jnp.full_like(x, u), logits)

        def loss(logits, uniforms=uniforms):
            return sum(map(jnp.sum, sample(SPACE, logits, uniforms=uniforms)[0].values()))

        gates = sample(SPACE, logits, uniforms=uniforms)[0]
        for gate in gates.values():
            assert gate.dtype == dtype
            assert set(np.asarray(gate).tolist()) <= {0.0, 1.0}
        for gradient in (jax.grad(loss)(logits), jax.grad(budget_sum)(logits)):
            assert all(jnp.isfinite(part).all() for part in gradient[0].values())


@pytest.mark.parametrize(("edge", "sign"), [(0.0, 1), (1.0, -1)])
def test_uniforms_and_probabilities_are_clamped_to_eps(edge, sign):
    eps = np.finfo(np.float64).eps
    inside = edge + sign * eps
    space = Space((Geometry(8, 4, 1, (4, 4)),))

    def gradient(theta, u):
        block = {"op": jnp.full(3, theta), "ffn": jnp.full(1, theta)}
        noise = ({"op": jnp.full(3, 0.5), "ffn": jnp.full(1, u)},)
        found = jax.grad(lambda x: sample(space, (x,), uniforms=noise)[0]["ffn"].sum())(block)
        return float(found["ffn"][0])

    assert gradient(sign * 30.0, edge) == gradient(sign * 30.0, inside) > 1e-3
    assert gradient(sign * 50.0, edge) == 0


def budget_sum(logits):
    return sum(map(jnp.sum, budget_gates(SPACE, logits)[0].values()))


@pytest.mark.parametrize("level", range(4))
def test_decision_is_a_probability_above_a_half(level):
    logits = {
        "op": np.where(LEVELS[level], 0.2, -0.2),
        "heads": np.array([0.1, -0.1, 0.0, 0.3]),
        "ffn": np.tile([1e-9, -1e-9, 0.0, 1], 5),
    }
    (gates,) = decide(SPACE, (logits,))
    np.testing.assert_array_equal(gates["op"], LEVELS[level])
    np.testing.assert_array_equal(gates["heads"], [level == 3, 0, 0, level == 3])
    np.testing.assert_array_equal(gates["ffn"], [1, 0, 0, 1] * 5)


@pytest.mark.parametrize("function", [decide, budget_gates])
def test_attention_keeps_a_head_at_least(function):
    logits = {"op": jnp.ones(3), "heads": jnp.array([-2.0, -0.5, -0.7, -0.5]), "ffn": jnp.ones(20)}
    (gates,) = function(SPACE, (logits,))
    np.testing.assert_array_equal(gates["heads"], [0, 1, 0, 0])
    (gates,) = function(SPACE, (logits | {"op": -jnp.ones(3)},))
    assert not gates["heads"].any()


@pytest.mark.parametrize("op", HARD)
def test_budget_gates_and_their_gradient(op):
    logits, own, _, weights = draw(op)
    logits = {axis: np.where(own[axis], np.abs(x), -np.abs(x)) for axis, x in logits.items()}
    (gates,), pull = jax.vjp(lambda x: budget_gates(SPACE, (x,)), logits)
    (decided,) = decide(SPACE, (logits,))
    jax.tree.map(np.testing.assert_array_equal, gates, decided)

    def soft_derivative(theta):
        s = sigmoid(theta)
        soft = sigmoid(s - 0.5)
        return soft * (1 - soft) * s * (1 - s)

    gradient = pull((weights,))[0]
    for axis, slope in slopes_of(own, weights, weights["op"]).items():  # nothing is slowed down
        expected = slope * soft_derivative(logits[axis])
        np.testing.assert_allclose(gradient[axis], expected, rtol=1e-9, atol=1e-15)
