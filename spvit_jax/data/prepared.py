"""The sets of TFDS that are prepared on a disk or in a bucket: opening them, and what they lack."""

import contextlib
import importlib
import re
from typing import Any

from etils import epath

from spvit_jax.data.errors import DataError
from spvit_jax.remote import is_remote, is_transient, reading

DESCRIPTION = ("dataset_info.json", "features.json")  # of a set, to TFDS


def tensorflow_datasets() -> Any:
    """The package, which only TFDS's own sets need.

    Raises:
      DataError: it is not installed.
    """
    try:
        return importlib.import_module("tensorflow_datasets")
    except ModuleNotFoundError as error:
        raise DataError(
            f"sets of TFDS, as tfds:NAME is, need {error.name}: pip install 'spvit_jax[tfds]'"
        ) from error


def classification_keys(name: str, info: Any) -> tuple[str, str]:
    """Names the features of a set that are its image and its label.

    Raises:
      DataError: it has none of these kinds.
    """
    tfds, features = tensorflow_datasets(), dict(info.features.items())
    keys = info.supervised_keys or ("image", "label")
    for key, kind in zip(keys, (tfds.features.Image, tfds.features.ClassLabel), strict=False):
        if not isinstance(key, str) or not isinstance(features.get(key), kind):
            raise DataError(
                f"tfds:{name} is not image classification: expected {key!r} to be"
                f" {kind.__name__}, it has {features}"
            )
    return keys[0], keys[1]


def builder_of(name: str, directory: str) -> Any:
    """Opens the prepared set ``name`` in TFDS's data directory ``directory`` ("": its default).

    Raises:
      DataError: unknown, not prepared, damaged, incomplete, or not random-access.
    """
    how = _how_to_prepare(name, directory)
    _check_name(name)
    with reading(directory, DataError):
        try:
            builder = _opened(name, directory, how)
        except (DataError, OSError) as error:
            if is_transient(error) or (lost := _missing(name, directory)) is None:
                raise
            raise DataError(f"{_lost(lost)}:\n  {how}") from error
    formats = {form.value for form in builder.info.available_file_formats()}
    if "array_record" not in formats:
        raise DataError(
            f"tfds:{name} in {builder.data_path} is stored as {', '.join(sorted(formats))}; random"
            " access needs array_record. In an environment with tensorflow (only this needs it),"
            f" run\n  tfds convert_format --dataset_version_dir={builder.data_path}"
            " --out_file_format=array_record"
        )
    return builder


def _opened(name: str, directory: str, how: str) -> Any:
    tfds, where = tensorflow_datasets(), directory or "its default data directory"
    try:
        builder = tfds.builder(name, data_dir=directory or None)
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(
            f"TFDS knows no set {name!r} and finds none prepared in {where}; see"
            f" https://tensorflow.org/datasets, or make one of your images:\n  {how}"
        ) from error
    except Exception as error:  # of TFDS, of protobuf, of Python: they have no kind in common
        if isinstance(error, OSError) or is_remote(directory):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"TFDS cannot open {name!r} in {where} ({reason}); if a file of it is damaged,"
            f" remove the set and prepare it again:\n  {how}"
        ) from error
    if not builder.is_prepared():
        raise DataError(f"tfds:{name} is not prepared in {builder.data_path}; run\n  {how}")
    return builder


def class_names(builder: Any, key: str) -> tuple[str, ...]:
    """Reads the names of the classes; TFDS takes numbers where it cannot read their file.

    Raises:
      DataError: the file is missing from a set of ours, which always has one, or names others.
    """
    from spvit_jax.data import manifest  # late: it needs TFDS, which other sources do not

    names, file = tuple(builder.info.features[key].names), builder.data_path / f"{key}.labels.txt"
    if not file.exists():
        if (builder.data_path / manifest.FILE).exists():
            raise DataError(_lost(file))
        return names  # of the set's own code, or numbers where it has none
    if [n.strip() for n in file.read_text().split("\n") if n.strip()] != [*names]:
        raise DataError(f"{file} does not name the classes of the set; prepare it again")
    return names


def _lost(file: epath.Path) -> str:
    """What to do where records are there and what describes them is not."""
    return (
        f"{file} is missing, without which nobody knows what the records beside it are; put it back"
        f" (from where {file.parent} was copied from), or remove that folder and prepare the set"
        " again"
    )


def _missing(name: str, directory: str) -> epath.Path | None:
    """The file that describes a prepared set and is not there, if that is all that is wrong."""
    where = directory or tensorflow_datasets().core.constants.DATA_DIR
    root = epath.Path(where).expanduser() / re.split("[/:]", name)[0]
    with contextlib.suppress(FileNotFoundError):  # no such bucket
        for folder in (*root.glob("*"), *root.glob("*/*")):
            if folder.is_dir() and any(".array_record" in file.name for file in folder.iterdir()):
                for file in DESCRIPTION:
                    if not (folder / file).exists():
                        return folder / file
    return None


def _check_name(name: str) -> None:
    """Raises DataError for what cannot be the name of a set, as folders and other hubs' names."""
    tfds = tensorflow_datasets()  # whose absence is another matter
    try:
        tfds.core.naming.parse_builder_name_kwargs(name)
    except ValueError as error:
        raise DataError(
            f"data.source=tfds:{name}: expected NAME, NAME/CONFIG or NAME:1.0.0 of letters, digits"
            " and _, as in tfds:imagenet2012; the folder that holds the set goes into"
            " data.directory, and a folder of images into data.source=folder:FOLDER"
        ) from error


def _how_to_prepare(name: str, directory: str) -> str:
    """The commands that bring the set ``name`` to TFDS's data directory ``directory``."""
    where = "DATA_DIR" if is_remote(directory) else directory or "DATA_DIR"
    how = f"python -m spvit_jax.prepare FOLDER {where}"
    if name.partition("/")[0].partition(":")[0] == "imagenet2012":
        how += (
            "\nwhere FOLDER holds ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and"
            " ILSVRC2012_devkit_t12.tar.gz, from https://image-net.org, or one folder a class in"
            " train and val; data.source=folder:FOLDER reads such folders as they are"
        )
    else:
        how += (
            "\nwhere FOLDER holds train/CLASS/*.jpg; or, for a set that TFDS downloads, in an"
            " environment with tensorflow and importlib_resources (only preparing needs them)\n"
            f"  tfds build {name} --file_format=array_record --data_dir={where}"
        )
    if is_remote(directory):
        how += f"\nand then\n  gcloud storage cp --recursive {where}/* {directory}"
    return how
