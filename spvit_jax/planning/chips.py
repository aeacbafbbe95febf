"""Accelerators that a run can be planned for, and devices to compile for without having them."""

import dataclasses
import importlib.metadata
import importlib.util
import os

import jax

from spvit_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, which JAX sees as one device.

    The figures are those of cloud.google.com/tpu/docs and of NVIDIA's data sheets.
    """

    title: str
    tflops: float  # peak of products in bfloat16, without sparsity, in 1e12 operations a second
    gigabytes: float  # of memory, in 1e9 bytes
    alone: int  # chips of the largest machine that works without others
    per_host: int  # chips of a machine that works with others
    topology: str = ""  # what libtpu calls its kind; "": not a TPU
    accelerator: str = ""  # what Google Cloud calls a slice, before its number
    cores: int = 1  # what that number counts, of a chip


CHIPS = {
    "v4": Chip("TPU v4", 275, 32, 4, 4, "v4", "v4-", 2),
    "v5e": Chip("TPU v5e", 197, 16, 8, 4, "v5e", "v5litepod-"),
    "v5p": Chip("TPU v5p", 459, 95, 4, 4, "v5p", "v5p-", 2),
    "v6e": Chip("TPU v6e", 918, 32, 8, 4, "v6e", "v6e-"),
    "a100": Chip("NVIDIA A100 80 GB", 312, 80, 8, 8),
    "h100": Chip("NVIDIA H100 SXM", 989, 80, 8, 8),
    "l4": Chip("NVIDIA L4", 121, 24, 8, 8),
}
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SLICES = {"v4": _CUBES, "v5p": _CUBES, "v5e": _FLAT, "v6e": _FLAT}  # shapes of whole slices
_QUIET = {  # libtpu, where there is no TPU to be found and none is to be taken
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices that programs are compiled for; nothing is run on them."""

    chip: Chip
    devices: list[jax.Device]
    compiler: str  # in words
    exact: bool  # whether it is the chip's own, so that the memory is that of the chip

    @classmethod
    def of(cls, name: str, count: int) -> "Target":
        """``count`` chips called ``name``; to be called before JAX touches a device.

        TPU's own compiler comes with libtpu, which needs no TPU. Without it, and for GPUs, the
        program is compiled for as many CPU devices.

        Raises:
          ConfigError: no such chip, or no slice of so many.
        """
        if name not in CHIPS:
            raise ConfigError(f"--chip must be one of {', '.join(CHIPS)}; got {name!r}")
        chip = CHIPS[name]
        jax.config.update("jax_platforms", "cpu")
        if chip.topology:
            shape = _slice(name, count)
            if importlib.util.find_spec("libtpu"):
                version = importlib.metadata.version("libtpu")
                return cls(chip, _tpus(chip, shape), f"TPU's own compiler, libtpu {version}", True)
        jax.config.update("jax_num_cpu_devices", count)
        return cls(chip, jax.devices(), "the compiler for CPUs", False)

    @property
    def name(self) -> str:
        """How many of what."""
        count = len(self.devices)
        if not self.chip.accelerator:
            return f"{count} × {self.chip.title}"
        return f"{count} × {self.chip.title} ({self.chip.accelerator}{count * self.chip.cores})"

    @property
    def hosts(self) -> int:
        """Machines these chips belong to."""
        count = len(self.devices)
        return 1 if count <= self.chip.alone else -(-count // self.chip.per_host)


def _slice(name: str, count: int) -> str:
    """The shape of a slice of ``count`` chips."""
    shapes = {_size(shape): shape for shape in SLICES[name]}
    if count not in shapes:
        raise ConfigError(
            f"--devices={count}: slices of {CHIPS[name].title} have {', '.join(map(str, shapes))}"
            " chips, each one device"
        )
    return shapes[count]


def _size(shape: str) -> int:
    size = 1
    for side in shape.split("x"):
        size *= int(side)
    return size


def _tpus(chip: Chip, shape: str) -> list[jax.Device]:
    from jax.experimental import topologies

    count = _size(shape)
    for setting, value in _QUIET.items():
        os.environ.setdefault(setting, value)
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{chip.accelerator}{count * chip.cores}")
    options = {
        "chip_config_name": "megacore" if chip.topology == "v4" else "default",
        "chips_per_host_bounds": (1, 1, 1) if count == 1 else (2, 2, 1),
    }
    topology = topologies.get_topology_desc(f"{chip.topology}:{shape}", "tpu", **options)
    return list(topology.devices)
