"""``python -m spvit_jax.convert SRC DST``: a checkpoint of any origin as a model file, or back."""

import argparse
import dataclasses
import logging
import sys
from typing import Any

from spvit_jax.checkpoint_options import add_arguments, add_image_size, facts_in
from spvit_jax.convert.contents import TORCH
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import Facts
from spvit_jax.convert.files import SUFFIX, local
from spvit_jax.convert.load import about_of, load
from spvit_jax.convert.native import save
from spvit_jax.convert.to_torch import save_torch, unsaid
from spvit_jax.remote import is_special
from spvit_jax.shell import failed, run
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import ArchitectureError
from spvit_jax.single_path.prices import count_parameters
from spvit_jax.single_path.prune import fold, form

DESCRIPTION = """\
Converts a checkpoint into a model file of this package, or with --to-torch into one for PyTorch.
It may be a DeiT, ViT or Swin of any size (timm's, DeiT's or Microsoft's names), a RegNetY (timm's
names), a released SPViT checkpoint of DeiT or Swin (search, fine-tuned or folded), or a model file
of this package."""
EXAMPLE = """\
examples:
  a dense model, as a model file
    python -m spvit_jax.convert hf-hub:timm/deit_tiny_patch16_224.fb_in1k deit_tiny.safetensors
    python -m spvit_jax.convert swin_tiny_patch4_window7_224.pth swin_tiny.safetensors
  the teacher
    python -m spvit_jax.convert regnety_160-a5fe301d.pth regnety_160.safetensors
  a released SPViT checkpoint, folded, and its batch norms too
    python -m spvit_jax.convert spvit_swin_tiny.pth folded.safetensors --fold
    python -m spvit_jax.convert spvit_deit_base.pth deployed.safetensors --fold --batch-norm
  a model trained here, for the released PyTorch code or, a dense one, for timm
    python -m spvit_jax.convert finetuned.safetensors finetuned.pth --to-torch
    python -m spvit_jax.convert finetuned.safetensors folded.pth --fold --to-torch

Reading and writing .pth files needs PyTorch (pip install torch). Nothing in a checkpoint is
executed.
Downloads are kept in $SPVIT_CACHE, by default ~/.cache/spvit_jax, those of hf-hub: in $HF_HOME."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 or 75 after a message on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.batch_norm and not options.fold:
        parser.error("--batch-norm goes with --fold")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("spvit_jax").setLevel(logging.INFO)  # of a download
    try:
        _check_target(options)
        facts, size = Facts.of(**facts_in(options)), options.image_size
        notes: list[str] = []
        model = load(options.source, image_size=size, facts=facts, notes=notes)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        print(describe(model))
        if options.fold:
            model = fold(model, batch_norm=options.batch_norm)
        if options.to_torch:
            save_torch(model, options.target)
            if note := unsaid(model):
                print(f"note: {note}", file=sys.stderr)
        else:
            about = about_of(options.source)
            if not model.spec.classes:
                about = dataclasses.replace(about, class_names=())
            if about.unsaid:
                unknown = ", ".join(about.unsaid)
                print(
                    f"note: nothing says the model's {unknown}, nor will {options.target}: where"
                    " they are not ImageNet's usual, give them to what reads it",
                    file=sys.stderr,
                )
            save(model, options.target, about=about)
    except (ArchitectureError, CheckpointError, OSError) as error:
        return failed(error)
    parameters = f"{count_parameters(model):,} parameters"
    names = _names(form(model)) if options.to_torch else ""
    print(f"wrote       {options.target}: {form(model)}, {parameters}{names}")
    return 0


def _check_target(options: argparse.Namespace) -> None:
    """Raises before any work where nothing can be written, or something else than is expected."""
    target = local(options.target)
    if not options.to_torch and target.suffix != SUFFIX and not is_special(target):
        raise CheckpointError(
            f"{options.target}: a model file's name ends in {SUFFIX}; for PyTorch"
            f" ({', '.join(TORCH)}) add --to-torch, files of other kinds (.onnx, .tflite, …) are"
            " written by python -m spvit_jax.export"
        )


def describe(model: Any) -> str:
    """What a checkpoint turned out to be, a fact a line."""
    spec, architecture = model.spec, model.architecture
    lines = [
        f"form        {form(model)}",
        f"dense model {type(spec).__name__.removesuffix('Spec')}: {_fields(spec)}",
        f"parameters  {count_parameters(model):,}",
    ]
    if architecture is not None:
        lines.append(f"ops         {' '.join(architecture.ops)}")
        if architecture.heads:
            lines.append(f"heads       {' '.join(map(str, architecture.head_counts(spec)))}")
        if architecture.dims:
            dims = ("/".join(map(str, kept)) or "-" for kept in architecture.dims)
            lines.append(f"dims        {' '.join(dims)} (of keys/values)")
        if architecture.merges:
            lines.append(f"merges      {' '.join(map(str, architecture.merges))}")
        lines.append(f"FFN units   {' '.join(map(str, architecture.widths))}")
    for pricing in (prices.macs, prices.published_macs) if hasattr(spec, "blocks") else ():
        priced = pricing(spec)
        macs = f"{priced.dense:,} dense"
        if architecture is not None:
            macs = f"{architecture.price(pricing, spec):,} of {macs}"
        name, _, rest = priced.unit.partition(" ")
        lines.append(f"{name:11} {macs} {rest}".rstrip())
    if form(model) == "supernet":
        lines.append("gate logits are not kept in the model file; the ops they decide are")
    return "\n".join(lines)


def _fields(spec: Any) -> str:
    """The fields of a spec as words: tuples number by number, and only what holds or is there."""
    words = []
    for name, value in dataclasses.asdict(spec).items():
        if name.startswith("rotary_") and not spec.rotary:
            continue
        label = name.replace("_", " ")
        if value is True:
            words.append(label)
        elif value:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            words.append(f"{label} {shown}")
    return ", ".join(words)


def _names(form: str) -> str:
    """Whose names a file for PyTorch is in."""
    if form == "dense":
        return ", in timm's names"
    identity = " and batch norms that do nothing" if form == "deploy" else ""
    return f", in SPViT's released names{identity}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spvit_jax.convert",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", metavar="SRC", help="a file, a folder, https://…, hf-hub:ORG/NAME or gs://…"
    )
    parser.add_argument(
        "target", metavar="DST", help="the .safetensors file to write; with --to-torch .pth too"
    )
    add_image_size(parser, "; a dense model is made to fit another)")
    add_arguments(parser)
    parser.add_argument(
        "--fold", action="store_true", help="fold the shared convolutions of a pruned model"
    )
    parser.add_argument(
        "--batch-norm", action="store_true", help="with --fold: fold the batch norms as well"
    )
    parser.add_argument(
        "--to-torch",
        action="store_true",
        help="write a state dict for PyTorch: a dense model in timm's names, a pruned one in those"
        " of the released SPViT code",
    )
    return parser


def command() -> None:
    """Runs as a program."""
    run(main)


if __name__ == "__main__":
    command()
