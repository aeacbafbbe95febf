"""Latency and throughput of several models, side by side on the machine that runs this.

The speed of a shared machine drifts by tens of per cent within minutes. The models therefore take
turns, call by call, and are compared within each turn: a ratio is the median over turns, not a
quotient of two medians.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import numpy as np
from jax import Array

from spvit_jax.sizes import Size, sides

_MIN_ROUNDS = 5  # even where one round takes longer than the time given
_WARM_UP = 2  # calls that are not counted

Model = Callable[[Array], Array]


@dataclass(frozen=True)
class Timing:
    """How fast one model runs; ratios are to the first model measured with it."""

    latency_ms: float  # median of a call with one image
    latency_iqr_ms: float  # third minus first quartile of the same
    images_per_second: float  # median over calls with a whole batch
    latency_ratio: float  # below 1: faster than the first
    throughput_ratio: float  # above 1: faster than the first


def measure(
    models: Mapping[str, Model],
    image_size: Size,
    batch_size: int,
    seconds: float,
    channels: int = 3,
) -> dict[str, Timing]:
    """The ``Timing`` of every model on this process's first device, an accelerator if it has one.

    Args:
      models: pure functions of images [batch, height, width, channels], float32. What
        they close over becomes an argument of the compiled program, as weights are when a model is
        served.
      image_size: pixels: a side of a square, or height and width.
      batch_size: images a call when throughput is measured.
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
    quartiles = np.percentile(one, [25, 50, 75], axis=0) * 1e3
    latency_ratio = np.median(one / one[:, :1], axis=0)
    throughput_ratio = np.median(batch[:, :1] / batch, axis=0)
    return {
        name: Timing(
            latency_ms=float(quartiles[1, i]),
            latency_iqr_ms=float(quartiles[2, i] - quartiles[0, i]),
            images_per_second=float(batch_size / np.median(batch[:, i])),
            latency_ratio=float(latency_ratio[i]),
            throughput_ratio=float(throughput_ratio[i]),
        )
        for i, name in enumerate(models)
    }


def _times(
    models: Mapping[str, Model], image: tuple[int, ...], batch_size: int, seconds: float
) -> np.ndarray:
    """Seconds of each call [turns, models]."""
    shape = (batch_size, *image)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    images = jax.device_put(values, jax.local_devices()[0])
    calls = [_compiled(model, images) for model in models.values()]
    for call in calls * _WARM_UP:
        jax.block_until_ready(call(images))
    rows: list[list[float]] = []
    end = time.perf_counter() + seconds
    while len(rows) < _MIN_ROUNDS or time.perf_counter() < end:
        rows.append([_seconds(call, images) for call in calls])
    return np.array(rows)


def _compiled(model: Model, images: Array) -> Model:
    """``model`` compiled for the shape of ``images``, where those are.

    Captured weights are lifted out into arguments: as constants they would be copied into every
    program and folded by the compiler, which takes seconds for a model of some 100 MB.
    """
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    closed = jax.make_jaxpr(model)(shape)

    def run(weights: list[Array], x: Array) -> list[Array]:
        return jax.core.eval_jaxpr(closed.jaxpr, weights, x)

    weights = [jax.device_put(w, images.sharding) for w in closed.consts]
    program = jax.jit(run).lower(weights, images).compile()
    return lambda x: program(weights, x)


def _seconds(call: Model, images: Array) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(images))
    return time.perf_counter() - start
