"""DeiT-S on ImageNet with the released recipe: from 4.59 GMACs towards 3.2.

    python -m spvit_jax.main --config=configs/deit_s.py --workdir=/tmp/deit_s

The released search used 8 GPUs, 128 images each; its model has 3.35 GMACs. What the variants do,
what they need and where they differ from the released runs is said in ``spvit_jax/recipes.py``.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "beyond", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="deit_small_patch16_224",
        checkpoint="https://dl.fbaipublicfiles.com/deit/deit_small_patch16_224-cd65a155.pth",
        distilled="https://dl.fbaipublicfiles.com/deit/"
        "deit_small_distilled_patch16_224-649709d9.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_deit_small.json",
        gate_learning_rate=5e-4,
        budget_macs=3.2e9,
        budget_lambda=3.0 * 3.2**2,
    )
    return config.to_config_dict(made)
