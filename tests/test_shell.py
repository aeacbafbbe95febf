"""Commands between a shell and a terminal: any locale, and readers that go away."""

import errno
import importlib
import os
import subprocess
import sys

import pytest

from spvit_jax.shell import failed

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


@pytest.mark.parametrize(
    ("command", "arguments", "reader"),
    [
        ("convert.__main__", ("a.pth", "b.safetensors"), "convert.__main__.load"),
        ("export.__main__", ("a.pth", "b.stablehlo"), "convert.load"),
        ("measure.__main__", ("a.pth",), "measure.contestants.load"),
        ("predict.__main__", ("a.pth", "a.png"), "convert.load"),
        ("prepare", ("a", "b"), "data.originals.list_folder"),
    ],
)
@pytest.mark.parametrize(("number", "code"), [(errno.EIO, 75), (errno.EACCES, 2)])
def test_what_may_pass_has_its_own_exit_code(
    command, arguments, reader, number, code, capsys, monkeypatch
):
    def refuse(*_, **__):
        raise OSError(number, "not now")

    main = importlib.import_module(f"spvit_jax.{command}").main
    monkeypatch.setattr(f"spvit_jax.{reader}", refuse)
    assert main(list(arguments)) == code
    assert capsys.readouterr().err == f"error: [Errno {number}] not now\n"


EXHAUSTED = """
import sys
import numpy as np
from spvit_jax.shell import run

def main():
    if sys.argv[1] == "device":
        import jax.numpy as jnp
        return jnp.zeros(2**46)
    return np.zeros(2**46)

run(main)
"""


def test_a_quota_of_a_server_is_no_memory(capsys):
    error = OSError(errno.EAGAIN, "RESOURCE_EXHAUSTED: too many requests")
    assert failed(error) == 75 and capsys.readouterr().err == f"error: {error}\n"


@pytest.mark.parametrize("where", ["host", "device"])
def test_too_little_memory_is_one_line(where):
    command = [sys.executable, "-c", EXHAUSTED, where]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: out of memory (")
    assert "take smaller images, a smaller batch" in done.stderr and len(done.stderr) < 400
