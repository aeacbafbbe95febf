"""The format that ``docs/extending.md`` adds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.convert import About
from spvit_jax.export import CheckFailed, export
from spvit_jax.export.export import SUFFIXES
from spvit_jax.export.near import runner
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.export.runtimes import run_stablehlo


def test_a_format_is_a_function_and_a_line_in_the_table(made, example, monkeypatch, tmp_path):
    module, model = example("a_format"), made("vit, pruned")
    monkeypatch.setitem(SUFFIXES, module.SUFFIX, module.bf16_stablehlo)
    half = export(model, tmp_path / "small.bf16.stablehlo")
    whole = export(model, tmp_path / "small.stablehlo")
    assert "bfloat16" in half.facts and half.files[0].exists()
    size, full = (f.files[0].stat().st_size for f in (half, whole))
    assert size < full
    preprocess = Preprocess.of(model, About(), [])
    pixels = np.random.default_rng(1).integers(0, 256, (2, *preprocess.crop, 3)).astype(np.uint8)
    found = run_stablehlo(tmp_path / "small.bf16.stablehlo", preprocess)(pixels)
    expected = runner(model, preprocess)(pixels)
    for name, value in expected.items():
        off = np.abs(np.asarray(found[name], np.float32) - value).max()
        assert 0 < off < 0.05 * np.abs(value).max()

    monkeypatch.setattr(module, "halved", lambda model: jax.tree.map(jnp.zeros_like, model))
    with pytest.raises(CheckFailed):
        export(model, tmp_path / "wrong.bf16.stablehlo")
    assert (tmp_path / "wrong.bf16.stablehlo.failed").exists()
