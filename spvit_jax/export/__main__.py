"""``python -m spvit_jax.export MODEL OUT…``: a model as files that run elsewhere."""

import argparse
import logging
import sys
from pathlib import Path

from spvit_jax.checkpoint_options import (
    add_arguments,
    add_image_size,
    add_preprocessing,
    check_preprocessing,
    count,
    facts_in,
    preprocessing_in,
)
from spvit_jax.config import FORMATS
from spvit_jax.remote import public
from spvit_jax.shell import failed, run

DESCRIPTION = """\
Writes a model as files that run without this package, by the suffix of each OUT:

  .onnx         ONNX: onnxruntime, OpenVINO and others; any batch size
  .fp16.onnx    the same with weights and computation in float16
  .int8.onnx    the same with products and convolutions in int8, calibrated on --images; parts
                that cost too much accuracy stay float, and are named
  .dynamic.onnx the same with int8 weights of products, without calibration
  .stablehlo    StableHLO, one file for CPUs, GPUs and TPUs; runs with jax alone
  .tflite       LiteRT, for phones and boards, at the batch size of --batch
  .int8.tflite  the same with weights of 8 bits
  .safetensors  the weights, and beside them spvit_torch.py, which builds the model in PyTorch

Each is run and compared with the model before it takes its place; one that fails is kept as
OUT.failed, and the exit code is 1. Of int8 the outputs' mean cosine to the model's must be 0.995 or
more, and the class the same in 95 %, on photographs by which it was not calibrated. Beside it
NAME.preprocess.json says how a photograph becomes its input. MODEL is whatever spvit_jax.predict
takes; a pruned one is folded."""
EPILOG = """\
examples:
  python -m spvit_jax.export /tmp/spvit/pruned.safetensors small.onnx
  python -m spvit_jax.export pruned.safetensors small.onnx --pixels uint8 --layout NHWC
  python -m spvit_jax.export pruned.safetensors small.onnx small.fp16.onnx small.stablehlo
  python -m spvit_jax.export pruned.safetensors small.onnx small.int8.onnx --images photos/ \\
    --test val/
  python -m spvit_jax.export hf-hub:timm/deit_small_patch16_224.fb_in1k deit_s.onnx --opset 20
  python -m spvit_jax.export pruned.safetensors small.int8.tflite --pixels uint8
  python -m spvit_jax.export pruned.safetensors small --format onnx torch
ONNX needs more libraries, pip install 'spvit_jax[export]', and LiteRT pip install
'spvit_jax[litert]'."""

FORMAT = "write each OUT, which needs no suffix then, as all of these: %(choices)s"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, 1 after a failed check, else see ``failed``."""
    parser = _parser()
    options = parser.parse_args(arguments)
    check_preprocessing(parser, options)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("spvit_jax").setLevel(logging.INFO)  # of a download
    # Imported late: --help does not wait for it.
    from spvit_jax.config import ConfigError
    from spvit_jax.convert import CheckpointError
    from spvit_jax.data.errors import DataError
    from spvit_jax.export.errors import CheckFailed, ExportError

    try:
        _export(options)
    except CheckFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (CheckpointError, ConfigError, DataError, ExportError, OSError) as error:
        return failed(error)
    return 0


def _export(options: argparse.Namespace) -> None:
    import dataclasses

    from spvit_jax import pretrained
    from spvit_jax.convert import Facts, about_of, load
    from spvit_jax.export.errors import ExportError
    from spvit_jax.export.export import export, exportable, needs, suffix_of
    from spvit_jax.export.photographs import open_images, open_test, pixels, some
    from spvit_jax.export.preprocess import Preprocess
    from spvit_jax.export.table import table

    outs = _outs(options)
    for out in outs:  # before a download
        needs(suffix_of(Path(out)), bool(options.images))
    photographs = open_images(options.images) if options.images else None
    test = open_test(options.test) if options.test else None
    notes: list[str] = []
    where, facts = options.checkpoint, Facts.of(**facts_in(options))
    network = load(where, image_size=options.image_size, facts=facts, notes=notes)
    model = pretrained.decided(network, notes)
    about = about_of(where)
    about = dataclasses.replace(about, **preprocessing_in(options))
    images, written = None, {}
    preprocess = Preprocess.of(exportable(model), about, [])
    if test is not None and model.spec.classes and len(test.class_names) > model.spec.classes:
        raise ExportError(
            f"--test {options.test} has {len(test.class_names):,} classes, the model"
            f" {model.spec.classes:,}"
        )
    if photographs is not None:
        images = pixels(photographs, preprocess, some(photographs))
    for out in outs:
        done = written[out] = export(
            model,
            out,
            about=about,
            pixels=options.pixels,
            layout=options.layout,
            opset=options.opset,
            beside=options.weights == "beside",
            batch=options.batch,
            images=images,
            source=public(options.checkpoint),
            notes=notes,
        )
        for note in dict.fromkeys(notes):
            print(f"note: {note}", file=sys.stderr)
        notes.clear()
        print(f"wrote {out}: {done.size / 1e6:,.1f} MB, {', '.join(done.facts)}", flush=True)
    if test is not None:
        print(f"\n{table(written, model, preprocess, test)}")


def _outs(options: argparse.Namespace) -> list[str]:
    """The files to write: each OUT, or with --format each OUT with each suffix."""
    if not options.format:
        return options.outs
    suffixes = [FORMATS[name] for name in options.format]
    return [out.removesuffix(suffix) + suffix for out in options.outs for suffix in suffixes]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spvit_jax.export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", metavar="MODEL", help="the model")
    add("outs", metavar="OUT", nargs="+", help="a file to write")
    add("--format", choices=tuple(FORMATS), nargs="+", metavar="NAME", help=FORMAT)
    add(
        "--pixels",
        choices=("float32", "uint8"),
        default="float32",
        help="what goes in: normalised images, or pixels as they are decoded, which the file"
        " normalises (default: %(default)s)",
    )
    add(
        "--layout",
        choices=("NCHW", "NHWC"),
        default="",
        help="of what goes in (default: NCHW in ONNX, NHWC elsewhere)",
    )
    add(
        "--opset",
        type=int,
        default=17,
        metavar="N",
        help="of ONNX: 17, 20 (one operator for GELU) or 23 (and for attention); default:"
        " %(default)s",
    )
    add(
        "--weights",
        choices=("inside", "beside"),
        default="inside",
        help="of a .stablehlo: in it, or as NAME.weights.safetensors next to it (default:"
        " %(default)s)",
    )
    add("--batch", type=count, default=1, metavar="N", help="of a .tflite: images at once (1)")
    _add_images(parser)
    add_preprocessing(parser)
    add_image_size(parser, ")")
    add_arguments(parser)
    return parser


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--images",
        metavar="SOURCE",
        help="photographs that calibrate int8 and judge it: a folder, or the training split of"
        " packaged:NAME, idx:PATH, …; 256 of them are taken, 64 are needed",
    )
    add(
        "--test",
        metavar="SOURCE",
        help="compare what was written on these: a folder of class folders, or the test split of"
        " packaged:NAME, idx:PATH, …; prints accuracy, size and latency",
    )


def command() -> None:
    """Runs as a program."""
    run(main)


if __name__ == "__main__":
    command()
