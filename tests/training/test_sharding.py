"""Meshes and rules, on the devices there are and, of abstract ones, on more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from spvit_jax.config import ConfigError, Search
from spvit_jax.training import sharding


def abstract(data, fsdp):
    return AbstractMesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def rule(shape, fsdp):
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    return sharding.sharded(abstract(2, fsdp), leaf).spec


@pytest.mark.parametrize(
    ("shape", "fsdp", "spec"),
    [
        ((768, 3072), 8, PartitionSpec(None, "fsdp")),
        ((3072, 768), 8, PartitionSpec("fsdp")),
        ((768, 768), 8, PartitionSpec(None, "fsdp")),  # of equal axes the last
        ((16, 16, 3, 768), 8, PartitionSpec(None, None, None, "fsdp")),
        ((1001, 768), 8, PartitionSpec(None, "fsdp")),  # the largest that can be divided
        ((1001, 769), 8, PartitionSpec()),  # none can
        ((127, 128), 8, PartitionSpec()),  # small
        ((128, 128), 8, PartitionSpec(None, "fsdp")),
        ((3072,), 8, PartitionSpec()),
        ((), 8, PartitionSpec()),
        ((768, 3072), 1, PartitionSpec()),  # there is one part
    ],
)
def test_the_largest_axis_that_can_be_is_divided(shape, fsdp, spec):
    assert rule(shape, fsdp) == spec


def test_a_mesh_has_both_axes_and_all_devices():
    devices = jax.devices()
    for fsdp, shape in ((1, (len(devices), 1)), (0, (1, len(devices)))):
        mesh = sharding.make_mesh(fsdp)
        assert mesh.axis_names == ("data", "fsdp") and mesh.devices.shape == shape
        assert set(mesh.devices.flat) == set(devices)


def test_a_split_that_leaves_devices_over_is_refused():
    with pytest.raises(ConfigError, match=r"sharding.fsdp=3 does not divide the 8 devices"):
        sharding.make_mesh(3, jax.devices() * 8)


def test_a_batch_that_devices_cannot_share_is_refused_with_two_that_they_can():
    def check(size, count, devices):
        sharding.check_batch("search", Search(batch_size=size, accumulation=count), devices)

    check(1024, 1, 64)
    check(1024, 16, 64)
    with pytest.raises(ConfigError, match=r"search.batch_size=100 .* 64 devices; .* 64 or 128$"):
        check(100, 1, 64)
    with pytest.raises(ConfigError, match="8 or 16"):
        check(6, 1, 8)
    with pytest.raises(ConfigError, match=r"32 micro-batches .* 64 .*, or a smaller search"):
        check(1024, 32, 64)


def test_one_process_feeds_all_rows():
    rows = sharding.local_rows(sharding.make_mesh(), 8 * jax.device_count())
    np.testing.assert_array_equal(rows, np.arange(8 * jax.device_count()))


def test_what_is_placed_comes_back_whole():
    mesh = sharding.make_mesh()
    tree = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.int32(3)}
    placed = sharding.place(tree, sharding.sharded(mesh, tree))
    assert placed["a"].sharding == sharding.replicated(mesh)
    for name, value in sharding.whole(mesh, placed).items():
        np.testing.assert_array_equal(value, tree[name])
        assert value.dtype == tree[name].dtype and len(value.devices()) == 1
