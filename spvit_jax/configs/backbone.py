"""A backbone without a head, such as DINOv2, made smaller on a folder of images without labels.

    python -m spvit_jax.main --config=configs/backbone.py:$HOME/photos --workdir=/tmp/backbone

The folder holds images, in no class folders; a fifth of them is held out to say how near the
features of class token and patches stay to the dense model's. Weights are a folder, a file or a
hub repository in the names of transformers, timm, open_clip or DINOv2:
``--config.model.checkpoint=hf-hub:timm/vit_small_patch14_reg4_dinov2.lvd142m``. What is wanted of
the patches says ``--config.model.patches=false``, where it is nothing.

Half of the MACs; tokens are merged, heads, units and whole attentions taken out and the rest
repaired by least squares; then the blocks are matched to the dense model's for ten epochs. On 200
photos and a ViT-S/14 500 steps of that brought nothing: with as few images, leave it out
(``--config.stage=frontier``).
That gives the whole curve, without training. ``:stage=evaluate``
measures ``--config.model.checkpoint`` on ``--config.data.source=folder:PATH`` against the dense
model in ``--config.teacher.checkpoint``. ``:tiny`` takes about a minute on packaged images.
"""

from pathlib import Path

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is a folder of images, "", "stage=evaluate" or "tiny"."""
    folder = Path(variant or "images").expanduser()
    if not folder.is_dir():
        recipes.check_variant(variant, "FOLDER", "stage=evaluate", "tiny")
    made = config.Config(
        stage="evaluate" if variant == "stage=evaluate" else "all",
        model=config.Model(
            variant="",
            checkpoint="hf-hub:facebook/dinov2-small",
            image_size=(224,),
            output="features",
            patches=True,
        ),
        data=config.Data(
            source=f"folder:{folder}",
            train_split="train[:80%]",
            test_split="train[80%:]",
            augment="plain",
            eval_batch_size=20,
        ),
        budget=config.Budget(macs=0.5),
        search=config.Search(
            epochs=0, ops=("skip", "msa"), axes=("op", "heads", "dims", "tokens", "ffn")
        ),
        shortlist=config.Shortlist(candidates=0, images=100),
        finetune=config.Finetune(
            epochs=10,
            batch_size=8,
            learning_rate=2e-5,
            schedule="cosine",
            start="repaired",
            distillation="features",
            distillation_weight=1.0,
        ),
        eval_every=0.0,
        measure_batch=8,
    )
    return config.to_config_dict(recipes.tiny(made) if variant == "tiny" else made)
