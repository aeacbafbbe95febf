import dataclasses
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax import measure as module
from spvit_jax.measure import Timing, measure


def small(x):
    return x.mean((1, 2))


def large(x):
    def body(_, m):
        return jnp.tanh(m @ m)

    m = jnp.full((128, 128), x.mean())
    return x.mean((1, 2)) + jax.lax.fori_loop(0, 300, body, m).sum()


def test_more_work_is_slower_in_every_number():
    got = measure({"small": small, "large": large}, 8, 4, 0.2)
    assert list(got) == ["small", "large"]
    assert got["small"].latency_ratio == got["small"].throughput_ratio == 1.0
    assert got["large"].latency_ms > got["small"].latency_ms > 0
    assert got["large"].latency_ratio > 2
    assert got["large"].throughput_ratio < 0.5
    assert got["large"].images_per_second < got["small"].images_per_second


def test_images_are_of_the_height_and_width(monkeypatch):
    seen = set()
    measure({"a": lambda x: seen.add(x.shape) or x.mean()}, (4, 6), 3, 1e-6, 1)
    assert seen == {(1, 4, 6, 1), (3, 4, 6, 1)}


def test_numbers_from_known_times(monkeypatch):
    one = np.array([[1.0, 2.0], [2.0, 1.0], [3.0, 9.0], [4.0, 8.0]]) / 1e3
    batch = np.array([[0.1, 0.2], [0.2, 0.1], [0.4, 0.2]])
    monkeypatch.setattr(module, "_times", lambda _m, _i, size, _s: one if size == 1 else batch)
    got = measure({"a": small, "b": small}, 8, 16, 1.0)["b"]
    want = Timing(
        latency_ms=5.0,  # of 1 2 8 9
        latency_iqr_ms=6.5,  # 8.25 - 1.75
        images_per_second=80.0,  # 16 / 0.2
        latency_ratio=2.0,  # of 2, 1/2, 3, 2; the quotient of medians would be 2.5 / 5
        throughput_ratio=2.0,  # of 1/2, 2, 2; the quotient of medians would be 1
    )
    assert dataclasses.asdict(got) == pytest.approx(dataclasses.asdict(want))


def test_models_take_turns_call_by_call(monkeypatch):
    order = []

    def compiled(model, images):
        return lambda x: order.append(model) or x

    monkeypatch.setattr(module, "_compiled", compiled)
    measure({"a": "A", "b": "B", "c": "C"}, 4, 2, 1e-6)
    assert order == ["A", "B", "C"] * (len(order) // 3)
    assert len(order) == 2 * 3 * (module._WARM_UP + module._MIN_ROUNDS)


def test_shapes_are_batch_1_then_the_batch_and_compiled_once(monkeypatch):
    traced = []

    def model(x):
        traced.append((x.shape, x.dtype))
        return x

    measure({"a": model}, 6, 5, 0.01)
    assert traced == [((1, 6, 6, 3), jnp.float32), ((5, 6, 6, 3), jnp.float32)]


def test_captured_weights_become_arguments():
    weight = jnp.arange(3.0)
    images = jnp.ones((2, 4, 4, 3))
    call = module._compiled(lambda x: x.sum((1, 2)) * weight, images)
    np.testing.assert_allclose(call(images)[0], jnp.tile(16 * weight, (2, 1)))


def test_time_is_kept():
    start = time.perf_counter()
    measure({"a": small}, 4, 2, 0.3)
    assert 0.6 <= time.perf_counter() - start < 3.0


def test_timing_goes_through_json():
    timing = Timing(1.0, 0.1, 2.0, 3.0, 4.0)
    assert Timing(**json.loads(json.dumps(dataclasses.asdict(timing)))) == timing


@pytest.mark.parametrize(
    "arguments",
    [
        ({}, 8, 1, 1.0),
        ({"a": small}, 0, 1, 1.0),
        ({"a": small}, 8, 0, 1.0),
        ({"a": small}, 8, 1, 0.0),
    ],
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="at least one model|must be above 0"):
        measure(*arguments)
