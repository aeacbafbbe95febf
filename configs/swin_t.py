"""Swin-T on ImageNet with the released recipe: from 4.49 GMACs towards 3.2.

    python -m spvit_jax.main --config=configs/swin_t.py --workdir=/tmp/swin_t

Meant for 8 GPUs or TPU cores (the released run used 8, 128 images each). Fewer need
``--config.search.accumulation=8 --config.finetune.accumulation=8``, which takes the 1024 images
of a step in micro-batches. ``:tiny`` takes about a minute on a laptop, most of it compiling.
The images come from TFDS's imagenet2012 as ArrayRecord, which ``python -m spvit_jax.prepare``
makes of the original tars, or from ``--config.data.source=folder:PATH
--config.data.test_split=val``. The weights, a .pth, are downloaded; reading them needs the
``torch`` extra. ``:stage=evaluate`` measures them, or any ``--config.model.checkpoint``.

    python -m spvit_jax.main --config=configs/swin_t.py:stage=finetune --workdir=/tmp/spvit_swin_t

fine-tunes the published architecture, configs/architectures/spvit_swin_tiny.json, without a
search; another one takes its place with ``--config.finetune.architecture=FILE.json``.

    python -m spvit_jax.main --config=configs/swin_t.py:distill --workdir=/tmp/distilled_swin_t

does that for 200 epochs with the RegNetY-16GF that taught DeiT, by hard distillation.

Different on purpose: a 3x3 convolution sees the whole unshifted map during search, as it does
afterwards, where the released search kept it inside windows; a skip adds nothing, where released
ones add norm1(x); the decision is projected to 3.2 GMACs, where the released model has 3.33
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
        model="swin_tiny_patch4_window7_224",
        checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
        "swin_tiny_patch4_window7_224.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_swin_tiny.json",
        gate_learning_rate=1e-3,
        budget_lambda=2.8,
        target_gmacs=3.2,
        drop_path=0.2,
        clip_norm=5.0,
        final_learning_rate=5e-6,
        repeats=1,
    )
    return config.to_config_dict(made)
