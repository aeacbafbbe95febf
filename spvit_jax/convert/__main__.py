"""``python -m spvit_jax.convert SRC DST``: a checkpoint of any origin as a model file of ours."""

import argparse
import logging
import sys

from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.load import Released, load_released
from spvit_jax.convert.native import save_model
from spvit_jax.single_path.cost import dense_macs
from spvit_jax.single_path.prune import count_parameters, fold

DESCRIPTION = """\
Converts a DeiT or ViT checkpoint (timm's or DeiT's names), one of the released SPViT-DeiT
checkpoints (search, fine-tuned or folded), or a model file of this package into a model file."""
EXAMPLE = """\
example:
  python -m spvit_jax.convert hf-hub:timm/deit_tiny_patch16_224.fb_in1k deit_tiny.safetensors
  python -m spvit_jax.convert spvit_deit_base.pth deployed.safetensors --fold --batch-norm

Reading .pth files needs PyTorch (pip install torch). Nothing in a checkpoint is executed.
Downloads are kept in $SPVIT_CACHE, by default ~/.cache/spvit_jax."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0, or 2 after a message on stderr."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.batch_norm and not options.fold:
        parser.error("--batch-norm goes with --fold")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        source = load_released(options.source, heads=options.heads)
        print(describe(source))
        form = source.form
        if options.fold:
            source, form = _fold(source, options.batch_norm)
        save_model(options.target, source.model, form, source.architecture)
    except (CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote       {options.target}: {form}, {count_parameters(source.model):,} parameters")
    return 0


def describe(source: Released) -> str:
    """What a checkpoint turned out to be, a fact a line."""
    spec, architecture = source.model.spec, source.architecture
    lines = [
        f"form        {source.form}",
        f"dense model {type(spec).__name__}: width {spec.width}, depth {spec.depth}, heads"
        f" {spec.heads}, FFN {spec.hidden}, patch {spec.patch_size}, image {spec.image_size},"
        f" classes {spec.classes}{', distilled' if spec.distilled else ''}",
        f"parameters  {count_parameters(source.model):,}",
    ]
    macs = f"{dense_macs(spec):,} dense"
    if architecture is not None:
        widths = " ".join(map(str, architecture.widths))
        lines += [f"ops         {' '.join(architecture.ops)}", f"FFN units   {widths}"]
        macs = f"{architecture.macs(spec):,} of {macs}"
    lines.append(f"MACs        {macs}")
    if source.gate_logits is not None:
        lines.append("gate logits are not kept in the model file; the ops they decide are")
    return "\n".join(lines)


def _fold(source: Released, batch_norm: bool) -> tuple[Released, str]:
    if source.form in ("dense", "supernet"):
        raise CheckpointError(f"--fold needs a pruned model; this one is of {source.form} form")
    model = fold(source.model, batch_norm=batch_norm)
    form = "deploy" if batch_norm or source.form == "deploy" else "folded"
    return source._replace(model=model), form


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m spvit_jax.convert",
        description=DESCRIPTION,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="a path, https://… or hf-hub:ORG/NAME")
    parser.add_argument("target", metavar="DST", help="the .safetensors file to write")
    parser.add_argument(
        "--heads",
        type=int,
        metavar="N",
        help="attention heads, for a checkpoint that does not say (default: 64 features a head)",
    )
    parser.add_argument(
        "--fold", action="store_true", help="fold the shared convolutions of a pruned model"
    )
    parser.add_argument(
        "--batch-norm", action="store_true", help="with --fold: fold the batch norms as well"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
