"""What a user says of a checkpoint on a command line, where it does not say it itself."""

import argparse
from typing import Any

from spvit_jax.sizes import as_size, wanted_size

# Names of models.activations, models.rotary and convert.fit, which --help does not wait for.
NAMES = {
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "silu"),
    "rotary": ("dinov3", "eva", "none"),
    "positions": ("antialiased", "bicubic"),
}
FACTS = ("heads", "epsilon", *NAMES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each of the facts that a user may have to give."""
    parser.add_argument(
        "--heads",
        type=int,
        default=0,
        metavar="N",
        help="attention heads of a ViT, where nothing says it and no published model is as wide",
    )
    parser.add_argument(
        "--activation",
        choices=NAMES["activation"],
        default="",
        help="of its FFN units, where no config.json beside the weights says it (a CLIP of"
        " OpenAI's: quick_gelu)",
    )
    parser.add_argument(
        "--epsilon",
        type=float,
        default=0.0,
        metavar="X",
        help="of its norms, likewise (default: 1e-6, a CLIP's 1e-5)",
    )
    parser.add_argument(
        "--rotary",
        choices=NAMES["rotary"],
        default="",
        help="how its rotary positions turn, likewise",
    )
    parser.add_argument(
        "--positions",
        choices=NAMES["positions"],
        default="",
        help="how its learned positions are interpolated for another image size, likewise"
        " (default: antialiased, as timm does; transformers' and DINOv2's own code: bicubic)",
    )


class ImageSize(argparse.Action):
    """Reads one number of pixels, or two: height and width."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: Any = None) -> None:
        try:
            setattr(namespace, self.dest, as_size(values))
        except ValueError as error:
            parser.error(f"{option}: {error}")


def add_image_size(parser: argparse.ArgumentParser, more: str) -> None:
    """Adds the option for the image size that is wanted; ``more`` ends its help."""
    parser.add_argument(
        "--image-size",
        type=int,
        nargs="+",
        action=ImageSize,
        default=0,
        metavar="N",
        help="pixels, N for a square or HEIGHT WIDTH (default: the model's own" + more,
    )


def told(options: Any) -> dict[str, Any]:
    """Reads those facts of parsed options, or of ``config.Model``: arguments of ``Facts.told``."""
    facts = {name: getattr(options, name) for name in FACTS}
    return facts | {"asked": wanted_size(getattr(options, "image_size", 0))}
