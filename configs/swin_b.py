"""Swin-B on ImageNet with the released recipe: from 15.4 GMACs towards 10.

    python -m spvit_jax.main --config=configs/swin_b.py --workdir=/tmp/swin_b

Meant for 8 GPUs or TPU cores (the released run used 8, 128 images each). Fewer need
``--config.search.accumulation=8 --config.finetune.accumulation=8``, which takes the 1024 images
of a step in micro-batches. ``:tiny`` takes about a minute on a laptop, most of it compiling.
The images come from TFDS's imagenet2012 as ArrayRecord, which ``python -m spvit_jax.prepare``
makes of the original tars, or from ``--config.data.source=folder:PATH
--config.data.test_split=val``. The weights, a .pth, are downloaded; reading them needs the
``torch`` extra. ``:stage=evaluate`` measures them, or any ``--config.model.checkpoint``.

    python -m spvit_jax.main --config=configs/swin_b.py:stage=finetune --workdir=/tmp/spvit_swin_b

fine-tunes the published architecture, configs/architectures/spvit_swin_base.json, without a
search; another one takes its place with ``--config.finetune.architecture=FILE.json``.

    python -m spvit_jax.main --config=configs/swin_b.py:distill --workdir=/tmp/distilled_swin_b

does that for 200 epochs with the RegNetY-16GF that taught DeiT, by hard distillation.

Different on purpose: a 3x3 convolution sees the whole unshifted map during search, as it does
afterwards, where the released search kept it inside windows; a skip adds nothing, where released
ones add norm1(x); the decision is projected to 10.0 GMACs, where the released model has 11.39
(``--config.search.decision=threshold`` decides as it did); the search takes all of its 20 epochs;
batch norm sees the global batch, not one device's; the computation is in bfloat16.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="swin_base_patch4_window7_224",
        checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
        "swin_base_patch4_window7_224.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_swin_base.json",
        gate_learning_rate=1e-3,
        budget_lambda=0.1,
        target_gmacs=10.0,
        drop_path=0.5,
        clip_norm=5.0,
        final_learning_rate=5e-6,
        repeats=1,
    )
    return config.to_config_dict(made)
