"""Batches from a source, with Grain: what step k sees is a pure function of (seed, k).

So there is no iterator state to save: a resumed run asks for ``start_step``, and the number of
workers, threads or processes may have changed meanwhile.
"""

import collections
import dataclasses
import itertools
import os
import signal
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import Source
from spvit_jax.data.transforms import eval_transform, train_transform

Batch = dict[str, np.ndarray]


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Whole batches in one pass over ``source``.

    Raises:
      DataError: there is not one.
    """
    if len(source) < batch_size:
        raise DataError(
            f"a batch of {batch_size} images is more than the {len(source)} training images;"
            f" choose batch_size {len(source)} or less"
        )
    return len(source) // batch_size


def train_batches(
    source: Source,
    *,
    batch_size: int,
    image_size: int,
    augment: str,
    seed: int,
    start_step: int,
    workers: int = 0,
) -> Iterator[Batch]:
    """Endless shuffled batches, from ``start_step`` on: this process's share of each.

    Epochs follow each other without a gap, each in its own order: every image comes once before
    any comes again, and where ``batch_size`` does not divide their number a batch holds the end
    of one epoch and the beginning of the next. Processes share a global batch row by row, so its
    set of images, and their augmentation, does not depend on how many processes there are.

    Args:
      batch_size: images a step over all processes.
      image_size: side in pixels.
      augment: see ``transforms.train_transform``.
      seed: of order and augmentation, 0 to 2**32 - 1.
      start_step: batches to leave out at the start, which costs nothing.
      workers: decoding processes; 0: threads of this one. The batches are the same. Grain's
        processes read absl flags, which must have been parsed (``absl.app.run`` does that).

    Yields:
      ``{"image": uint8 [b, image_size, image_size, 3], "label": int32 [b]}`` with b the
      ``batch_size`` divided by the number of processes.

    Raises:
      DataError: fewer images than a batch, or a batch that processes cannot share.
    """
    steps_per_epoch(source, batch_size)
    share = _share(batch_size)
    images = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat(None)
        .random_map(_TrainView(image_size, augment))
    )
    mine = images[jax.process_index() :: jax.process_count()]
    return _iterate(mine.batch(share, drop_remainder=True)[start_step:], workers)


def eval_batches(
    source: Source, *, batch_size: int, image_size: int, crop_ratio: float, workers: int = 0
) -> Iterator[Batch]:
    """Every image once, in order: this process's share of each batch.

    The last batch is filled up with black images that ``mask`` excludes, so every batch has one
    shape and every process the same number of batches.

    Args:
      batch_size: images a batch over all processes.
      image_size: side in pixels.
      crop_ratio: see ``transforms.eval_transform``.
      workers: as in ``train_batches``.

    Yields:
      ``{"image": uint8 [b, image_size, image_size, 3], "label": int32 [b], "mask": bool [b]}``.

    Raises:
      DataError: a batch that processes cannot share.
    """
    share = _share(batch_size)
    batches = -(-len(source) // batch_size)
    images = grain.MapDataset.range(batches * batch_size).map(
        _EvalView(source, image_size, crop_ratio)
    )
    mine = images[jax.process_index() :: jax.process_count()]
    return _iterate(mine.batch(share, drop_remainder=True), workers)


def to_device(batch: Batch, sharding: NamedSharding) -> dict[str, jax.Array]:
    """This process's rows as global arrays, [batch_size, ...], split by ``sharding``.

    Raises:
      DataError: the rows cannot be divided among this process's devices.
    """
    devices = len(sharding.mesh.local_devices)
    rows = len(batch["label"])
    if rows % devices:
        raise DataError(
            f"{rows} images a process cannot be divided among its {devices} devices;"
            " choose a batch size that is a multiple of the number of devices"
        )
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
    image_size: int
    augment: str

    def random_map(self, element: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image = train_transform(
            element["image"], rng, image_size=self.image_size, augment=self.augment
        )
        return {"image": image, "label": np.int32(element["label"])}


@dataclasses.dataclass(frozen=True)
class _EvalView(grain.transforms.Map):
    source: Source
    image_size: int
    crop_ratio: float

    def map(self, element: int) -> dict[str, Any]:
        if element >= len(self.source):
            image = np.zeros((self.image_size, self.image_size, 3), np.uint8)
            return {"image": image, "label": np.int32(0), "mask": np.False_}
        found = self.source[element]
        image = eval_transform(
            found["image"], image_size=self.image_size, crop_ratio=self.crop_ratio
        )
        return {"image": image, "label": np.int32(found["label"]), "mask": np.True_}


def _share(batch_size: int) -> int:
    if batch_size % jax.process_count():
        raise DataError(
            f"a batch of {batch_size} images cannot be divided among {jax.process_count()}"
            " processes; choose a multiple"
        )
    return batch_size // jax.process_count()


def _iterate(batches: grain.MapDataset, workers: int) -> Iterator[Batch]:
    threads = min(8, os.cpu_count() or 1)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    found = batches.to_iter_dataset(options)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers)
        found = found.mp_prefetch(options, worker_init_fn=_leave_signals_to_parent)
    return iter(found)


def _leave_signals_to_parent(worker: int, workers: int) -> None:
    """Ctrl-C and schedulers signal all processes: the parent still needs its batch to end well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
