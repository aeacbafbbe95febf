"""What a person reads of forecasts: a table with a column a training, and what it assumes."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from spvit_jax.config import Config
from spvit_jax.planning.chips import Target
from spvit_jax.planning.forecast import PREFETCHED, Forecast, Memory
from spvit_jax.planning.trainings import Images
from spvit_jax.text import aligned

_MISSING, _WIDTH = "–", 100
_PARTS: dict[str, Callable[[Memory], int]] = {
    "  weights, optimiser, teacher": lambda memory: memory.state,
    f"  batches, {PREFETCHED} of them waiting": lambda memory: memory.batches,
    "  activations, gradients": lambda memory: memory.temporary,
    "  program": lambda memory: memory.program,
}


@dataclasses.dataclass(frozen=True)
class Outlook:
    """Forecasts of all trainings of a run, and the speed they are given."""

    config: Config
    target: Target
    images: Images
    utilization: float  # share of the chips' peak
    forecasts: Sequence[Forecast]

    @property
    def operations(self) -> float:
        """Operations a second of all devices, as assumed."""
        return self.utilization * self.target.chip.tflops * 1e12 * len(self.target.devices)

    @property
    def fits(self) -> bool:
        """Whether every program fits the memory of a device."""
        return all(self._fits(one) for one in self.forecasts)

    def _fits(self, one: Forecast) -> bool:
        return one.memory is not None and one.memory.total <= self.target.chip.gigabytes * 1e9

    def table(self) -> str:
        """One column a training."""
        kinds = sorted({kind for one in self.forecasts for kind in one.sent})
        rows = [
            (self.target.name, *(one.name for one in self.forecasts)),
            self._row("images a step", lambda one: f"{one.batch_size:,}"),
            self._row("steps", lambda one: f"{one.steps:,}"),
            self._row("MACs a step (T)", lambda one: _digits(one.macs / 1e12)),
            self._row("memory of a device (GB)", self._memory),
            *(self._part(name, size) for name, size in _PARTS.items()),
            self._row("sent by a device, a step (MB)", lambda one: _sent(one, kinds)),
            *(self._row(f"  {kind}", partial(_sent, kinds=[kind])) for kind in kinds),
            self._row("ms a step", lambda one: _digits(1e3 * one.step_seconds(self.operations))),
            self._row("images/s", lambda one: f"{self._rate(one):,.0f}"),
            self._row("hours", lambda one: _digits(one.hours(self.operations))),
            self._row("  device-hours", lambda one: _digits(self._device_hours(one))),
        ]
        return aligned(rows)

    def _row(self, name: str, cell: Callable[[Forecast], str]) -> tuple[str, ...]:
        return (name, *map(cell, self.forecasts))

    def _part(self, name: str, size: Callable[[Memory], int]) -> tuple[str, ...]:
        return self._row(
            name, lambda one: _digits(size(one.memory) / 1e9) if one.memory else _MISSING
        )

    def _memory(self, one: Forecast) -> str:
        if one.memory is None:
            return "too much"
        return f"{_digits(one.memory.total / 1e9)} of {self.target.chip.gigabytes:g}"

    def _rate(self, one: Forecast) -> float:
        """Images a second."""
        return one.batch_size / one.step_seconds(self.operations)

    def _device_hours(self, one: Forecast) -> float:
        return len(self.target.devices) * one.hours(self.operations)

    def assumptions(self, remarks: Iterable[str]) -> str:
        """Totals, and what the figures rest on; ``remarks`` are of the trainings."""
        hours = sum(one.hours(self.operations) for one in self.forecasts)
        count, chip, mesh = len(self.target.devices), self.target.chip, self.config.sharding
        rate = max(map(self._rate, self.forecasts)) / self.target.hosts
        lines = [
            f"Together {_digits(hours)} hours, {_digits(count * hours)} device-hours.",
            *self._warnings(),
        ]
        basis = [
            f"Compiled by {self.target.compiler}; sharding.fsdp={mesh.fsdp}.",
            f"Speed is stated, not measured: {self.utilization:.0%} of {chip.tflops:g} TFLOP/s a"
            " chip, its peak in bfloat16. MACs are those of the traced step's products.",
            "Hours are those of steps and evaluations at that speed; not of compiling, loading,"
            " saving, or waiting for images.",
            f"For that, each of {self.target.hosts} hosts decodes {rate:,.0f} images/s.",
            "Bytes sent are counted as rings send them.",
            f"{self.images.train:,} images to train on, {self.images.test:,} to evaluate with.",
            *(f"{remark}." for remark in remarks),
        ]
        lines = [textwrap.fill(line, _WIDTH) for line in lines]
        wrap = partial(textwrap.fill, width=_WIDTH, initial_indent="- ", subsequent_indent="  ")
        return "\n".join([*lines, "", "What this rests on:", *map(wrap, basis)])

    def _warnings(self) -> list[str]:
        """What stands against the run."""
        lines = []
        for one in self.forecasts:
            if not self._fits(one):
                reason = f" ({one.refusal})" if one.refusal else ""
                lines.append(
                    f"{one.name} DOES NOT FIT{reason}: try --config.{one.name}.accumulation="
                    f"{2 * getattr(self.config, one.name).accumulation}, --config.model.remat=true,"
                    " --config.sharding.fsdp=0 or more devices."
                )
        if not self.target.exact:
            lines.append(
                f"The memory is that of a program for CPUs, not for a {self.target.chip.title}"
                + ("; pip install 'jax[tpu]' for its own." if self.target.chip.topology else ".")
            )
        if self.config.model.dtype != "bfloat16":
            lines.append(
                f"model.dtype={self.config.model.dtype} is slower than bfloat16's peak suggests:"
                " --config.model.dtype=bfloat16."
            )
        return lines


def _digits(value: float) -> str:
    """Three significant digits, all of those before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")


def _sent(one: Forecast, kinds: Iterable[str]) -> str:
    if one.memory is None:
        return _MISSING
    return _digits(sum(one.sent.get(kind, 0) for kind in kinds) / 1e6)
