"""Checkpoints to convert: the states of the golden files."""

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def released():
    """``released(stem)``: the checkpoint in a golden file, its names and arrays."""

    def state(stem):
        with np.load(GOLDEN / f"{stem}.npz") as file:
            names = [name for name in file.files if name.startswith("state/")]
            return {name.removeprefix("state/"): file[name] for name in names}

    return state
