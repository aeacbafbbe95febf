"""What the loss sees of a batch: images normalised, erased and mixed, and what a teacher says."""

from typing import Any

import jax

from spvit_jax.training.losses import smooth_targets
from spvit_jax.training.mixup import mixup_cutmix, random_erasing
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.step import Batch
from spvit_jax.training.teacher import Teacher


def prepare_images(
    batch: Batch,
    key: jax.Array,
    frozen: Any = None,
    *,
    normalise: Normalise,
    classes: int,
    erasing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    label_smoothing: float = 0.0,
    teacher: Teacher | None = None,
    features: bool = False,
) -> Batch:
    """Makes "images" ``[b, H, W, 3]``, "targets" ``[b, classes]`` and, with a teacher, "taught".

    Args:
      batch: "image" uint8 ``[b, H, W, 3]``, "label" int32 ``[b]``.
      key: draws erasing, mixup and cutmix; with none of them there is nothing to draw.
      frozen: the teacher's arrays.
      normalise: as the student expects it.
      classes: of the student.
      erasing: the probability, for each image.
      mixup, cutmix: alphas; 0: off.
      label_smoothing: share of each target that is spread over all classes.
      teacher: sees the images the student sees, mixed and erased alike.
      features: what it says is the tokens that leave each of its blocks, and not its logits.
    """
    erase_key, mix_key = jax.random.split(key)
    images, labels = normalise(batch["image"]), batch["label"]
    if erasing > 0:
        images = random_erasing(images, erase_key, erasing)
    if mixup == cutmix == 0:
        targets = smooth_targets(labels, classes, label_smoothing)
    else:
        options = {"mixup": mixup, "cutmix": cutmix, "smoothing": label_smoothing}
        images, targets = mixup_cutmix(images, labels, mix_key, classes, **options)
    prepared = {"images": images, "targets": targets}
    if teacher is None:
        return prepared
    says = teacher.stream if features else teacher.logits
    return prepared | {"taught": says(frozen, images, normalise)}
