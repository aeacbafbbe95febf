"""Swin-S on ImageNet with the released recipe: from 8.75 GMACs towards 5.5.

    python -m spvit_jax.main --config=configs/swin_s.py --workdir=/tmp/swin_s

The released search used 8 GPUs, 128 images each; its model has 6.14 GMACs. What the variants do,
what they need and where they differ from the released runs is said in ``spvit_jax/recipes.py``.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "beyond", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="swin_small_patch4_window7_224",
        checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
        "swin_small_patch4_window7_224.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_swin_small.json",
        gate_learning_rate=1e-3,
        budget_macs=5.5e9,
        budget_lambda=0.4 * 5.5**2,
        drop_path=0.3,
        clip_norm=5.0,
        final_learning_rate=5e-6,
        repeats=1,
    )
    return config.to_config_dict(made)
