"""Opening TFDS's sets where TFDS is not installed."""

import sys

import pytest

from spvit_jax.config import Data
from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import open_source


def test_without_tfds_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"pip install 'spvit_jax\[tfds\]'"):
        open_source(Data(source="tfds:imagenet2012", train_split="train"), "train")
