"""Swin-B on ImageNet with the released recipe: from 15.4 GMACs towards 10.

    python -m spvit_jax.main --config=configs/swin_b.py --workdir=/tmp/swin_b

The released search used 8 GPUs, 128 images each; its model has 11.39 GMACs. What the variants do,
what they need and where they differ from the released runs is said in ``spvit_jax/recipes.py``.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "beyond", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="swin_base_patch4_window7_224",
        checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
        "swin_base_patch4_window7_224.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_swin_base.json",
        gate_learning_rate=1e-3,
        budget_macs=10.0e9,
        budget_lambda=0.1 * 10.0**2,
        drop_path=0.5,
        clip_norm=5.0,
        final_learning_rate=5e-6,
        repeats=1,
    )
    return config.to_config_dict(made)
