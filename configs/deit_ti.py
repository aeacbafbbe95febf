"""DeiT-Ti on ImageNet with the released recipe: from 1.25 GMACs towards 1.0.

    python -m spvit_jax.main --config=configs/deit_ti.py --workdir=/tmp/deit_ti

Meant for 4 to 8 GPUs or TPU cores (the released run used 4, 256 images each). Fewer need
``--config.search.accumulation=8 --config.finetune.accumulation=8``, which takes the 1024 images
of a step in micro-batches. ``:tiny`` takes about a minute on a laptop, most of it compiling.
The images come from TFDS's imagenet2012 as ArrayRecord, which ``python -m spvit_jax.prepare``
makes of the original tars, or from ``--config.data.source=folder:PATH
--config.data.test_split=val``. The weights, a .pth, are downloaded; reading them needs the
``torch`` extra. ``:stage=evaluate`` measures them, or any ``--config.model.checkpoint``.

    python -m spvit_jax.main --config=configs/deit_ti.py:stage=finetune --workdir=/tmp/spvit_deit_ti

fine-tunes the published architecture, configs/architectures/spvit_deit_tiny.json, without a
search; another one takes its place with ``--config.finetune.architecture=FILE.json``.

    python -m spvit_jax.main --config=configs/deit_ti.py:distill --workdir=/tmp/distilled_deit_ti

does that for 200 epochs with the RegNetY-16GF that taught DeiT, by hard distillation.

Different on purpose: the decision is projected to 1.0 GMACs, where the released model has 1.04
(``--config.search.decision=threshold`` decides as it did); the search takes all of its 20 epochs,
the published architecture was taken after 10 to 20; batch norm sees the global batch, not one
device's; the computation is in bfloat16.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="deit_tiny_patch16_224",
        checkpoint="https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_deit_tiny.json",
        gate_learning_rate=1e-3,
        budget_lambda=20.0,
        target_gmacs=1.0,
    )
    return config.to_config_dict(made)
