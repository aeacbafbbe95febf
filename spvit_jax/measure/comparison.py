"""``compare``: contestants next to each other, and what they were measured on."""

import dataclasses
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spvit_jax.measure.contestants import RUNTIMES, Contestant
from spvit_jax.measure.tested import Tested
from spvit_jax.measure.turns import Timing, take_turns, timings


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Contestants, measured next to each other.

    Attributes:
      contestants: ratios are to the first.
      timings: of each.
      tested: how good they are; None: without test images.
      batch_size: of images_per_second.
      turns: at batch 1, and of a whole batch.
      device: what JAX runs on, and the processor that the others do.
      threads: of one call on the processor.
      versions: of the libraries that took part.
    """

    contestants: tuple[Contestant, ...]
    timings: tuple[Timing, ...]
    tested: Tested | None
    batch_size: int
    turns: tuple[int, int]
    device: str
    threads: int
    versions: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The whole of it as JSON's values; bytes and MACs 0 are not known."""
        tested = self.tested
        models = []
        for i, (one, timing) in enumerate(zip(self.contestants, self.timings, strict=True)):
            quality = {} if tested is None else {tested.measure: tested.values[i]}
            about = {
                "name": one.name,
                "runtime": one.runtime,
                "bytes": one.size,
                "macs": one.macs,
                "image_size": list(one.preprocess.crop),
            }
            models.append({**about, **dataclasses.asdict(timing), **quality})
        settings = {name: getattr(self, name) for name in ("batch_size", "device", "threads")}
        images = None if tested is None else tested.images
        return {**settings, "versions": self.versions, "test_images": images, "models": models}


def compare(
    contestants: Sequence[Contestant],
    *,
    batch_size: int,
    seconds: float,
    threads: int,
    tested: Tested | None = None,
) -> Comparison:
    """Measures contestants.

    Args:
      contestants: one or more.
      batch_size: images per call when throughput is measured.
      seconds: given to all calls with one image, and again to all with a batch.
      threads: that the contestants were opened with.
      tested: how good they are.
    """

    def times(batch: int) -> np.ndarray:
        noise, calls = np.random.default_rng(0), []
        for one in contestants:
            shape = (batch, *one.preprocess.crop, one.preprocess.channels)
            calls.append(one.bind(noise.integers(0, 256, shape).astype(np.uint8)))
        return take_turns(calls, seconds)

    one, batch = times(1), times(batch_size)
    modules = {RUNTIMES[contestant.runtime].modules[0] for contestant in contestants}
    return Comparison(
        tuple(contestants),
        tuple(timings(one, batch, batch_size)),
        tested,
        batch_size,
        (len(one), len(batch)),
        _device("jax" in modules),
        threads,
        {name: version(name) for name in ("spvit_jax", *sorted(modules))},
    )


def cores() -> int:
    """Counts the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _device(by_jax: bool) -> str:
    """The processor, as far as the system tells, and before it an accelerator that JAX uses."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = (named or [platform.processor() or platform.machine()])[0]
    device = jax.local_devices()[0]
    if device.platform == "cpu" or not by_jax:
        return processor
    return f"{device.device_kind} (JAX) and {processor}"
