"""Settings that several files of ``configs/`` share: the released recipe, and ``tiny``.

The ImageNet configs are meant for 4 to 8 GPUs or TPU cores. Fewer need
``--config.search.accumulation=8 --config.finetune.accumulation=8``, which takes the 1024 images of
a step in micro-batches. The images come from TFDS's imagenet2012 as ArrayRecord, which
``python -m spvit_jax.prepare`` makes of the original tars, or from
``--config.data.source=folder:PATH --config.data.test_split=val``. Weights, a .pth, are downloaded;
reading them needs the ``torch`` extra.

Without a variant they search, prune and fine-tune. ``--config=deit_b:stage=finetune`` fine-tunes
the published architecture, one of ``configs/architectures/``, without a search, another one with
``--config.finetune.architecture=FILE.json``; ``:distill`` does it for 200 epochs with the
RegNetY-16GF that taught DeiT, by hard distillation; ``:stage=evaluate`` measures the weights, or
any ``--config.model.checkpoint``; ``:tiny`` takes a minute, on packaged images.

``:beyond`` is this project's own way: half of the MACs, scored on 512 images, tokens merged (but a
Swin's), repaired, tried and matched to the dense model's blocks for 30 epochs without labels; of a
DeiT it takes the distilled one, with both of its heads. Its rates and epochs follow from small
models and from what others report; nobody has run it on ImageNet yet.

They differ from the released runs on purpose: the decision is projected to the target
(``--config.search.decision=threshold`` decides as released, above it); the search takes all of its
20 epochs, where the published architectures were taken after 10 to 20; batch norm sees the global
batch, not one device's; the computation is in bfloat16. In Swin a 3x3 convolution sees the whole
unshifted map during search too, and a skip adds nothing, where released ones add norm1(x).
"""

import dataclasses
import os
from typing import Any

from spvit_jax.config import Budget, Config, ConfigError, Data, Finetune, Model, Search, Shortlist

# 28x28 grey images, which need no crop; mean and std of the training pixels
FASHION_MNIST: dict[str, Any] = {
    "crop_ratio": 1.0,
    "mean": (0.2867, 0.2867, 0.2867),
    "std": (0.354, 0.354, 0.354),
}
BATCH = 1024  # images per step of the released runs
LEARNING_RATE = 5e-5 * BATCH / 512
SHARED: dict[str, Any] = {
    "batch_size": BATCH,
    "learning_rate": LEARNING_RATE,
    "label_smoothing": 0.1,
}


REGNETY_160 = "https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth"  # DeiT's teacher


def released(
    variant: str,
    *,
    model: str,
    checkpoint: str,
    architecture: str | os.PathLike,
    gate_learning_rate: float,
    budget_macs: float,
    budget_lambda: float,
    distilled: str = "",
    drop_path: float = 0.1,
    clip_norm: float = 0.0,
    final_learning_rate: float = 1e-5,
    repeats: int = 3,
) -> Config:
    """The recipe of the released SPViT runs on ImageNet.

    Args:
      variant: ""; "stage=finetune" to fine-tune ``architecture`` without a search; "distill" to do
        so with RegNetY-16GF as the teacher; "beyond"; "stage=evaluate"; or "tiny", which distils.
      model: a row of ``spvit_jax.models.VARIANTS``.
      checkpoint: its pretrained weights.
      architecture: JSON of the published architecture.
      gate_learning_rate, budget_macs: those of its search, MACs counted as published.
      budget_lambda: lambda F*^2 of its search, F* in GMACs.
      distilled: weights of its variant with two heads; "": there is none.
      drop_path, clip_norm, final_learning_rate, repeats: DeiT's unless given.

    Raises:
      ConfigError: another variant.
    """
    check_variant(variant, "tiny", "stage=finetune", "distill", "beyond", "stage=evaluate")
    made = Config(
        model=Model(variant=model, checkpoint=checkpoint, drop_path=drop_path, dtype="bfloat16"),
        data=Data(
            source="tfds:imagenet2012",
            test_split="validation",
            augment="recipe",
            repeats=repeats,
            mixup=0.8,
            cutmix=1.0,
            erasing=0.25,
            workers=8,
            eval_batch_size=BATCH,
        ),
        budget=Budget(macs=budget_macs, count="published"),
        search=Search(
            epochs=20,
            gate_learning_rate=gate_learning_rate,
            budget_lambda=budget_lambda,
            clip_norm=clip_norm,
            **SHARED,
        ),
        finetune=Finetune(
            epochs=130,
            schedule="cosine",
            final_learning_rate=final_learning_rate,
            clip_norm=clip_norm,
            **SHARED,
        ),
    )
    if variant in ("distill", "tiny"):
        made.teacher.checkpoint = REGNETY_160
        made.finetune.distillation = "hard"
        made.finetune.epochs = 200
    if variant in ("distill", "stage=finetune"):
        made.stage = "finetune"
        made.finetune.architecture = os.fspath(architecture)
    if variant == "beyond":
        if distilled:
            made.model.checkpoint = distilled
            made.model.variant = model.replace("_patch", "_distilled_patch")
        return beyond(made, epochs=30, learning_rate=LEARNING_RATE)
    if variant == "stage=evaluate":
        made.stage = "evaluate"
    return tiny(made) if variant == "tiny" else made


def beyond(config: Config, *, epochs: float, learning_rate: float) -> Config:
    """``config`` without search and labels: scored, repaired, tried, matched to the dense model.

    Nothing is dropped and no images are mixed on the way: a block is to do what the dense one does
    on an image.
    """
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dropout=0.0, drop_path=0.0),
        data=dataclasses.replace(config.data, mixup=0.0, cutmix=0.0, erasing=0.0),
        budget=Budget(macs=0.5),
        search=dataclasses.replace(
            config.search,
            epochs=0,
            start="scores",
            axes=_every_axis(config),
            label_smoothing=0.0,
            distillation="features",
            distillation_weight=1.0,
        ),
        shortlist=Shortlist(candidates=3),
        finetune=dataclasses.replace(
            config.finetune,
            epochs=epochs,
            learning_rate=learning_rate,
            schedule="cosine",
            start="repaired",
            label_smoothing=0.0,
            distillation="features",
            distillation_weight=1.0,
        ),
    )


def _every_axis(config: Config) -> tuple[str, ...]:
    """All that the model can lose: a Swin's windows need their tokens."""
    swin = config.model.variant.startswith("swin")
    return ("op", "heads", "dims", *(() if swin else ("tokens",)), "ffn")


def check_variant(variant: str, *known: str) -> None:
    """Raises ``ConfigError`` unless ``variant`` is "" or one of ``known``."""
    if variant not in ("", *known):
        raise ConfigError(
            f"after the colon of --config this file knows {', '.join(known)}; got {variant!r}"
        )


def tiny(config: Config) -> Config:
    """``config`` in about a minute on a laptop: packaged models and images, ten steps per stage.

    Nothing is downloaded. What it finds is worthless; that it runs is the point.
    """
    variant = "swin_fashion_mnist" if config.model.variant[:4] == "swin" else "deit_fashion_mnist"
    teacher = "packaged:regnety_fashion_mnist" if config.teacher.checkpoint else ""
    small: dict[str, Any] = {
        "epochs": 1.0,
        "batch_size": 32,
        "accumulation": 1,
        "warmup_epochs": 0.0,
    }
    search = {} if config.search.epochs else {"epochs": 0.0}
    axes = tuple(axis for axis in config.search.axes if axis != "tokens")  # each schedule compiles
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            variant=variant,
            checkpoint=f"packaged:{variant}",
            image_size=(0,),
            classes=0,
        ),
        teacher=dataclasses.replace(config.teacher, checkpoint=teacher),
        data=dataclasses.replace(
            config.data,
            source="packaged:fashion_mnist",
            directory="",
            train_split="train[:320]",
            test_split="test[:128]",
            workers=0,
            eval_batch_size=64,
            **FASHION_MNIST,
        ),
        pretrain=dataclasses.replace(config.pretrain, **small),
        budget=dataclasses.replace(config.budget, macs=0.5, params=0.0, latency=""),
        score=dataclasses.replace(config.score, images=64, batch_size=16),
        shortlist=dataclasses.replace(
            config.shortlist, candidates=min(config.shortlist.candidates, 2), steps=4, images=32
        ),
        search=dataclasses.replace(config.search, axes=axes, **small | search),
        finetune=dataclasses.replace(config.finetune, **small),
        checkpoint_every=4,
        log_every=2,
        measure_batch=8,
        measure_seconds=0.2,
    )
