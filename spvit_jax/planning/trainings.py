"""The trainings of a run as shapes only: nothing is downloaded, and no weight is made."""

import dataclasses
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax import pretrained, teachers
from spvit_jax.config import Config, ConfigError, Training
from spvit_jax.convert import forms
from spvit_jax.data import splits
from spvit_jax.data.sources import open_source
from spvit_jax.models import VARIANTS, Classifier
from spvit_jax.single_path import architecture as architectures
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.gating import Gating
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.recipe import Recipe
from spvit_jax.training.teacher import Teacher, freeze

KNOWN = {"tfds:imagenet2012": ({"train": 1_281_167, "validation": 50_000}, 1000)}


@dataclasses.dataclass(frozen=True)
class Images:
    """How large the data is."""

    train: int
    test: int
    classes: int

    @classmethod
    def of(cls, data: Any) -> "Images":
        """That of ``config.Data``: ImageNet's is known, other data is looked at.

        Raises:
          DataError: the data is not there.
        """
        if data.source in KNOWN:
            sizes, classes = KNOWN[data.source]
            train, test = (_count(split, sizes) for split in (data.train_split, data.test_split))
            if train and test:
                return cls(train, test, classes)
        sources = [open_source(data, split) for split in (data.train_split, data.test_split)]
        return cls(len(sources[0]), len(sources[1]), len(sources[1].class_names))


def _count(split: str, sizes: dict[str, int]) -> int:
    """Images of a split, which may be a slice; 0 where there is no such split."""
    name = splits.parse(split).split_name
    if name not in sizes:
        return 0
    start, stop = splits.bounds(split, sizes[name])
    return stop - start


@dataclasses.dataclass(frozen=True)
class Planned:
    """One training of a run."""

    name: str  # of its stage
    recipe: Recipe
    model: Classifier  # of shapes only, as is the teacher
    teacher: Teacher | None
    remark: str  # on what had to be assumed; "": nothing


def trainings(config: Config, images: Images) -> Iterator[Planned]:
    """The trainings that ``config.stage`` takes, in their order.

    Raises:
      ConfigError: it takes none, or the config cannot run.
      ArchitectureError, BudgetError: as in the run itself.
    """
    names = config.trainings
    if not names:
        raise ConfigError(
            f"stage={config.stage} trains nothing that could be planned; choose all, search,"
            " finetune or pretrain"
        )
    spec: Any = pretrained.dense_spec(config, images.classes)
    options = pretrained.options(config, spec)
    for name in names:
        training: Training = getattr(config, name)
        gating, remark = None, ""
        if name == "search":
            gating = Gating.of(config.search, config.budget, spec)
            gating.project(gating.initial())  # an impossible budget is an error before it
            model = forms.build(spec, "supernet", ops=gating.space.ops, **options)
        elif name == "finetune":
            architecture, remark = _architecture(config, spec)
            model = forms.build(spec, "shared", architecture, **options)
        else:
            model = forms.build(spec, "dense", **options)
        teacher = None
        if training.distillation != "none":
            teacher, origin = _teacher(config, spec, name)
            remark = "; ".join(filter(None, (remark, origin)))
        recipe = Recipe.of(config, training, images.train, spec.classes, gating=gating)
        yield Planned(name, recipe, model, teacher, remark)


def _architecture(config: Config, spec: Any) -> tuple[Architecture, str]:
    """What is fine-tuned; before it is chosen, some architecture that fits its budget."""
    file = config.finetune.architecture
    if file:
        return architectures.load(file), f"fine-tunes {file}"
    rng = np.random.default_rng(config.seed)
    gating = Gating.of(config.search, config.budget, spec)
    logits = jax.tree.map(lambda x: rng.standard_normal(x.shape), gating.initial())
    remark = (
        "what will be chosen is not known: fine-tunes random blocks within the same budget"
        " (--config.finetune.architecture=FILE.json plans for that one)"
    )
    return gating.project(logits), remark


def _teacher(config: Config, student: Any, training: str) -> tuple[Teacher, str]:
    """The teacher's shapes, and where they are from: a file named after a variant is one."""
    teacher, data = config.teacher, config.data
    file = PurePosixPath(teacher.checkpoint.removeprefix("packaged:")).name
    variant = max((name for name in VARIANTS if file.startswith(name)), key=len, default="")
    if file and not variant:
        teachers.check_teachers(config, student)
        features = getattr(config, training).distillation == "features"
        known = teachers.load_teacher(config, student, features)
        shapes = jax.eval_shape(lambda: known.state)
        return dataclasses.replace(known, state=shapes), f"the teacher is {teacher.checkpoint}"
    spec: Any = student
    if variant:
        size = {"classes": student.classes, "image_size": student.image_size}
        spec = dataclasses.replace(VARIANTS[variant], **size)
        if getattr(config, training).distillation == "features":
            teachers.check_stream(training, teacher.checkpoint, spec, student)
    dtype = None if teacher.dtype == "float32" else jnp.dtype(teacher.dtype)
    graph, state = nnx.split(forms.build(spec, "dense", dtype=dtype))
    normalise = Normalise(teacher.mean or data.mean, teacher.std or data.std)
    shapes = jax.eval_shape(lambda state: freeze(nnx.merge(graph, state), normalise).state, state)
    return Teacher(graph, shapes, normalise), f"the teacher is a {variant or 'copy, dense'}"
