"""The networks a run starts from: its dense model, and the one it only evaluates."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from spvit_jax.checkpoint_options import facts_in
from spvit_jax.config import Config, ConfigError
from spvit_jax.convert import About, CheckpointError, Facts, about_of, load, read_spec
from spvit_jax.convert.fetch import fetch
from spvit_jax.convert.load import resized
from spvit_jax.convert.native import is_native
from spvit_jax.models import VARIANTS, Classifier, RegNetSpec, Spec, SwinSpec, ViTSpec
from spvit_jax.single_path.prune import form, prune
from spvit_jax.sizes import shown

TRAINED_ONLY = ("pretrain", "evaluate")  # the stages that a network without attention can take


def dense_spec(config: Config, data_classes: int) -> Spec:
    """The dense model's spec, for data of ``data_classes`` classes.

    Raises:
      ConfigError: no such variant, or one that does not fit the data, the image size or the stage.
      convert.CheckpointError: the variant is "" and the checkpoint does not say what it is.
    """
    model = config.model
    if model.variant not in ("", *VARIANTS):
        raise ConfigError(
            f"model.variant must be one of {', '.join(VARIANTS)}, or empty to read the shapes in"
            f" model.checkpoint; got {model.variant!r}"
        )
    if model.variant:
        spec = VARIANTS[model.variant]
    else:
        spec = read_spec(address(model.checkpoint), Facts.of(**facts_in(model)))
    if isinstance(spec, RegNetSpec) and config.stage not in TRAINED_ONLY:
        raise ConfigError(
            f"model.variant={model.variant}: a RegNetY has no attention to prune; choose a ViT or"
            " Swin, and give the RegNetY as teacher.checkpoint"
        )
    spec = dataclasses.replace(spec, classes=_classes(config, spec, data_classes))
    check_channels(config.data.mean, getattr(spec, "channels", 3), "data.mean and data.std")
    if model.patches and isinstance(spec, ViTSpec):
        spec = dataclasses.replace(spec, patches=True)
    try:
        return resized(spec, model.size)
    except CheckpointError as error:
        raise ConfigError(f"model.{error}") from error


def check_channels(mean: tuple[float, ...], channels: int, options: str) -> None:
    """Raises ConfigError unless images are given as the model sees them: ``options`` say how."""
    if channels not in (1, 3):
        raise ConfigError(
            f"the model sees images of {channels} channels, and here images are grey or RGB; from"
            " Python it takes whatever arrays have so many"
        )
    if len(mean) != channels:
        kinds = {1: "grey images: give one number each", 3: "RGB images: give three numbers each"}
        raise ConfigError(f"the model sees {kinds[channels]} for {options}; got {len(mean)}")


def _classes(config: Config, spec: Spec, data_classes: int) -> int:
    """How many classes the dense model tells apart; 0: its features are wanted."""
    model = config.model
    if model.output == "features":
        return 0
    classes = model.classes or data_classes or spec.classes
    if classes < data_classes:
        raise ConfigError(f"model.classes={classes}, but the data has {data_classes}; set it to 0")
    if model.output == "logits" and not classes:
        raise ConfigError(
            "model.output=logits needs a head, and neither the checkpoint has one nor the data"
            " labels to learn one from; set model.output=features"
        )
    return classes


def address(checkpoint: str) -> str:
    """The address of a checkpoint of the config, which has to have one."""
    if not checkpoint:
        raise ConfigError(
            "model.checkpoint is empty: all stages but pretrain start from pretrained weights;"
            " give a .pth or .safetensors file, or an https://, hf-hub: or gs:// address"
        )
    return checkpoint


def options(config: Config, spec: Spec) -> dict[str, Any]:
    """How the dense model computes and is regularised."""
    model = config.model
    if isinstance(spec, RegNetSpec):
        return {"dtype": dtype_of(model.dtype)}
    return {
        "dropout": model.dropout,
        "drop_path": model.drop_path,
        "dtype": dtype_of(model.dtype),
        "remat": model.remat,
    }


def classes_known(config: Config) -> int:
    """How many classes the model in model.checkpoint tells apart; 0: it has no head."""
    where = address(config.model.checkpoint)
    return int(read_spec(where, _facts(config, where)).classes)


def load_dense(
    config: Config, spec: Spec, notes: list[str], class_names: tuple[str, ...] = ()
) -> Classifier:
    """Loads the dense model with its pretrained weights.

    Args:
      config: of the run.
      spec: by ``dense_spec``.
      notes: gets what had to be changed.
      class_names: that its own head has to know; (): the head is a fresh one, or there are none.

    Raises:
      ConfigError: it has these classes in another order.
      convert.CheckpointError: not a checkpoint that converts.
    """
    where = address(config.model.checkpoint)
    facts = Facts.of(**facts_in(config.model))
    dense = load(where, spec, facts=facts, notes=notes, **options(config, spec))
    about = about_of(where)
    notes += check_names(f"model.checkpoint={where}", about.class_names, class_names)
    notes += _seen_otherwise(about, config)
    return dense


def load_trained(config: Config, spec: Spec, notes: list[str]) -> Classifier:
    """The model in model.checkpoint as an evaluation needs it: trained, of whatever form it is.

    Args:
      spec: the dense model's, by ``dense_spec``: its classes are those that are expected.
      notes: gets a sentence on each thing the user should know of it.

    Raises:
      ConfigError: its head is of other classes, or it is not the variant or the size asked for.
      convert.CheckpointError: not a checkpoint that converts.
    """
    model, where = config.model, address(config.model.checkpoint)
    dtype, facts = dtype_of(model.dtype), _facts(config, where)
    network = load(where, facts=facts, notes=notes, dtype=dtype)
    _check_trained(config, network.spec, spec.classes)
    if form(network) == "dense":
        wanted = (
            spec if not spec.classes else dataclasses.replace(spec, classes=network.spec.classes)
        )
        if wanted == network.spec:
            return network
        return load(where, wanted, facts=facts, notes=notes, dtype=dtype)
    network = decided(network, notes)
    _check_pruned(config, network.spec, spec)
    if model.variant:
        notes.append(
            f"model.checkpoint is a pruned model ({form(network)} form), evaluated as it is"
        )
    return network


def _check_trained(config: Config, spec: Spec, wanted: int) -> None:
    """Raises ConfigError unless the head of a model is one of ``wanted`` classes."""
    if wanted and not spec.classes:
        raise ConfigError(
            f"model.checkpoint={config.model.checkpoint} has no head that knows the data's"
            f" {wanted} classes; set model.output=features to measure its features"
        )
    if wanted and spec.classes != wanted:
        demand = "model.classes asks for" if config.model.classes else "the data has"
        raise ConfigError(
            f"model.checkpoint={config.model.checkpoint} knows {spec.classes} classes, {demand}"
            f" {wanted}; evaluate a model trained on this data (stage=finetune makes one), or,"
            f" where the data's classes are the model's first ones, set"
            f" model.classes={spec.classes}"
        )


def _check_pruned(config: Config, spec: Spec, wanted: Spec) -> None:
    """Raises ConfigError unless a pruned model comes from the variant and size asked for."""
    model = config.model
    if model.size not in (0, spec.image_size):
        raise ConfigError(
            f"model.checkpoint={model.checkpoint} is a pruned model for images of"
            f" {shown(spec.image_size)} pixels; set model.image_size to that, not"
            f" {shown(model.size)}"
        )
    if model.patches and not isinstance(spec, RegNetSpec) and spec.blocks[-1].class_only:
        raise ConfigError(
            f"model.checkpoint={model.checkpoint} was pruned for its class token alone, so that"
            " there are no patches; set model.patches=false"
        )
    shapes = [[block.width for block in getattr(s, "blocks", ())] for s in (spec, wanted)]
    if type(spec) is not type(wanted) or shapes[0] != shapes[1]:
        raise ConfigError(
            f"model.checkpoint={model.checkpoint} is no pruned {model.variant}: it has blocks of"
            f" {shapes[0]} features; set model.variant to the one it comes from, or to nothing"
        )


def decided(model: Classifier, notes: list[str]) -> Classifier:
    """A supernet pruned as its gates decide, with a note of that; others as they are.

    Raises:
      CheckpointError: a supernet that does not say what its gates decide.
    """
    if form(model) != "supernet":
        return model
    if model.architecture is None:
        raise CheckpointError(
            "a supernet without gate logits computes nothing by itself; give a dense, fine-tuned or"
            " folded model"
        )
    ops = " ".join(model.architecture.ops)
    notes.append(f"the checkpoint is a supernet, pruned as its gates decide: {ops}")
    return prune(model, model.architecture)


def check_about(about: About, config: Config, class_names: tuple[str, ...]) -> list[str]:
    """A sentence on each thing that a model was trained on and the config has otherwise.

    Raises:
      ConfigError: the model has the data's classes in another order.
    """
    checkpoint = f"model.checkpoint={config.model.checkpoint}"
    notes = check_names(checkpoint, about.class_names, class_names)
    return notes + _seen_otherwise(about, config)


def check_names(model: str, names: tuple[str, ...], class_names: tuple[str, ...]) -> list[str]:
    """A sentence where the classes of ``model`` have other names than the data's, or none.

    Raises:
      ConfigError: it has the data's classes in another order.
    """
    if names != class_names and sorted(names) == sorted(class_names):
        place = next(i for i, name in enumerate(names) if name != class_names[i])
        raise ConfigError(
            f"{model} has the data's classes in another order: number {place} is"
            f" {names[place]!r}, the data's {class_names[place]!r}; take data in its own order, or"
            " another model"
        )
    if not names or names[: len(class_names)] == class_names:
        return []
    return [
        f"the classes of {model} have other names than the data's: {names[0]!r}, …, not"
        f" {class_names[0]!r}, …"
    ]


def _seen_otherwise(about: About, config: Config) -> list[str]:
    """A sentence on each way in which images are prepared otherwise than the model knows them.

    And one on those of which nobody knows whether they are.
    """
    notes = []
    if about.unsaid:
        taken = ", ".join(f"data.{name}={getattr(config.data, name)}" for name in about.unsaid)
        notes.append(
            f"model.checkpoint does not say with which {', '.join(about.unsaid)} it was trained:"
            f" {taken} are taken"
        )
    for name in ("mean", "std", "crop_ratio"):
        trained, now = getattr(about, name), getattr(config.data, name)
        if trained and trained != now:
            notes.append(f"the model was trained with data.{name}={trained}, now it is {now}")
    return notes


def _facts(config: Config, where: str) -> Facts:
    """What the configuration says of model.checkpoint, by its variant as well."""
    model, facts = config.model, Facts.of(**facts_in(config.model))
    if model.variant and not is_native(fetch(where)):  # a file of ours says its heads
        facts = facts.over(Facts.of(_heads(VARIANTS[model.variant])))
    return facts


def _heads(spec: Spec) -> int:
    """What a checkpoint of a variant may leave unsaid: its heads, a Swin's in the first stage."""
    if isinstance(spec, RegNetSpec):
        return 0
    return spec.heads[0] if isinstance(spec, SwinSpec) else spec.heads


def dtype_of(name: str) -> jnp.dtype | None:
    """None computes in the dtype of the parameters."""
    return None if name == "float32" else jnp.dtype(name)
