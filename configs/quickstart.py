"""The whole method in minutes on a laptop: Fashion-MNIST, half of the MACs, no download.

    python -m spvit_jax.main --config=configs/quickstart.py --workdir=/tmp/spvit

Everything it needs is packaged: a DeiT pretrained on Fashion-MNIST's 60,000 training images (see
the README for how), 10,000 of those images to search and fine-tune on, 2,000 test images. The dense
model teaches the pruned one.
``:label_free`` makes no search and reads no label: choices are scored on 512 images, what is left
is repaired by least squares, then trained for 4 epochs to match the dense model's blocks.
``:tiny`` takes about a minute, most of it compiling; ``:stage=evaluate`` measures the pretrained
model, or another ``--config.model.checkpoint``, such as the pruned.safetensors of a run.
"""

import dataclasses

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "label_free", "tiny" or "stage=evaluate"."""
    recipes.check_variant(variant, "label_free", "tiny", "stage=evaluate")
    made = config.Config(
        model=config.Model(
            variant="deit_fashion_mnist",
            checkpoint="packaged:deit_fashion_mnist",
            dropout=0.05,
            drop_path=0.1,
        ),
        data=config.Data(
            source="packaged:fashion_mnist",
            augment="flip",
            **recipes.FASHION_MNIST,
        ),
        teacher=config.Teacher(dtype="float32"),  # the dense model itself, on CPU
        budget=config.Budget(macs=0.5),
        search=config.Search(
            epochs=3,
            batch_size=64,
            learning_rate=3e-4,
            gate_learning_rate=3e-2,
            label_smoothing=0.1,
        ),
        finetune=config.Finetune(
            epochs=8,
            batch_size=64,
            learning_rate=5e-4,
            schedule="cosine",
            final_learning_rate=1e-5,
            start="searched",
            label_smoothing=0.1,
            distillation="soft",
            distillation_weight=0.9,
            distillation_temperature=2.0,
        ),
        checkpoint_every=100,
        log_every=10,
        measure_batch=64,
        measure_seconds=5.0,
    )
    if variant == "label_free":
        made.search.decision = "score"
        made.finetune = dataclasses.replace(
            made.finetune,
            epochs=4,
            learning_rate=3e-4,
            start="repaired",
            distillation="features",
            distillation_weight=1.0,
        )
    if variant == "stage=evaluate":
        made.stage = "evaluate"
    return config.to_config_dict(recipes.tiny(made) if variant == "tiny" else made)
