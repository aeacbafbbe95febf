"""Latency and throughput of several models, side by side on the machine that runs this.

The speed of a shared machine drifts by tens of per cent within minutes. The models therefore take
turns, call by call, and are compared within each turn: a ratio is the median over turns, not a
quotient of two medians.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from spvit_jax.sizes import Size, sides

_MIN_ROUNDS = 5  # even where one round takes longer than the time given
_WARM_UP = 2  # calls that are not counted

Model = Callable[[Array], Any]
Call = Callable[[], Any]  # returns when its work is done


@dataclass(frozen=True)
class Timing:
    """How fast one model runs; ratios are to the first model measured with it."""

    latency_ms: float  # median of a call with one image
    latency_iqr_ms: float  # third minus first quartile of the same
    images_per_second: float  # median over calls with a whole batch
    latency_ratio: float  # below 1: faster than the first
    throughput_ratio: float  # above 1: faster than the first
    latency_p90_ms: float = math.nan  # what 90 % of the calls took at most; NaN: nobody looked
    latency_p99_ms: float = math.nan


class Programs:
    """A model as programs for images of several shapes, each compiled when it is asked for."""

    def __init__(self, model: Model):
        self._model, self._compiled = model, dict[tuple[int, ...], Model]()

    def on(self, images: Array) -> Model:
        """The program for images of this shape."""
        if images.shape not in self._compiled:
            self._compiled[images.shape] = compiled(self._model, images)
        return self._compiled[images.shape]


def measure(
    models: Mapping[str, Model | Programs],
    image_size: Size,
    batch_size: int,
    seconds: float,
    channels: int = 3,
) -> dict[str, Timing]:
    """The ``Timing`` of every model on this process's first device, an accelerator if it has one.

    Args:
      models: pure functions of images [batch, height, width, channels], float32. What
        they close over becomes an argument of the compiled program, as weights are when a model is
        served. ``Programs`` of one that is measured again are compiled once.
      image_size: pixels: a side of a square, or height and width.
      batch_size: images per call when throughput is measured.
      seconds: time given to all calls for latency, and again for throughput; compiling not
        included. At least five turns are taken however long they last.

      channels: of the images.

    Raises:
      ValueError: no model, or a size or time that is not positive.
    """
    if not models:
        raise ValueError("measure needs at least one model, got none")
    if min(sides(image_size)) < 1 or batch_size < 1 or seconds <= 0:
        raise ValueError(
            "image_size, batch_size and seconds must be above 0, got"
            f" {image_size}, {batch_size} and {seconds}"
        )
    image = (*sides(image_size), channels)
    one = _times(models, image, 1, seconds)
    batch = _times(models, image, batch_size, seconds)
    return dict(zip(models, timings(one, batch, batch_size), strict=True))


def timings(one: np.ndarray, batch: np.ndarray, batch_size: int) -> list[Timing]:
    """The ``Timing`` of each model.

    Args:
      one: seconds of calls with one image, ``[turns, models]``.
      batch: of calls with a batch, ``[turns, models]``; the turns may be fewer.
      batch_size: images of that.
    """
    first, median, third, p90, p99 = np.percentile(one, [25, 50, 75, 90, 99], axis=0) * 1e3
    latency_ratio = np.median(one / one[:, :1], axis=0)
    throughput_ratio = np.median(batch[:, :1] / batch, axis=0)
    return [
        Timing(
            latency_ms=float(median[i]),
            latency_iqr_ms=float(third[i] - first[i]),
            images_per_second=float(batch_size / np.median(batch[:, i])),
            latency_ratio=float(latency_ratio[i]),
            throughput_ratio=float(throughput_ratio[i]),
            latency_p90_ms=float(p90[i]),
            latency_p99_ms=float(p99[i]),
        )
        for i in range(one.shape[1])
    ]


def take_turns(calls: Sequence[Call], seconds: float) -> np.ndarray:
    """Seconds of each call, ``[turns, calls]``, of at least five turns."""
    for call in [*calls] * _WARM_UP:
        call()
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < _MIN_ROUNDS or time.perf_counter() < end:
        rows.append([_seconds(call) for call in calls])
    return np.array(rows)


def compiled(model: Model, images: Array) -> Model:
    """``model`` compiled for the shape of ``images``, where those are.

    Captured weights are lifted out into arguments: as constants they would be copied into every
    program and folded by the compiler, which takes seconds for a model of some 100 MB.
    """
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    closed, outputs = jax.make_jaxpr(model, return_shape=True)(shape)

    def run(weights: list[Array], x: Array) -> Any:
        leaves = jax.core.eval_jaxpr(closed.jaxpr, weights, x)
        return jax.tree.unflatten(jax.tree.structure(outputs), leaves)

    weights = [jax.device_put(w, images.sharding) for w in closed.consts]
    program = jax.jit(run).lower(weights, images).compile()
    return lambda x: program(weights, x)


def _times(
    models: Mapping[str, Model | Programs], image: tuple[int, ...], batch_size: int, seconds: float
) -> np.ndarray:
    """Seconds of each call [turns, models]."""
    shape = (batch_size, *image)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    images = jax.device_put(values, jax.local_devices()[0])
    programs = (m if isinstance(m, Programs) else Programs(m) for m in models.values())
    calls = [_call(program.on(images), images) for program in programs]
    return take_turns(calls, seconds)


def _call(program: Model, images: Array) -> Call:
    return lambda: jax.block_until_ready(program(images))


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
