"""A new format to export to: StableHLO with weights of 16 bits, ``NAME.bf16.stablehlo``.

A format is a function of a job and a path, and its line in the table ``SUFFIXES``. It writes the
file, runs it, compares it with the model, and returns what there is to say of it; ``export`` gives
it a place aside and moves what it wrote to where it belongs.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from spvit_jax.export.check import check
from spvit_jax.export.runtimes import run_stablehlo
from spvit_jax.export.stablehlo import save_stablehlo

SUFFIX = ".bf16.stablehlo"


def bf16_stablehlo(job, path):
    """Writes, runs and compares the file.

    Raises:
      CheckFailed: it does not compute what the model does.
    """
    options = {name: getattr(job, name) for name in ("pixels", "layout", "beside")}
    save_stablehlo(halved(job.model), job.preprocess, path, **options)
    run = run_stablehlo(path, job.preprocess)
    checked = check(job.model, job.preprocess, run, tolerance=5e-2)
    return "bfloat16", checked.summary()


def halved(model):
    """Copies a model, its weights rounded to bfloat16."""
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(jnp.bfloat16), state))
