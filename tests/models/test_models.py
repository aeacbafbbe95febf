"""The table of all variants: every family's, and each with its network."""

import pytest

from spvit_jax import models
from spvit_jax.models import MODELS, VARIANTS, Classifier, regnet, swin, vit

TABLES = (vit.VARIANTS, swin.VARIANTS, regnet.VARIANTS)  # each has a test of exact sizes


def test_the_table_is_that_of_the_tested_families():
    assert sum(len(table) for table in TABLES) == len(VARIANTS)  # no name twice
    for table in TABLES:
        assert table.items() <= VARIANTS.items()


@pytest.mark.parametrize("spec", VARIANTS.values(), ids=VARIANTS)
def test_every_spec_has_its_network(spec):
    network = MODELS[type(spec)]
    assert issubclass(network, Classifier)
    assert network.__name__ + "Spec" == type(spec).__name__
    assert spec.classes > 1 and spec.image_size > 1


def test_public_names_exist():
    assert all(hasattr(models, name) for name in models.__all__)
