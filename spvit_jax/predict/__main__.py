"""``python -m spvit_jax.predict CHECKPOINT IMAGE…``: what a model sees in images."""

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spvit_jax.checkpoint_options import (
    add_arguments,
    add_image_size,
    add_preprocessing,
    check_preprocessing,
    count,
    facts_in,
    preprocessing_in,
)
from spvit_jax.shell import failed, run
from spvit_jax.sizes import Size, sides

if TYPE_CHECKING:
    import numpy as np

    from spvit_jax.convert import About
    from spvit_jax.training.normalise import Normalise

DESCRIPTION = """\
Prints, for each image, the classes that a model gives the highest probabilities.

CHECKPOINT is anything that converts: a file, a folder, https://…, hf-hub:ORG/NAME or gs://… of a
ViT (DeiT, DINOv2, CLIP, …), Swin or RegNetY, of a released SPViT, or a model file of this package
such as a run's pruned.safetensors; packaged:NAME is one that ships with it. Of an IMAGE that is a
folder, all image files at any depth (.jpg, .png, .webp, .tif, …), hidden ones left out.
A photograph is turned upright as its EXIF data says."""
EPILOG = """\
A run's pruned.safetensors knows its class names, mean, std and crop ratio. Other files do not:
give --names, and what the model was trained with where that is not ImageNet's usual
--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 --crop-ratio 0.875. FILE of --names is one of
  a text file with a name a line, in the order of the classes
  JSON, a list of names
  JSON, {"0": "tench", …} or, as ImageNet's class index often is, {"0": ["n01440764", "tench"], …}

--features FILE.npz writes what the head sees of each image, or would see in a model without one;
np.load(FILE)["features"] is [images, width], ["files"] their names, and ["patches"] there where the
model's patches are read.

--merged FOLDER writes a picture of each image, NAME-merged.png: the image as the model sees it, and
beside it the same with patches that the model has merged in one colour, their average.

An image that cannot be read is named on stderr, the others are predicted, and the exit code is 2.

examples:
  python -m spvit_jax.predict /tmp/spvit/pruned.safetensors photo.jpg
  python -m spvit_jax.predict hf-hub:timm/deit_tiny_patch16_224.fb_in1k photos/ --names names.txt
  python -m spvit_jax.predict pruned.safetensors photos/ --top 1 --json > found.jsonl
  python -m spvit_jax.predict pruned.safetensors photos/ --merged pictures/
  python -m spvit_jax.predict hf-hub:facebook/dinov2-small photos/ --features photos.npz
With --json each image is a line:
  {"image": "photo.jpg", "top": [{"class": 0, "name": "tench", "probability": 0.98}, …]}
and with --merged also has the picture: "merged": "pictures/photo-merged.png"."""
BATCH = 32  # images at once


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 or 75 after a message on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    check_preprocessing(parser, options)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("spvit_jax").setLevel(logging.INFO)  # of a download
    # Imported late: --help does not wait for it.
    from spvit_jax.config import ConfigError
    from spvit_jax.convert import CheckpointError
    from spvit_jax.data.errors import DataError

    try:
        return 2 if _predict(options) else 0
    except (CheckpointError, ConfigError, DataError, OSError) as error:
        return failed(error)


def _predict(options: argparse.Namespace) -> int:
    """Prints the classes of every image; the number of those that could not be read."""
    from spvit_jax import pictures
    from spvit_jax.data.transforms import before_crop
    from spvit_jax.predict.classify import classifier
    from spvit_jax.pretrained import check_channels
    from spvit_jax.training.normalise import Normalise

    files = image_files(options.images)
    model, about = _load(options)
    names = class_names(options.names, about.class_names, model.spec.classes)
    normalise = Normalise(about.mean, about.std)
    check_channels(normalise.mean, getattr(model.spec, "channels", 3), "--mean and --std")
    size = model.spec.image_size
    around = before_crop(size, about.crop_ratio or 1.0)
    batch = min(BATCH, len(files))
    if options.features is not None or not model.spec.classes:
        return _features(options, files, model, normalise, around)
    where = {} if options.merged is None else pictures.places(options.merged, files, model)
    classify = classifier(model, normalise, min(options.top, model.spec.classes), bool(where))
    show = _as_json if options.json else _as_text
    bad = 0
    for paths, images, errors in _batches(files, batch, size, around):
        for error in errors:
            print(f"error: {error}", file=sys.stderr)
        bad += len(errors)
        if paths:
            results = zip(paths, images, *classify(images), strict=False)
            for file, pixels, labels, shares, *sources in results:
                top = [(int(i), names[i], float(p)) for i, p in zip(labels, shares, strict=True)]
                if where:
                    pictures.draw(where[file], pixels, sources[0], model.spec.blocks[0].grid)
                print(show(file, top, where.get(file)), flush=True)
    if bad:
        print(f"error: {bad:,} of {len(files):,} images could not be read", file=sys.stderr)
    return bad


def _features(
    options: argparse.Namespace, files: list[str], model: Any, normalise: "Normalise", around: Size
) -> int:
    """Writes the features of every image; the number of those that could not be read."""
    from spvit_jax.convert.files import local
    from spvit_jax.data.errors import DataError
    from spvit_jax.features import write_features

    if not hasattr(model.spec, "blocks"):
        raise DataError("--features: a RegNetY is a classifier here; take a ViT or a Swin")
    if options.features is None:
        raise DataError(
            "this model has no head to predict classes with; --features FILE.npz writes its"
            " features"
        )
    target = local(options.features)
    batches = _batches(files, min(BATCH, len(files)), model.spec.image_size, around)
    bad = 0
    for error in write_features(target, model, normalise, batches):
        print(f"error: {error}", file=sys.stderr)
        bad += 1
    if bad < len(files):
        print(f"wrote {options.features}: the features of {len(files) - bad:,} images")
    return bad


def _load(options: argparse.Namespace) -> tuple[Any, "About"]:
    """The model, of whatever form it is found in, and what it was trained on or is said to be."""
    from spvit_jax import pretrained
    from spvit_jax.convert import Facts, about_of, load

    notes: list[str] = []
    where, facts = options.checkpoint, Facts.of(**facts_in(options))
    network = load(where, image_size=options.image_size, facts=facts, notes=notes)
    model = pretrained.decided(network, notes)
    about = dataclasses.replace(about_of(where), **preprocessing_in(options)).or_usual(notes)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    return model, about


def _batches(
    files: Sequence[str], batch: int, size: Size, around: Size
) -> Iterator[tuple[list[str], "np.ndarray", list[str]]]:
    """For each ``batch`` of files: those that can be read, their pixels, and what is wrong else.

    The pixels are of a whole batch, black where there is no image, so that one program does.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from spvit_jax.data.decode import open_image
    from spvit_jax.data.errors import DataError

    def read(file: str) -> "np.ndarray | str":
        try:
            return np.asarray(open_image(file, file, upright=True).centre(around, size))
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), batch):
            some = files[start : start + batch]
            read_ones = list(zip(some, pool.map(read, some), strict=True))
            good = [(file, one) for file, one in read_ones if not isinstance(one, str)]
            images = np.zeros((batch, *sides(size), 3), np.uint8)
            for row, (_, pixels) in zip(images, good, strict=False):
                row[:] = pixels
            yield [f for f, _ in good], images, [one for _, one in read_ones if type(one) is str]


def _as_text(file: str, top: list[tuple[int, str, float]], picture: Path | None) -> str:
    lines = [file, *(f"  {100 * share:6.2f} %  {name}" for _, name, share in top)]
    return "\n".join(lines if picture is None else [*lines, f"  merged: {picture}"])


def _as_json(file: str, top: list[tuple[int, str, float]], picture: Path | None) -> str:
    classes = [{"class": i, "name": name, "probability": share} for i, name, share in top]
    drawn = {} if picture is None else {"merged": str(picture)}
    return json.dumps({"image": file, "top": classes, **drawn})


def image_files(paths: Sequence[str]) -> list[str]:
    """The paths, with the image files in it for each folder, sorted.

    Raises:
      DataError: a folder has none.
    """
    from spvit_jax.data.errors import DataError
    from spvit_jax.data.folders import EXTENSIONS, images_below, left_out, warn

    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        others = Counter[str]()
        images = sorted(os.path.join(path, file) for file in images_below(Path(path), others))
        if not images:
            raise DataError(f"no image ({', '.join(EXTENSIONS)}) in {path}")
        warn(left_out(Path(path), others))
        files += images
    return files


def class_names(file: str | None, known: Sequence[str], classes: int) -> list[str]:
    """A name for each of ``classes``: those in ``file``, else those ``known``, else numbers.

    Raises:
      DataError: ``file`` is none of what ``EPILOG`` says, or is of another number of classes.
    """
    from spvit_jax.data.errors import DataError

    if file is None:
        return [*known, *(f"class {i}" for i in range(len(known), classes))]
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
        names = _json_names(text) if text.lstrip()[:1] in ("[", "{") else text.split("\n")
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"--names {file}: {error}; expected a name a line in UTF-8, a JSON list, or JSON"
            ' {"0": "name", …}'
        ) from error
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise DataError(f"--names {file}: name {names.index('') + 1} is empty; write one")
    if len(names) != classes:
        raise DataError(f"--names {file} has {len(names)} names, the model {classes} classes")
    return names


def _json_names(text: str) -> list[str]:
    """Names of a JSON list, or of an object from class numbers to names or [id, name]."""
    values = json.loads(text, object_pairs_hook=tuple)  # which keeps a number that is there twice
    if isinstance(values, tuple):
        numbered = {int(number): name for number, name in values}
        if sorted(numbered) != list(range(len(values))):
            raise ValueError(f"its numbers are not 0 to {len(values) - 1}, each once")
        values = [numbered[i] for i in range(len(values))]
    names = [name[-1] if isinstance(name, list) and name else name for name in values]
    for i, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(f"number {i} is {name!r}, not a name")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spvit_jax.predict",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="the model")
    add("images", metavar="IMAGE", nargs="+", help="an image file, or a folder of them")
    add("--top", type=count, default=5, metavar="N", help="classes an image (default: 5)")
    add("--names", metavar="FILE", help="the names of the classes (default: the model file's)")
    add_preprocessing(parser)
    add_image_size(parser, "; a RegNetY's file does not say it, and gets 224)")
    add_arguments(parser)
    add("--merged", metavar="FOLDER", help="draw which patches the model merges, a PNG an image")
    add(
        "--features",
        metavar="FILE.npz",
        help="write features instead: arrays files, features and, where they are read, patches;"
        " what a model without a head is for",
    )
    add("--json", action="store_true", help="print a JSON object a line")
    return parser


def command() -> None:
    """Runs as a program."""
    run(main)


if __name__ == "__main__":
    command()
