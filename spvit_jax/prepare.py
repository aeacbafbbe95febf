"""``python -m spvit_jax.prepare SRC DST``: images as ArrayRecord, which is read faster."""

import argparse
import logging
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spvit_jax.data.folders import EXTENSIONS
from spvit_jax.remote import is_remote
from spvit_jax.shell import failed, run

if TYPE_CHECKING:
    from spvit_jax.data.originals import Originals
    from spvit_jax.progress import Console

DESCRIPTION = f"""\
Turns a folder of images, or the original ImageNet tars, into a TFDS set stored as ArrayRecord:
DST/NAME/VERSION, which data.source=tfds:NAME with data.directory=DST reads, and so does
tfds.builder_from_directory. Needs no TensorFlow, unpacks nothing, and takes as much disk as SRC.

SRC is one of
  train/CLASS/*.jpg, val/CLASS/*.jpg, ...  each folder a split of that name
  CLASS/*.jpg                              one split, train
  ILSVRC2012_img_train.tar                 splits train and validation; either tar may be missing,
  ILSVRC2012_img_val.tar                   the labels of the second are in
  ILSVRC2012_devkit_t12.tar.gz             this one
Images are files that end in {" ".join(EXTENSIONS)},
at any depth below CLASS; hidden ones are left out, and how many others are is said."""
EPILOG = """\
Labels number the sorted class names, from 0. So do torchvision's ImageFolder and, for ImageNet,
whose classes are WordNet ids (n01440764 is 0), TFDS's imagenet2012: a converted ImageNet head fits.

Bytes of JPEG and PNG files are stored untouched; other formats, and what only claims to be one of
these, become PNG of the RGB pixels. The images stand in the order of the SHA-256 of their
CLASS/FILE, as with data.source=folder:SRC, so any stretch mixes the classes: train[:90%] and
train[90%:] make two splits of one. The same SRC always gives the same bytes.

The same command goes on after an interruption of any kind and keeps the shards (of about 1 GiB)
that are finished. NAME appears in DST when it is complete, with a manifest.json: per split the
number of images, and a SHA-256 of their bytes and names which a folder can be compared with:
  cd SRC/train && find -L * -type f | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum

examples:
  python -m spvit_jax.prepare ~/imagenet ~/tfds        then data.directory=~/tfds
  python -m spvit_jax.prepare ~/flowers ~/tfds --val-share 0.1
  python -m spvit_jax.prepare ~/flowers ~/tfds --verify
  gcloud storage cp --recursive ~/tfds/flowers gs://BUCKET/tfds/
                                                       then data.directory=gs://BUCKET/tfds"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 2 or 75 after a message, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Imported late: --help does not wait for it.
    from spvit_jax.data.errors import DataError
    from spvit_jax.data.prepared import tensorflow_datasets
    from spvit_jax.progress import Console

    try:
        tensorflow_datasets()
        (_verify if options.verify else _prepare)(options, Console())
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on after the last shard", file=sys.stderr)
        return 130
    except (DataError, OSError) as error:
        return failed(error)
    return 0


def _prepare(options: argparse.Namespace, console: "Console") -> None:
    from spvit_jax.data import records

    console.stage("list", f"the images of {options.source}")
    originals = _originals(options)
    for note in originals.notes:
        console.say(f"note: {note}")
    for split, images in originals.splits.items():
        size = sum(one.size for one in images) / 2**30
        classes = len(originals.class_names)
        console.stage(split, f"{len(images):,} images, {size:,.2f} GiB, of {classes:,} classes")
    name = _name(options)
    folder = options.target / name / _version(name, options.target, originals)
    recorder = records.Recorder(originals, folder, skip_bad=options.skip_bad)
    if recorder.finished:
        console.say(f"{folder} is complete already; --verify reads it back")
        contents = recorder.run()
    else:
        with console.bar(recorder.total, recorder.done, "writing", images=1) as bar:
            contents = recorder.run(bar.update)
    for split, facts in contents["splits"].items():
        _report(console, split, facts)
    console.stage("complete", f"{folder}; to read it:")
    fields = {"source": f"tfds:{name}", "directory": options.target, **_splits(originals)}
    flags = [shlex.quote(f"--config.data.{field}={value}") for field, value in fields.items()]
    console.say(f"  {' '.join(flags)}")


def _verify(options: argparse.Namespace, console: "Console") -> None:
    from spvit_jax.data import manifest
    from spvit_jax.data.errors import DataError

    sets = sorted((options.target / _name(options)).glob(f"*/{manifest.FILE}"))
    if not sets:
        raise DataError(f"no finished set in {options.target / _name(options)}; prepare it first")
    for file in sets:
        with console.bar(manifest.count(file.parent), 0, "reading", images=1) as bar:
            read = manifest.verify(file.parent, bar.update)
        for split, facts in read["splits"].items():
            _report(console, split, facts)
        console.stage("verified", f"{file.parent} holds what {manifest.FILE} says")


def _report(console: "Console", split: str, facts: dict[str, Any]) -> None:
    converted = f", {facts['converted']:,} of them now PNG" if facts["converted"] else ""
    console.stage(split, f"{facts['images']:,} images{converted}, SHA-256 {facts['sha256']}")
    for path, reason in facts["skipped"].items():
        console.say(f"  left out {path}: {reason}")


def _originals(options: argparse.Namespace) -> "Originals":
    from spvit_jax.data import imagenet, originals
    from spvit_jax.data.errors import DataError

    if options.source.is_file():
        raise DataError(f"{options.source} is a file; give the folder that holds it")
    if imagenet.is_imagenet(options.source):
        if options.val_share:
            raise DataError("ImageNet has its validation images; leave out --val-share")
        return imagenet.list_tars(options.source)
    if options.target.resolve().is_relative_to(options.source.resolve()):
        raise DataError(f"{options.target} is inside {options.source}; choose a DST outside it")
    return originals.list_folder(options.source, options.val_share, options.seed)


def _name(options: argparse.Namespace) -> str:
    from spvit_jax.data import imagenet
    from spvit_jax.data.errors import DataError

    name = options.name
    if not name and imagenet.is_imagenet(options.source):
        name = "imagenet2012"
    name = name or re.sub(r"\W+", "_", options.source.resolve().name.lower())
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(f"{name!r} cannot be a set's name: choose a --name of a-z, 0-9 and _")
    return str(name)


def _version(name: str, target: Path, originals: "Originals") -> str:
    """The version TFDS looks for where it has code of its own for ``name``, which must agree."""
    import tensorflow_datasets as tfds

    from spvit_jax.data.errors import DataError

    if name not in tfds.list_builders(with_community_datasets=False):
        return "1.0.0"
    if name == "imagenet2012":
        builder = tfds.builder(name, data_dir=target)
        if tuple(builder.info.features["label"].names) == originals.class_names:
            return str(builder.version)
    raise DataError(f"TFDS has a set named {name} with other classes; choose another --name")


def _splits(originals: "Originals") -> dict[str, str]:
    """The config's fields that say what to train and what to test on."""
    held_out = [split for split in ("val", "validation", "test") if split in originals.splits]
    if held_out:
        return {"test_split": held_out[0]}
    return {"train_split": "train[:90%]", "test_split": "train[90%:]"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spvit_jax.prepare",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", type=_path, help="a folder, see above")
    parser.add_argument("target", metavar="DST", type=_path, help="TFDS's data directory")
    parser.add_argument(
        "--name", help="of the set (default: imagenet2012 for the tars, else SRC's last part)"
    )
    parser.add_argument(
        "--val-share",
        type=_share,
        default=0.0,
        metavar="X",
        help="with CLASS/*.jpg: this share of each class, 0.1 say, becomes the split val",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="which images these are (default: 0)"
    )
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out images that cannot be decoded and list them (default: stop at the first)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="only read the finished set back and compare it with its manifest.json, not with SRC",
    )
    return parser


def _path(text: str) -> Path:
    if is_remote(text):
        raise argparse.ArgumentTypeError(
            f"{text} is no folder of this machine; work on a disk, and copy the finished set:"
            " gcloud storage cp --recursive DST/NAME gs://BUCKET/tfds/"
        )
    return Path(text).expanduser()


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, not {text}")
    return share


def command() -> None:
    """Runs as a program."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # the console asks JAX whether to print; no accelerator
    run(main)


if __name__ == "__main__":
    command()
