import time

import pytest

from spvit_jax.training import pace


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes when it is told to: ``clock(seconds)``."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def go(seconds):
        now[0] += seconds

    return go


def test_seconds_a_step_and_the_share_of_waiting(clock):
    found = pace.Pace()
    for _ in range(4):
        with found.waiting():
            clock(0.25)
        clock(0.75)
    assert found.lap() == {"step_seconds": 1.0, "input_wait": 0.25}
    with found.waiting():
        clock(3)
    assert found.lap() == {"step_seconds": 3.0, "input_wait": 1.0}


def test_what_is_not_part_of_a_step_does_not_count(clock):
    found = pace.Pace()
    with found.waiting():
        clock(0.5)
    with found.paused():
        clock(60)
    clock(0.5)
    assert found.lap() == {"step_seconds": 1.0, "input_wait": 0.5}
    with found.paused():
        clock(60)
    with found.waiting():
        clock(1)
    assert found.lap() == {"step_seconds": 1.0, "input_wait": 1.0}
