"""DeiT-B on ImageNet with the released recipe: from 17.5 GMACs towards 6.

    python -m spvit_jax.main --config=configs/deit_b.py --workdir=/tmp/deit_b

The released search used 8 GPUs, 128 images each; its model has 8.39 GMACs. What the variants do,
what they need and where they differ from the released runs is said in ``spvit_jax/recipes.py``.

architectures/spvit_deit_base_33.json, beside the published architecture, was searched with
``--config.budget.macs=10e9 --config.search.budget_lambda=6``.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "stage=finetune", "distill", "beyond", "stage=evaluate" or "tiny"."""
    made = recipes.released(
        variant,
        model="deit_base_patch16_224",
        checkpoint="https://dl.fbaipublicfiles.com/deit/deit_base_patch16_224-b5f2ef4d.pth",
        distilled="https://dl.fbaipublicfiles.com/deit/"
        "deit_base_distilled_patch16_224-df68dfff.pth",
        architecture=Path(__file__).parent / "architectures" / "spvit_deit_base.json",
        gate_learning_rate=1e-3,
        budget_macs=6.0e9,
        budget_lambda=0.08 * 6.0**2,
    )
    return config.to_config_dict(made)
