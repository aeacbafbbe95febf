"""DeiT-B on ImageNet with the released recipe: from 17.5 GMACs towards 6.

    python -m spvit_jax.main --config=configs/deit_b.py --workdir=/tmp/deit_b

Meant for 8 GPUs or TPU cores (the released run used 8, 128 images each). Fewer need
``--config.search.accumulation=8 --config.finetune.accumulation=8``, which takes the 1024 images
of a step in micro-batches. ``:tiny`` takes about a minute on a laptop, most of it compiling.
The images come from TFDS's imagenet2012 as ArrayRecord, which ``python -m spvit_jax.prepare``
makes of the original tars, or from ``--config.data.source=folder:PATH
--config.data.test_split=val``. The weights, a .pth, are downloaded; reading them needs the
``torch`` extra. ``:stage=evaluate`` measures them, or any ``--config.model.checkpoint``.

    python -m spvit_jax.main --config=configs/deit_b.py:stage=finetune --workdir=/tmp/spvit_deit_b

fine-tunes the published architecture, configs/architectures/spvit_deit_base.json, without a
search; another one takes its place with ``--config.finetune.architecture=FILE.json``, such as
spvit_deit_base_33.json beside it, which was searched with ``--config.search.target_gmacs=10``
and ``--config.search.budget_lambda=0.06``.

    python -m spvit_jax.main --config=configs/deit_b.py:distill --workdir=/tmp/distilled_deit_b

does that for 200 epochs with the RegNetY-16GF that taught DeiT, by hard distillation.

Different on purpose: the decision is projected to 6.0 GMACs, where the released model has 8.39
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
        model="deit_base_patch16_224",
        checkpoint="https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_deit_base.json",
        gate_learning_rate=1e-3,
        budget_lambda=0.08,
        target_gmacs=6.0,
    )
    return config.to_config_dict(made)
