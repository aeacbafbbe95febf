"""Where arrays live: a mesh of every device with one axis, ``data``."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh() -> Mesh:
    """All devices in one axis; one device is a mesh of one."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device: parameters, statistics, gates, optimiser."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Split along the first axis: images and labels."""
    return NamedSharding(mesh, PartitionSpec("data"))
