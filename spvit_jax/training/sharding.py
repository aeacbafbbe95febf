"""Where arrays live: a mesh with the axes ``data`` and ``fsdp``.

The rows of a batch are divided among all devices. Each group of ``fsdp`` devices shares one copy
of the weights, the optimiser's moments and the average, divided along an axis of each array; the
step gathers the weights it needs and scatters their gradient. No choice changes the results.
"""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spvit_jax.config import ConfigError, Training

AXES = ("data", "fsdp")
SMALL = 2**14  # elements; arrays with fewer are not worth dividing: norms, biases, gates

Tree = TypeVar("Tree")


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All ``devices`` (default: those of every process); one device is a mesh of one.

    Args:
      fsdp: devices that share one copy of the weights; 0: all of them.
      devices: also those of a topology that is only compiled for.

    Raises:
      ConfigError: ``fsdp`` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    fsdp = fsdp or len(devices)
    if len(devices) % fsdp:
        raise ConfigError(
            f"sharding.fsdp={fsdp} does not divide the {len(devices)} devices; choose a number that"
            " does, 0 for all of them or 1 for a copy on each"
        )
    shape = (len(devices) // fsdp, fsdp)
    grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def host() -> jax.Device:
    """The CPU of this process, also beside accelerators.

    What is computed there takes none of their memory, and products have full precision, which
    those of a TPU have not by default.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves it out
        return jax.local_devices()[0]


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Rows divided among all devices: images and labels."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def sharded(mesh: Mesh, tree: Tree) -> Tree:
    """The sharding of each array of ``tree``, which may be abstract.

    An array is divided along its largest axis that ``fsdp`` divides, the last of equal ones;
    where there is none, or it is small, it is replicated.
    """
    parts = mesh.shape["fsdp"]

    def rule(leaf: jax.Array) -> NamedSharding:
        axes = [i for i, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or leaf.size < SMALL or not axes:
            return replicated(mesh)
        widest = max(axes, key=lambda i: (leaf.shape[i], i))
        return NamedSharding(mesh, PartitionSpec(*[None] * widest, "fsdp"))

    return jax.tree.map(rule, tree)


def place(tree: Tree, shardings: Tree) -> Tree:
    """``tree``, which every process holds whole, as global arrays; nothing is communicated."""

    def put(leaf: jax.Array, sharding: NamedSharding) -> jax.Array:
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])

    return jax.tree.map(put, tree, shardings)


def gathered(mesh: Mesh, tree: Tree) -> Tree:
    """Inside a jitted function: ``tree`` with all of each array on every device."""
    return jax.lax.with_sharding_constraint(tree, replicated(mesh))


def whole(mesh: Mesh, tree: Tree) -> Tree:
    """Global arrays as ordinary ones of this process, each with all of its values."""
    copies = jax.jit(lambda x: x, out_shardings=replicated(mesh))(tree)
    return jax.tree.map(lambda leaf: jax.numpy.asarray(np.asarray(leaf)), copies)


def check_batch(name: str, training: Training, devices: int) -> None:
    """Raises ``ConfigError`` unless so many devices can share each micro-batch of a training.

    ``name`` is the training's group in the config.
    """
    size, count = training.batch_size, training.accumulation
    unit = count * devices
    if size % unit:
        near = max(size // unit, 1) * unit
        parts = f" in {count} micro-batches" if count > 1 else ""
        raise ConfigError(
            f"{name}.batch_size={size}{parts} cannot be divided among {devices} devices; choose a"
            f" multiple of {unit}, such as {near} or {near + unit}"
            + (f", or a smaller {name}.accumulation" if count > 1 else "")
        )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending."""
    places = batch_sharded(mesh).addressable_devices_indices_map((batch_size,))
    rows = [np.arange(batch_size)[index] for index in places.values() if index is not None]
    return np.sort(np.concatenate(rows))
