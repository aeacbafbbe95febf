"""Swin-T on ImageNet with the released recipe: from 4.49 GMACs towards 3.2.

    python -m spvit_jax.main --config=configs/swin_t.py --workdir=/tmp/swin_t

The released search used 8 GPUs, 128 images each; its model has 3.33 GMACs. What the variants do,
what they need and where they differ from the released runs is said in ``spvit_jax/recipes.py``.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "beyond", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="swin_tiny_patch4_window7_224",
        checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
        "swin_tiny_patch4_window7_224.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_swin_tiny.json",
        gate_learning_rate=1e-3,
        budget_macs=3.2e9,
        budget_lambda=2.8 * 3.2**2,
        drop_path=0.2,
        clip_norm=5.0,
        final_learning_rate=5e-6,
        repeats=1,
    )
    return config.to_config_dict(made)
