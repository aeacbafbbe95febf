"""Commands between a shell and a terminal: any locale, and readers that go away."""

import os
import subprocess
import sys

import pytest

COMMAND = """
import sys
from spvit_jax.shell import run

def main():
    for _ in range(20_000):
        print("3×3 → 1×1")
    return 3

run(main)
"""


def test_what_a_terminal_cannot_show_is_a_question_mark():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, env=environment)
    assert done.returncode == 3 and not done.stderr
    assert done.stdout.splitlines()[0] == b"3?3 ? 1?1"


def test_a_reader_that_goes_away_ends_a_command_quietly():
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as command:
        command.stdout.readline()
        command.stdout.close()
        assert command.wait() == 141 and not command.stderr.read()


@pytest.mark.parametrize("name", ["predict", "plan"])
def test_help_goes_through_a_pipe_that_closes(name):
    shell = f"{sys.executable} -m spvit_jax.{name} --help | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and not done.stderr
