"""Tiny models of timm, recorded: what ``test_plain`` and ``test_vit_families`` read."""

import numpy as np


def read(file):
    """The model's state in float32, and everything else that was recorded, by name."""
    with np.load(file) as found:
        arrays = {key: found[key] for key in found.files}
    state = {
        key.removeprefix("state/"): value.astype(np.float32)
        for key, value in arrays.items()
        if key.startswith("state/")
    }
    return state, arrays
