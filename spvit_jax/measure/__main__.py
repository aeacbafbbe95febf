"""``python -m spvit_jax.measure MODEL…``: how fast models are next to each other, and how good."""

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from spvit_jax.checkpoint_options import (
    above_0,
    add_arguments,
    add_preprocessing,
    check_preprocessing,
    count,
    facts_in,
)
from spvit_jax.remote import followed
from spvit_jax.shell import failed, run

if TYPE_CHECKING:
    from spvit_jax.measure.contestants import Contestant

DESCRIPTION = """\
Measures models next to each other: the time of one image, images per second of a batch, and with
--test how good each is. Ratios are to the first MODEL, conventionally the dense one. A MODEL is

  NAME.onnx       of any kind (float32, .fp16, .int8): in onnxruntime, and in OpenVINO if installed
  NAME.stablehlo  compiled by JAX
  NAME.tflite     in LiteRT, as many images at once as it was written for
  anything else   as spvit_jax.predict takes it, such as a run's pruned.safetensors, folded: in JAX,
                  with --runtime torch in PyTorch

What is timed is the network, from the input in memory to its outputs; decoding is not."""
EPILOG = """\
The speed of a shared machine drifts. So the models take turns, call by call, and a ratio is the
median over turns: below 1 less time, above 1 more images per second. Models of different image
sizes each get their own.

How a photograph becomes the input stands in the model's file, or for exported files in the
NAME.preprocess.json that spvit_jax.export writes beside it. Other checkpoints get --mean, --std and
--crop-ratio, and what nobody says is ImageNet's usual.

--test SOURCE is a folder of class folders (or with test/ or val/ in it), packaged:NAME or idx:PATH:
top-1 of each; or a folder of images: the mean cosine of each model's logits, or features without a
head, to the first one's.

examples:
  python -m spvit_jax.measure dense.safetensors pruned.safetensors
  python -m spvit_jax.measure dense.onnx pruned.onnx pruned.int8.onnx --test photos/ --threads 1
  python -m spvit_jax.measure dense.safetensors pruned.safetensors --runtime jax torch
  python -m spvit_jax.measure dense.onnx pruned.onnx --test packaged:fashion_mnist \\
      --figure speed.png --json speed.json
ONNX needs more libraries, pip install 'spvit_jax[export]', OpenVINO 'spvit_jax[openvino]', LiteRT
'spvit_jax[litert]', PyTorch 'spvit_jax[torch]' and a figure 'spvit_jax[reports]'."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 or 75 after a message on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.figure is not None and options.test is None:
        parser.error("--figure draws accuracy over latency: it needs --test SOURCE")
    check_preprocessing(parser, options)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("spvit_jax").setLevel(logging.INFO)  # of a download
    if options.threads:
        os.environ["NPROC"] = str(options.threads)  # JAX reads it when it first computes
    # Imported late: --help does not wait for it.
    from spvit_jax.config import ConfigError
    from spvit_jax.convert import CheckpointError
    from spvit_jax.data.errors import DataError
    from spvit_jax.export.errors import ExportError
    from spvit_jax.measure.errors import MeasureError

    try:
        _measure(options)
    except (
        CheckpointError,
        ConfigError,
        DataError,
        ExportError,
        MeasureError,
        OSError,
    ) as error:
        return failed(error)
    return 0


def _measure(options: argparse.Namespace) -> None:
    from spvit_jax.convert.files import local, write_whole
    from spvit_jax.drawing import can_draw
    from spvit_jax.export import photographs
    from spvit_jax.measure import comparison, shown, tested
    from spvit_jax.measure.errors import MeasureError
    from spvit_jax.progress import Console

    for file in (options.figure, options.json):  # before minutes of measuring
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise FileNotFoundError(f"{file}: there is no such folder; make it first")
    if options.figure is not None:
        followed(options.figure)
        if not can_draw():
            raise MeasureError("--figure needs Matplotlib: pip install 'spvit_jax[reports]'")
    if options.json is not None:
        local(options.json)
    source = None if options.test is None else photographs.open_test(options.test)
    threads = options.threads or comparison.cores()
    contestants = _contestants(options, threads)
    quality = None
    if source is not None:
        with Console().bar(len(source), 0, "test") as bar:
            quality = tested.judge(contestants, source, options.batch, bar.update)
    result = comparison.compare(
        contestants,
        batch_size=options.batch,
        seconds=options.seconds,
        threads=threads,
        tested=quality,
    )
    print(shown.table(result))
    if options.json is not None:
        text = json.dumps(result.as_json(), indent=1, ensure_ascii=False) + "\n"
        write_whole(local(options.json), text.encode())
    if options.figure is not None:
        shown.figure(result, options.figure)


def _contestants(options: argparse.Namespace, threads: int) -> list["Contestant"]:
    from spvit_jax.convert import About, Facts
    from spvit_jax.measure import contestants
    from spvit_jax.measure.errors import MeasureError

    notes: list[str] = []
    facts = Facts.of(**facts_in(options))
    about = About((), tuple(options.mean), tuple(options.std), options.crop_ratio)
    ways = [(name, contestants.runtimes(name, options.runtime)) for name in options.models]
    for runtime in options.runtime:
        if not any(runtime in some for _, some in ways):
            raise MeasureError(f"--runtime {runtime}: none of these files runs in it; see --help")
    entrants: list[Contestant] = []
    for name, some in ways:
        entrants += contestants.open_contestants(name, some, threads, facts, notes, about)
    for note in dict.fromkeys(notes):
        print(f"note: {note}", file=sys.stderr)
    return entrants


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spvit_jax.measure",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+", help="the models; the first is compared with")
    add(
        "--batch",
        type=count,
        default=64,
        metavar="N",
        help="images per call when throughput is measured (default: %(default)s)",
    )
    add(
        "--seconds",
        type=above_0,
        default=10.0,
        metavar="S",
        help="given to all calls with one image, and again to all with a batch; five turns are"
        " taken however long they last (default: %(default)g)",
    )
    add(
        "--threads",
        type=count,
        default=0,
        metavar="N",
        help="of one call on the processor (default: its cores)",
    )
    add(
        "--runtime",
        nargs="+",
        choices=("jax", "onnxruntime", "openvino", "torch", "litert"),
        default=[],
        metavar="NAME",
        help="of %(choices)s, for files that several can run; others run in what they usually do",
    )
    add("--test", metavar="SOURCE", help="images to say how good each model is; see below")
    add("--figure", metavar="FILE.png", help="draw accuracy over latency; needs --test")
    add("--json", metavar="FILE", help="write the numbers")
    add_preprocessing(parser)
    add_arguments(parser)
    return parser


def command() -> None:
    """Runs as a program."""
    run(main)


if __name__ == "__main__":
    command()
