"""Your own images: from a pretrained DeiT-S to one of half its MACs that knows your classes.

    python -m spvit_jax.main --config=configs/own_data.py:$HOME/flowers --workdir=/tmp/flowers

The folder holds train/CLASS/*.jpg and val/CLASS/*.jpg, or just CLASS/*.jpg: then a tenth of each
class is held out as val (``--config.data.val_share``, ``--config.data.val_seed``). The head is
replaced by one for as many classes as there are. Weights are downloaded from timm's repository;
another model is ``--config.model.variant=swin_tiny_patch4_window7_224`` with its
``--config.model.checkpoint``, or an empty variant for whatever plain ViT or Swin timm trained.

Meant for one GPU or a TPU board; a laptop will take long (``--config.model.variant=
deit_tiny_patch16_224`` and its checkpoint help). The new head is learnt during the search, so
fine-tuning goes on from the searched weights. Epochs and rates are for some thousands of images
and are a place to start: nobody has tuned them.
``:stage=evaluate`` measures ``--config.model.checkpoint`` on
``--config.data.source=folder:PATH``; ``:tiny`` takes about a minute on packaged images.
"""

from pathlib import Path
from typing import Any

import ml_collections

from spvit_jax import config, recipes

TRAINING: dict[str, Any] = {"batch_size": 64, "learning_rate": 1e-4, "label_smoothing": 0.1}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is a folder of images, "", "stage=evaluate" or "tiny"."""
    folder = Path(variant or "images").expanduser()
    if not folder.is_dir():
        recipes.check_variant(variant, "FOLDER", "stage=evaluate", "tiny")
    has_val = (folder / "val").is_dir()
    made = config.Config(
        stage="evaluate" if variant == "stage=evaluate" else "all",
        model=config.Model(
            variant="deit_small_patch16_224",
            checkpoint="hf-hub:timm/deit_small_patch16_224.fb_in1k",
            drop_path=0.1,
        ),
        data=config.Data(
            source=f"folder:{folder}",
            test_split="val",
            val_share=0.0 if has_val else 0.1,
            augment="recipe",
            mixup=0.8,
            cutmix=1.0,
            erasing=0.25,
            eval_batch_size=64,
        ),
        budget=config.Budget(macs=0.5),
        search=config.Search(epochs=10, gate_learning_rate=1e-2, **TRAINING),
        finetune=config.Finetune(
            epochs=50, schedule="cosine", final_learning_rate=1e-6, start="searched", **TRAINING
        ),
    )
    return config.to_config_dict(recipes.tiny(made) if variant == "tiny" else made)
