"""Fashion-MNIST at full size: 60,000 training and 10,000 test images.

    python -m spvit_jax.main --config=configs/fashion_mnist.py --workdir=/tmp/fashion_mnist

scores, repairs, tries and matches the packaged DeiT at half of its MACs, without labels;
``:paper`` searches and fine-tunes it with labels, as the quickstart's. And

    python -m spvit_jax.main --config=configs/fashion_mnist.py:pretrain --workdir=/tmp/pretrain

trains that DeiT from scratch, as its packaged weights were. All take CPU cores; 2 will do.
The images come from TFDS, prepared once by

    tfds build fashion_mnist --file_format=array_record

or, with ``--config.data.source=idx:FOLDER``, from the four original files.
``:tiny`` takes about a minute, on the images packaged with the project. ``:stage=evaluate``
measures the pretrained model, or another ``--config.model.checkpoint``.
"""

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "paper", "pretrain", "stage=evaluate" or "tiny"."""
    recipes.check_variant(variant, "paper", "pretrain", "stage=evaluate", "tiny")
    made = config.Config(
        model=config.Model(
            variant="deit_fashion_mnist",
            checkpoint="packaged:deit_fashion_mnist",
            drop_path=0.1,
        ),
        data=config.Data(
            source="tfds:fashion_mnist",
            augment="flip",
            **recipes.FASHION_MNIST,
        ),
        teacher=config.Teacher(dtype="float32"),  # the dense model itself, on CPU
        budget=config.Budget(macs=0.5),
        search=config.Search(
            epochs=3,
            batch_size=128,
            learning_rate=3e-4,
            gate_learning_rate=1e-2,
            label_smoothing=0.1,
        ),
        finetune=config.Finetune(
            epochs=10,
            batch_size=128,
            learning_rate=5e-4,
            schedule="cosine",
            final_learning_rate=1e-5,
            start="searched",
            label_smoothing=0.1,
            distillation="soft",
            distillation_weight=0.9,
            distillation_temperature=2.0,
        ),
        log_every=10,
    )
    if variant != "paper":
        made = recipes.beyond(made, epochs=4, learning_rate=1e-3)
    if variant == "stage=evaluate":
        made.stage = "evaluate"
    if variant == "pretrain":
        made.stage = "pretrain"
        made.model.checkpoint = ""
        made.pretrain = config.Training(
            epochs=14,
            batch_size=128,
            learning_rate=1e-3,
            schedule="cosine",
            warmup_epochs=0.5,
            final_learning_rate=1e-5,
            weight_decay=0.05,
            clip_norm=1.0,
            label_smoothing=0.1,
        )
    if variant == "tiny":
        made = recipes.tiny(made)
    return config.to_config_dict(made)
