"""DeiT-Ti on ImageNet with the released recipe: from 1.25 GMACs towards 1.

    python -m spvit_jax.main --config=configs/deit_ti.py --workdir=/tmp/deit_ti

The released search used 4 GPUs, 256 images each; its model has 1.04 GMACs. What the variants do,
what they need and where they differ from the released runs is said in ``spvit_jax/recipes.py``.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "beyond", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="deit_tiny_patch16_224",
        checkpoint="https://dl.fbaipublicfiles.com/deit/deit_tiny_patch16_224-a1311bcf.pth",
        distilled="https://dl.fbaipublicfiles.com/deit/"
        "deit_tiny_distilled_patch16_224-b40b3cf7.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_deit_tiny.json",
        gate_learning_rate=1e-3,
        budget_macs=1.0e9,
        budget_lambda=20.0 * 1.0**2,
    )
    return config.to_config_dict(made)
