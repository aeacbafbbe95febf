"""The models that teach, or that another one's features are compared with."""

import dataclasses

from spvit_jax.checkpoint_options import facts_in
from spvit_jax.config import Config, ConfigError
from spvit_jax.convert import About, CheckpointError, Facts, about_of, load, read_spec
from spvit_jax.convert.load import resized
from spvit_jax.models import Classifier, Spec, ViTSpec
from spvit_jax.pretrained import address, check_channels, check_names, classes_known, dtype_of
from spvit_jax.single_path.prune import form
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.teacher import Teacher, freeze


def load_teacher(config: Config, student: Spec, features: bool = False) -> Teacher:
    """The teacher of ``config``, for the images and classes of ``student``.

    Args:
      config: of the run.
      student: the dense model's spec.
      features: its blocks' outputs teach, so that its head does not matter.

    Raises:
      ConfigError: it knows other classes, or images of other channels than teacher.mean has.
      convert.CheckpointError: the file is not one that converts, or its model, pruned for another
        image size, cannot see the student's.
    """
    teacher, data = config.teacher, config.data
    dtype, size, how = dtype_of(teacher.dtype), student.image_size, "teacher.mean and std"
    if not teacher.checkpoint:
        normalise = Normalise(teacher.mean or data.mean, teacher.std or data.std)
        check_channels(normalise.mean, getattr(student, "channels", 3), how)
        where = address(config.model.checkpoint)
        facts = Facts.of(**facts_in(config.model))
        return freeze(load(where, student, facts=facts, dtype=dtype), normalise)
    where = address(teacher.checkpoint)
    facts = Facts.of(teacher.heads)
    model = load(where, image_size=size, facts=facts, dtype=dtype)
    if features and form(model) == "dense":
        wanted = dataclasses.replace(_as_read(model.spec, student), classes=student.classes)
        model = load(where, wanted, facts=facts, dtype=dtype)
    own: About = model.about or About()
    mean, std = teacher.mean or own.mean or data.mean, teacher.std or own.std or data.std
    check_channels(mean, getattr(model.spec, "channels", 3), how)
    if not features:
        _check_classes(config, model.spec, student)
    if form(model) == "supernet":
        raise ConfigError(
            f"teacher.checkpoint={teacher.checkpoint} is a supernet; give a dense, fine-tuned or"
            " folded model"
        )
    return freeze(model, Normalise(mean, std))


def load_reference(config: Config, spec: Spec) -> Classifier:
    """The model that an evaluation without labels compares features with: ``teacher.checkpoint``.

    Raises:
      ConfigError: there is none.
      convert.CheckpointError: the file is not one that converts.
    """
    if not config.teacher.checkpoint:
        raise ConfigError(
            "without labels, or a head that tells them, a model is evaluated by how near its"
            " features are to another's; set teacher.checkpoint to the dense model it came from"
        )
    where = address(config.teacher.checkpoint)
    return load(where, spec, facts=Facts.of(**facts_in(config.model)), dtype=dtype_of("float32"))


def _distillations(config: Config) -> dict[str, str]:
    """What the trainings of the stage that distil learn from a teacher, by their names."""
    kinds = {name: getattr(config, name).distillation for name in config.trainings}
    return {name: kind for name, kind in kinds.items() if kind != "none"}


def distils(config: Config) -> bool:
    """Whether a training of the stage distils from the model in teacher.checkpoint."""
    return bool(config.teacher.checkpoint and _distillations(config))


def teacher_spec(config: Config, student: Spec) -> Spec:
    """The spec of the dense model that the one in teacher.checkpoint is, or comes from."""
    facts = Facts.of(config.teacher.heads, asked=student.image_size)
    return read_spec(address(config.teacher.checkpoint), facts)


def check_teachers(config: Config, student: Spec, class_names: tuple[str, ...] = ()) -> list[str]:
    """Loads the teachers of the stage's trainings, so that what is wrong is known at its begin.

    Args:
      config: of the run.
      student: the dense model's spec.
      class_names: the data's, which a teacher's head has to know; (): not known.

    Returns:
      A sentence where it knows other ones.

    Raises:
      ConfigError, convert.CheckpointError: see ``load_teacher`` and ``check_stream``; or a teacher
        knows the classes in another order.
    """
    file, kinds = config.teacher.checkpoint, _distillations(config)
    if not file:
        _check_own(config, student)
    for name in [name for name, kind in kinds.items() if file and kind == "features"]:
        try:
            read = _as_read(resized(teacher_spec(config, student), student.image_size), student)
        except CheckpointError as error:
            raise type(error)(f"teacher.checkpoint={file}: {error}") from error
        check_stream(name, file, read, student)
    for features in {kind == "features" for kind in kinds.values()}:
        load_teacher(config, student, features)
    if not file or not {"hard", "soft"} & set(kinds.values()):
        return []  # of the run's own dense model ``load_dense`` says it
    return check_names(f"teacher.checkpoint={file}", about_of(file).class_names, class_names)


def _check_own(config: Config, student: Spec) -> None:
    """Raises ConfigError where the run's own dense model would teach by a head yet untrained."""
    taught = [n for n, kind in _distillations(config).items() if kind in ("hard", "soft")]
    if not taught:
        return
    known = classes_known(config)
    if known != student.classes:
        knows = f"knows {known} classes" if known else "has no head"
        raise ConfigError(
            f"{taught[0]}.distillation learns from the run's own dense model, and its head would be"
            f" a fresh one: model.checkpoint={config.model.checkpoint} {knows}, the model"
            f" {student.classes} classes; set teacher.checkpoint to a model that knows these"
            f" classes, or {taught[0]}.distillation=none or features"
        )


def _check_classes(config: Config, teacher: Spec, student: Spec) -> None:
    if teacher.classes != student.classes:
        raise ConfigError(
            f"teacher.checkpoint={config.teacher.checkpoint} knows {teacher.classes} classes, the"
            f" student {student.classes}; a teacher must know the same ones, in the same order"
        )


def _as_read(teacher: Spec, student: Spec) -> Spec:
    """A teacher's spec, whose patches leave the last block where the student's do."""
    if isinstance(teacher, ViTSpec) and isinstance(student, ViTSpec):
        return dataclasses.replace(teacher, patches=student.patches)
    return teacher


def check_stream(training: str, file: str, teacher: Spec, student: Spec) -> None:
    """Raises ConfigError unless the blocks of both give tokens of the same shapes.

    Args:
      training: its name, for the message, as is the teacher's ``file``.
      teacher, student: at the same image size.
    """
    shapes = [
        [(block.read, block.width) for block in getattr(spec, "blocks", ())]
        for spec in (teacher, student)
    ]
    if shapes[0] != shapes[1] or not shapes[0]:
        texts = [
            f"{len(blocks)} blocks, of {blocks[0]} to {blocks[-1]} (tokens, width)"
            if blocks
            else "no blocks of tokens"
            for blocks in shapes
        ]
        raise ConfigError(
            f"{training}.distillation=features needs a teacher of the student's shape;"
            f" teacher.checkpoint={file} has {texts[0]}, the student {texts[1]}; choose another"
            f" teacher, or {training}.distillation=soft or hard, for which any will do"
        )
