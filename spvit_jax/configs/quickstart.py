"""A pretrained ViT at half of its MACs in minutes, without labels, on two CPU cores.

    python -m spvit_jax.main --config=configs/quickstart.py --workdir=/tmp/spvit

scores every choice in a DeiT trained on Fashion-MNIST on 2,048 unlabelled images, finds how many
tokens to merge and what to keep, repairs the rest by least squares, tries that against simpler
architectures, matches what its blocks put out to the dense model's for 4 epochs, and measures it.
Weights and images come with the project, and labels only say how good it is;
``--config.search.epochs=3`` lets a search that starts from the scores decide instead.

``:paper`` is the paper's way: 3 epochs of search by gates, then 8 of fine-tuning with labels and
the dense model's logits. ``:tiny`` does everything in about a minute. ``:stage=evaluate`` measures
the dense model, or another ``--config.model.checkpoint``.
"""

import ml_collections

from spvit_jax import config, recipes


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """``variant`` is "", "paper", "tiny" or "stage=evaluate"."""
    recipes.check_variant(variant, "paper", "tiny", "stage=evaluate")
    made = config.Config(
        stage="evaluate" if variant == "stage=evaluate" else "all",
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
        score=config.Score(images=2048),
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
    if variant != "paper":
        made = recipes.beyond(made, epochs=4, learning_rate=1e-3)
    return config.to_config_dict(recipes.tiny(made) if variant == "tiny" else made)
