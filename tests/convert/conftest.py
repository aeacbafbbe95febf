"""Checkpoints to convert: the states of the golden files, and models of random numbers."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from spvit_jax.convert import forms
from spvit_jax.sizes import sides

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def released():
    """``released(stem)``: the checkpoint in a golden file, its names and arrays."""

    def state(stem):
        with np.load(GOLDEN / f"{stem}.npz") as file:
            names = [name for name in file.files if name.startswith("state/")]
            return {name.removeprefix("state/"): file[name] for name in names}

    return state


@pytest.fixture(scope="session")
def manifest():
    """``manifest(stem)``: a real checkpoint's names, each with zeros of its shape."""

    def state(stem):
        shapes = json.loads((GOLDEN / "manifests" / f"{stem}.json").read_text())
        return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}

    return state


@pytest.fixture(scope="session")
def random_model():
    """``random_model(spec, form, architecture=None)``: every array random, variances positive."""

    def model(spec, form, architecture=None):
        random = np.random.default_rng(0)
        empty = forms.build(spec, form, architecture)
        arrays = {}
        for name, shape in forms.shapes(empty).items():
            value = 0.2 * random.standard_normal(shape).astype(np.float32)
            arrays[name] = 0.5 + np.abs(value) if name.endswith("var") else value
        return forms.fill(empty, arrays)

    return model


@pytest.fixture(scope="session")
def images():
    """``images(spec)``: two of the size that a spec wants."""

    def pair(spec):
        return jax.random.normal(jax.random.key(0), (2, *sides(spec.image_size), 3))

    return pair


@pytest.fixture(scope="session")
def assert_same():
    """``assert_same(found, expected)``: the same names with the same bits."""

    def check(found, expected):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            value = np.asarray(value)
            assert found[name].dtype == value.dtype, name
            np.testing.assert_array_equal(found[name], value, err_msg=name)

    return check
