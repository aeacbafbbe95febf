"""How good contestants are on test images: top-1, or how near they come to the first of them."""

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from spvit_jax.data.sources import Source
from spvit_jax.export.images import as_seen
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.measure.contestants import Contestant
from spvit_jax.measure.errors import MeasureError


@dataclasses.dataclass(frozen=True)
class Tested:
    """What test images say.

    Attributes:
      measure: "top-1" or "cosine", to the first one's output: its logits, or without a head its
        features.
      images: how many.
      values: for each contestant the share of its images that are right, or the mean cosine.
    """

    measure: str
    images: int
    values: tuple[float, ...]


def judge(
    contestants: Sequence[Contestant],
    source: Source,
    batch_size: int,
    done: Callable[[int], Any],
) -> Tested:
    """Runs contestants on test images, each at its own size.

    Args:
      contestants: with labels, all have heads of these classes.
      source: of the images.
      batch_size: images per call.
      done: called with the number of images after each batch.

    Raises:
      DataError: an image cannot be decoded.
      MeasureError: classes that are not the images', or outputs that cannot be compared.
    """
    labelled = bool(source.class_names)
    for one in contestants if labelled else ():
        _check_names(one, source.class_names)
    sums = np.zeros(len(contestants))
    for start in range(0, len(source), batch_size):
        items = [source[i] for i in range(start, min(start + batch_size, len(source)))]
        labels = np.array([item["label"] for item in items])
        outputs = _outputs(contestants, [item["image"] for item in items], batch_size)
        if labelled:
            for one, (name, values) in zip(contestants, outputs, strict=True):
                _check_classes(one, name, values, len(source.class_names))
            sums += [(values.argmax(1) == labels).sum() for _, values in outputs]
        else:
            sums += [_cosines(contestants, outputs, i).sum() for i in range(len(contestants))]
        done(len(items))
    return Tested(
        "top-1" if labelled else "cosine", len(source), tuple((sums / len(source)).tolist())
    )


def _outputs(
    contestants: Sequence[Contestant], images: Sequence[Any], batch_size: int
) -> list[tuple[str, np.ndarray]]:
    """The output of each, and its name; the last batch is filled with black for it."""
    pixels: dict[tuple, np.ndarray] = {}
    pairs: list[tuple[str, np.ndarray]] = []
    for one in contestants:
        size = one.preprocess.resize, one.preprocess.crop, one.preprocess.channels
        if size not in pixels:
            pixels[size] = _decoded(images, one.preprocess, batch_size)
        outputs = one.bind(pixels[size])()
        name = next((n for n in ("logits", "features") if n in outputs), next(iter(outputs)))
        values = np.asarray(outputs[name], np.float32)[: len(images)]
        pairs.append((name, values.reshape(len(images), -1)))
    return pairs


def _decoded(images: Sequence[Any], preprocess: Preprocess, batch_size: int) -> np.ndarray:
    """Pixels as a model sees them, uint8 ``[batch_size, height, width, channels]``."""
    pixels = np.zeros((batch_size, *preprocess.crop, 3), np.uint8)

    def read(row: int) -> None:
        pixels[row] = images[row].centre(preprocess.resize, preprocess.crop)

    with ThreadPoolExecutor() as pool:
        list(pool.map(read, range(len(images))))
    return as_seen(pixels, preprocess)


def _check_names(one: Contestant, wanted: tuple[str, ...]) -> None:
    """Raises MeasureError where a model knows its classes, and they are not those of the images."""
    names, numbers = one.preprocess.class_names, tuple(map(str, range(len(wanted))))
    if not names or wanted in (names[: len(wanted)], numbers):
        return
    pairs = enumerate(zip(names, wanted, strict=False))
    number = next((i for i, (a, b) in pairs if a != b), len(names))
    known = repr(names[number]) if number < len(names) else "missing"
    raise MeasureError(
        f"{one.name} tells other classes apart than the test images show: number {number} is"
        f" {known}, the images' {wanted[number]!r}; give images of its {len(names)} classes, all of"
        " them, in its order"
    )


def _check_classes(one: Contestant, name: str, values: np.ndarray, classes: int) -> None:
    if name == "features":
        raise MeasureError(
            f"{one.name} has no head, so labels say nothing of it; give images without class"
            " folders, and its features are compared with the first model's"
        )
    if values.shape[1] < classes:
        raise MeasureError(
            f"{one.name} tells {values.shape[1]} classes apart, the test images show {classes};"
            " give images of its classes"
        )


def _cosines(
    contestants: Sequence[Contestant], outputs: list[tuple[str, np.ndarray]], i: int
) -> np.ndarray:
    """Of each image's output to the first one's, ``[images]``."""
    (name, first), (other, values) = outputs[0], outputs[i]
    if values.shape != first.shape:
        raise MeasureError(
            f"{contestants[i].name} gives {values.shape[1]} {other} an image,"
            f" {contestants[0].name} {first.shape[1]} {name}: they cannot be compared; leave one"
            " out, or test on labelled images"
        )
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(values, axis=1)
    return (first * values).sum(1) / np.maximum(lengths, np.finfo(np.float32).tiny)
