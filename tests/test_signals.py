"""Signals that come while the main thread is inside a single call, such as a compilation."""

import os
import signal
import subprocess
import sys
import time

import pytest

from spvit_jax import hosts, signals
from spvit_jax.signals import Signals

COMPILE = """
import sys
import jax, jax.numpy as jnp
from spvit_jax.signals import Signals
signals = Signals()
signals.listen()
signals.patience = float(sys.argv[1])

@jax.jit
def endless(x):
    for number in range(9000):
        x = jnp.sin(x) * jnp.cos(x + number)
    return x

traced = endless.trace(jnp.ones(7)).lower()
print("saved", end="")
print("\\ncompiling", file=sys.stderr, flush=True)
traced.compile()
print("compiled", flush=True)
"""


def compiling(patience):
    """A process in the midst of a compilation that takes a minute."""
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", COMPILE, str(patience)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    return process


def begun(process):
    """Waits until it compiles."""
    while process.stderr.readline() != "compiling\n":
        assert process.poll() is None
    time.sleep(0.5)


def test_a_compilation_is_left_in_time_and_at_once_by_a_second_signal():
    waiting, patient = compiling(signals.PATIENCE), compiling(60)
    begun(waiting)
    begin = time.monotonic()
    waiting.send_signal(signal.SIGTERM)
    said, errors = waiting.communicate(timeout=30)
    assert 1 < time.monotonic() - begin < 4
    assert (waiting.returncode, said) == (143, "saved")
    assert "the same command goes on" in errors and "Traceback" not in errors

    begun(patient)
    patient.send_signal(signal.SIGINT)
    assert "stopping" in patient.stderr.readline() + patient.stderr.readline()
    begin = time.monotonic()
    patient.send_signal(signal.SIGTERM)
    said, _ = patient.communicate(timeout=30)
    assert time.monotonic() - begin < 3
    assert (patient.returncode, said) == (130, "saved")


@pytest.fixture
def ended(monkeypatch):
    """``Signals`` of little patience, and when they ended the process, had they been let."""
    found, ends = Signals(), []
    found.patience = 0.2

    def end(self):
        ends.append(time.monotonic())
        self.obeyed = True

    monkeypatch.setattr(Signals, "_end", end)
    before = {number: signal.getsignal(number) for number in signals.CAUGHT}
    found.listen()
    yield found, ends
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def until(true):
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_steps_that_are_not_saved_yet_are_waited_for(ended):
    found, ends = ended
    stop = hosts.Stop(found)
    stop.unsaved(True)
    signal.raise_signal(signal.SIGTERM)
    until(lambda: found.received)
    time.sleep(0.6)
    assert not ends
    stop.unsaved(False)
    until(lambda: ends)
    assert found.received == [signal.SIGTERM]


def test_a_run_that_ends_itself_is_left_alone(ended):
    found, ends = ended
    stop = hosts.Stop(found)
    assert not stop()
    signal.raise_signal(signal.SIGINT)
    until(lambda: found.received)
    assert stop()
    time.sleep(0.6)
    assert not ends


def test_several_that_still_agree_are_left_alone(ended):
    found, ends = ended
    signal.raise_signal(signal.SIGINT)
    for _ in range(8):
        time.sleep(0.1)
        found.looked()
    assert not ends
    until(lambda: ends)
