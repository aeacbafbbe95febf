"""What a user says of a checkpoint on a command line, where it does not say it itself."""

import argparse
import contextlib
import math
from collections.abc import Callable
from typing import Any

from spvit_jax.sizes import as_size, wanted_size

# Names of models.activations, models.rotary and convert.fit, which --help does not wait for.
NAMES = {
    "activation": ("gelu", "gelu_tanh", "quick_gelu", "silu"),
    "rotary": ("dinov3", "eva", "none"),
    "positions": ("antialiased", "bicubic"),
}
FACTS = ("heads", "epsilon", *NAMES)
PIXELS = "pixels are in 0..1 here: divide what is of pixels in 0..255 by 255"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each of the facts that a user may have to give."""
    parser.add_argument(
        "--heads",
        type=count,
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
        type=above_0,
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


def add_preprocessing(parser: argparse.ArgumentParser) -> None:
    """Adds how pixels become a model's input, where its file does not say it."""
    add = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "default": [], "metavar": "X"}
    whose = "(default: the model file's, else ImageNet's usual)"
    add("--mean", type=level, **several, help=f"of pixels in 0..1, R G B, or of grey {whose}")
    add("--std", type=spread, **several, help="likewise")
    add(
        "--crop-ratio",
        type=share,
        metavar="SHARE",
        help=f"of each side of the resized image, what the central crop keeps {whose}",
    )


def check_preprocessing(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a message unless mean and std are given together, of grey or of R G B."""
    if len(options.mean) != len(options.std) or len(options.mean) not in (0, 1, 3):
        parser.error("--mean and --std go together, of one number of grey or three of R G B")


def preprocessing_in(options: argparse.Namespace) -> dict[str, Any]:
    """Reads what those options say: fields of ``About``."""
    values = {name: getattr(options, name) for name in ("mean", "std", "crop_ratio")}
    return {name: tuple(v) if type(v) is list else v for name, v in values.items() if v}


def count(text: str) -> int:
    """Reads a whole number of 1 or more."""
    return int(_read(int, text, lambda value: value >= 1, "1 or more"))


def level(text: str) -> float:
    """Reads a number in 0 to 1: a mean of pixels."""
    return _read(float, text, lambda value: 0 <= value <= 1, "a number in 0 to 1", f"; {PIXELS}")


def spread(text: str) -> float:
    """Reads a number above 0 and up to 1: a standard deviation of pixels."""
    what = "a number above 0 and up to 1"
    return _read(float, text, lambda value: 0 < value <= 1, what, f"; {PIXELS}")


def above_0(text: str) -> float:
    """Reads a number above 0."""
    return _read(float, text, lambda value: 0 < value < math.inf, "a number above 0")


def share(text: str) -> float:
    """Reads a share above 0 and up to 1."""
    return _read(float, text, lambda value: 0 < value <= 1, "a share in 0 to 1")


def _read(
    kind: Callable[[str], float],
    text: str,
    fits: Callable[[float], bool],
    expected: str,
    advice: str = "",
) -> float:
    with contextlib.suppress(ValueError):  # no number at all
        if fits(value := kind(text)):
            return value
    raise argparse.ArgumentTypeError(f"expected {expected}, got {text}{advice}")


def facts_in(options: Any) -> dict[str, Any]:
    """Reads those facts of parsed options, or of ``config.Model``: arguments of ``Facts.of``."""
    facts = {name: getattr(options, name) for name in FACTS}
    return facts | {"asked": wanted_size(getattr(options, "image_size", 0))}
