"""Batches from a source, with Grain: what step k sees is a pure function of (seed, k).

So there is no iterator state to save: a resumed run asks for ``start_step``, and the number of
workers, threads or processes may have changed meanwhile.
"""

import collections
import dataclasses
import itertools
import logging
import os
import signal
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from spvit_jax.config import Data
from spvit_jax.data.decode import Opened
from spvit_jax.data.errors import DataError, LabelError
from spvit_jax.data.sources import Source
from spvit_jax.data.transforms import PRESETS, eval_transform, train_transform
from spvit_jax.sizes import Size, sides

Batch = dict[str, np.ndarray]
SKIPS = 100  # images that may be damaged in a row


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole batches in one pass over so many images; what is left over waits for another epoch.

    Raises:
      DataError: there is not one.
    """
    if images < batch_size:
        raise DataError(
            f"a batch of {batch_size} images is more than the {images} training images;"
            f" choose batch_size {images} or less"
        )
    return images // batch_size


def train_batches(
    source: Source,
    data: Data,
    *,
    batch_size: int,
    rows: np.ndarray,
    image_size: Size,
    seed: int,
    start_step: int,
) -> Iterator[Batch]:
    """Endless shuffled batches, from ``start_step`` on: this process's rows of each.

    Each epoch has its own order and only whole batches. Which image stands in which row of which
    batch, and how it is augmented, does not depend on how processes share the rows; nor does it on
    ``data.workers``. Grain's worker processes read absl flags, which must have been parsed
    (``absl.app.run`` does that).

    Args:
      data: augmentation, repeats, workers, and what to do about damaged images.
      batch_size: images per step over all processes.
      rows: of each batch, those that this process feeds to its devices.
      image_size: pixels: a side of a square, or height and width.
      seed: of order and augmentation, 0 to 2**32 - 1.
      start_step: batches to leave out at the start, which costs nothing.

    Yields:
      ``{"image": uint8 [b, height, width, 3], "label": int32 [b]}``, b the number of ``rows``.

    Raises:
      DataError: fewer images than a batch, or a damaged image with ``data.on_error`` "raise".
      LabelError: an image's label is of no class, whatever ``data.on_error`` says.
    """
    epoch = steps_per_epoch(len(source), batch_size) * batch_size
    order = Order(len(source), epoch, data.repeats, seed)
    views = (
        grain.MapDataset.source(order).seed(seed).random_map(_TrainView(source, image_size, data))
    )
    return _iterate(Rows(views, batch_size, rows), start_step, data.workers)


def eval_batches(
    source: Source,
    data: Data,
    *,
    batch_size: int,
    rows: np.ndarray,
    image_size: Size,
    views: int = 1,
) -> Iterator[Batch]:
    """Every image, in order: this process's rows of each batch.

    The last batch is filled up with black images that ``mask`` excludes, so every batch has one
    shape and every process the same number of batches. With ``data.on_error`` "skip" it excludes
    damaged images as well.

    Args:
      data, batch_size, rows, image_size: as for ``train_batches``.
      views: of each image, one after another: as evaluation sees it, then crops and flips as in
        training (of the richer augmentations, "plain"), the same ones at every call.

    Yields:
      ``{"image": uint8 [b, height, width, 3], "label": int32 [b], "mask": bool [b]}``.

    Raises:
      DataError: a damaged image.
      LabelError: an image's label is of no class, whatever ``data.on_error`` says.
    """
    batches = -(-len(source) * views // batch_size)
    view = _EvalView(source, image_size, data, views)
    images = grain.MapDataset.range(batches * batch_size).map(view)
    return _iterate(Rows(images, batch_size, rows), 0, data.workers)


class Rows:
    """The elements of ``images`` in the given rows of each batch; random access, picklable."""

    def __init__(self, images: grain.MapDataset, batch_size: int, rows: np.ndarray):
        self.images = images
        self.batch_size = batch_size
        self.rows = rows

    def __len__(self) -> int:
        """Whole batches only."""
        return len(self.images) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Element ``index`` of what this process feeds."""
        batch, row = divmod(index, len(self.rows))
        return self.images[batch * self.batch_size + int(self.rows[row])]


class Order:
    """The index of the image at each place of an endless training; random access, picklable.

    Epoch e is the first ``epoch`` places of permutation e of all images, each image ``repeats``
    times in a row: of the permutation, then, only ``1 / repeats`` (Hoffer et al. 2020).
    """

    def __init__(self, images: int, epoch: int, repeats: int, seed: int):
        self.images = images
        self.epoch = epoch
        self.repeats = repeats
        self.permutations = grain.MapDataset.range(images).seed(seed).shuffle().repeat(None)

    def __len__(self) -> int:
        """More places than any training has steps."""
        return 2**62

    def __getitem__(self, place: int) -> int:
        """The index of the image at ``place``."""
        epoch, within = divmod(place, self.epoch)
        return int(self.permutations[epoch * self.images + within // self.repeats])


def to_device(batch: Batch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows as global arrays, [batch_size, ...], divided by ``sharding``."""
    return {
        name: jax.make_array_from_process_local_data(sharding, array)
        for name, array in batch.items()
    }


def prefetch(
    batches: Iterator[Batch], sharding: NamedSharding, size: int = 2
) -> Iterator[dict[str, jax.Array]]:
    """``batches`` on the devices, ``size`` of them under way before they are asked for."""
    queue = collections.deque(to_device(b, sharding) for b in itertools.islice(batches, size))
    while queue:
        yield queue.popleft()
        queue.extend(to_device(b, sharding) for b in itertools.islice(batches, 1))


@dataclasses.dataclass(frozen=True)
class _TrainView(grain.transforms.RandomMap):
    """A view of an image; of the next one that can be decoded, where damage is to be skipped."""

    source: Source
    image_size: Size
    data: Data
    damaged: set[str] = dataclasses.field(default_factory=set)

    def random_map(self, element: int, rng: np.random.Generator) -> dict[str, Any]:
        for index in range(element, element + SKIPS):
            try:
                example = self.source[index % len(self.source)]
                image = train_transform(
                    example["image"], rng, image_size=self.image_size, augment=self.data.augment
                )
                return {"image": image, "label": np.int32(example["label"])}
            except DataError as error:
                _skip_or_raise(error, self.data, self.damaged)
        raise DataError(f"{SKIPS} damaged images in a row, up to number {index}: check the data")


@dataclasses.dataclass(frozen=True)
class _EvalView(grain.transforms.Map):
    source: Source
    image_size: Size
    data: Data
    views: int
    damaged: set[str] = dataclasses.field(default_factory=set)

    def map(self, element: int) -> dict[str, Any]:
        index, view = divmod(element, self.views)
        blank = np.zeros((*sides(self.image_size), 3), np.uint8)
        if index >= len(self.source):
            return {"image": blank, "label": np.int32(0), "mask": np.False_}
        try:
            example = self.source[index]
            rng = np.random.default_rng((index, view)) if view else None
            image = self._view(example["image"], rng)
            return {"image": image, "label": np.int32(example["label"]), "mask": np.True_}
        except DataError as error:
            _skip_or_raise(error, self.data, self.damaged)
            return {"image": blank, "label": np.int32(0), "mask": np.False_}

    def _view(self, opened: Opened, rng: np.random.Generator | None) -> np.ndarray:
        size, augment = self.image_size, self.data.augment
        if rng is None:
            return eval_transform(opened, image_size=size, crop_ratio=self.data.crop_ratio)
        return train_transform(
            opened, rng, image_size=size, augment="plain" if augment in PRESETS else augment
        )


def _skip_or_raise(error: DataError, data: Data, known: set[str]) -> None:
    """One warning for each damaged image, with how many there have been; or the error."""
    if isinstance(error, LabelError):
        raise error
    if data.on_error == "raise":
        raise DataError(f"{error}, or leave out such images with data.on_error=skip") from error
    if str(error) not in known:
        known.add(str(error))
        logging.getLogger(__name__).warning("left out image %d: %s", len(known), error)


def _iterate(rows: Rows, start: int, workers: int) -> Iterator[Batch]:
    """Batches of ``rows``, from number ``start`` on."""
    batches = grain.MapDataset.source(rows).batch(len(rows.rows), drop_remainder=True)[start:]
    threads = min(8, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = batches.to_iter_dataset(options)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers)
        dataset = dataset.mp_prefetch(options, worker_init_fn=_leave_signals_to_parent)
    return iter(dataset)


def _leave_signals_to_parent(worker: int, workers: int) -> None:
    """Ctrl-C and schedulers signal all processes: the parent still needs its batch to end well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
