import dataclasses
import errno
import gc
import json
import logging
import os
import resource
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.remote import is_transient
from spvit_jax.training.checkpoint import CheckpointError, Checkpoints
from spvit_jax.training.sharding import make_mesh, replicated
from spvit_jax.training.step import TrainState

SHARDING = replicated(make_mesh())


def everywhere(state):
    return jax.tree.map(lambda leaf: SHARDING, state)


def make(step, size=1000):
    """A state whose every number depends on ``step``."""
    rng = np.random.default_rng(step)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape, np.float32))

    return jax.device_put(
        TrainState(
            step=jnp.int32(step),
            key=jnp.asarray([step, 7], jnp.uint32),
            params={"kernel": draw(size, 64)},
            stats={"mean": draw(3)},
            gates=({"op": draw(3), "ffn": draw(5)},),
            optimizer={"count": jnp.int32(step), "mu": draw(9)},
            average=None,
        ),
        SHARDING,
    )


def save(directory, *steps):
    with Checkpoints(directory, every=1) as checkpoints:
        for step in steps:
            checkpoints.save(step, make(step))


def restored(directory):
    with Checkpoints(directory, every=1) as checkpoints:
        return checkpoints.restore(make(0), everywhere(make(0)))


def assert_same(state, step, **options):
    jax.tree.map(np.testing.assert_array_equal, state, make(step, **options))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype, state, make(step, **options)))


def largest_file(directory):
    files = [file for file in directory.rglob("*") if file.is_file()]
    return max(files, key=lambda file: file.stat().st_size)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)


def test_nothing_saved_is_none(tmp_path):
    assert restored(tmp_path / "new") is None


def test_the_newest_comes_back_bit_for_bit_and_two_are_kept(tmp_path):
    save(tmp_path, 2, 4, 6)
    assert_same(restored(tmp_path), 6)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        assert checkpoints.steps == [4, 6]


def test_a_state_that_is_donated_while_it_is_saved_is_saved_whole(tmp_path):
    change = jax.jit(lambda state: jax.tree.map(lambda x: x * 3 + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        state = make(1, size=20_000)
        checkpoints.save(1, state)
        for _ in range(5):
            state = change(state)
        jax.block_until_ready(state)
        saved = checkpoints.restore(make(0, size=20_000), everywhere(make(0, size=20_000)))
    assert_same(saved, 1, size=20_000)


def deep(file):
    file.write_text("[" * 100_000)


DAMAGES = {
    "cut": truncate,
    "flipped": flip,
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "list": lambda file: file.write_text("[]"),
    "null": lambda file: file.write_text("null"),
    "deep": deep,
    "no UTF-8": lambda file: file.write_bytes(b"\xff\xfe"),
    "folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "default/_METADATA", "largest"])
def test_a_damaged_newest_falls_back_warns_and_is_replaced(tmp_path, damage, name, caplog, capfd):
    save(tmp_path, 2, 4)
    damage(largest_file(tmp_path / "4") if name == "largest" else tmp_path / "4" / name)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        with caplog.at_level(logging.WARNING):
            assert_same(checkpoints.restore(make(0), everywhere(make(0))), 2)
        checkpoints.save(4, make(4))
    assert "unreadable checkpoint" in caplog.text and "step 4: its " in caplog.text
    assert_same(restored(tmp_path), 4)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        assert checkpoints.steps == [2, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]
    assert "Traceback" not in capfd.readouterr().err


def unsummed(directory):
    """As a process leaves it that is killed at once after a checkpoint is finished."""
    for file in directory.glob("*/sums.json"):
        file.unlink()


def change_checksum(file):
    values = json.loads(file.read_text())
    values["custom_metadata"]["checksum"] += 1
    file.write_text(json.dumps(values))


def forget_checksum(file):
    values = json.loads(file.read_text())
    values["custom_metadata"] = {}
    file.write_text(json.dumps(values))


@pytest.mark.parametrize(
    "damage",
    [change_checksum, forget_checksum, *(DAMAGES[name] for name in ("gone", "empty", "list"))],
)
def test_without_sums_the_checksum_of_the_numbers_counts(tmp_path, damage):
    save(tmp_path, 2, 4)
    unsummed(tmp_path)
    assert_same(restored(tmp_path), 4)
    unsummed(tmp_path)
    damage(tmp_path / "4" / "_CHECKPOINT_METADATA")
    assert_same(restored(tmp_path), 2)


def test_all_checkpoints_that_cannot_be_listed_are_no_new_beginning(tmp_path):
    save(tmp_path, 2)
    truncate(tmp_path / "2" / "_CHECKPOINT_METADATA")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="step 2: its _CHECKPOINT_METADATA is damaged"):
            restored(tmp_path)


def test_a_damaged_one_takes_no_place_of_a_good_one(tmp_path):
    save(tmp_path, 2, 3)
    flip(largest_file(tmp_path / "3"))
    with Checkpoints(tmp_path, every=2) as checkpoints:
        checkpoints.restore(make(0), everywhere(make(0)))
        checkpoints.save(4, make(4))
    with Checkpoints(tmp_path, every=2) as checkpoints:
        assert checkpoints.steps == [2, 4]


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "sums.json"])
def test_what_a_disk_does_not_give_now_is_not_damaged(tmp_path, monkeypatch, name):
    def not_now(self, *options):
        if self.name == name:
            raise OSError(errno.EIO, "not now", str(self))
        return read_text(self, *options)

    save(tmp_path, 2, 4)
    read_text = Path.read_text
    with monkeypatch.context() as broken, pytest.raises(OSError, match="not now"):
        broken.setattr(Path, "read_text", not_now)
        restored(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]
    assert_same(restored(tmp_path), 4)


@pytest.mark.parametrize("name", ["restore", "save"])
def test_what_passes_in_the_words_of_tensorstore_is_no_damage(tmp_path, monkeypatch, name):
    def not_now(*arguments, **options):
        raise ValueError(f"UNKNOWN: Failed to open: {os.strerror(errno.EIO)} [os_error_code='5']")

    save(tmp_path, 2)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        monkeypatch.setattr(checkpoints._manager, name, not_now)
        with pytest.raises(OSError, match=r"Failed to open: .*error$") as error:
            checkpoints.restore(make(0), everywhere(make(0)))
            checkpoints.save(4, make(4))
    assert is_transient(error.value)
    assert_same(restored(tmp_path), 2)


def test_an_unfinished_one_is_not_seen(tmp_path):
    save(tmp_path, 2)
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
    assert_same(restored(tmp_path), 2)


@pytest.mark.parametrize(
    "template",
    [
        make(0, size=999),
        dataclasses.replace(make(0), average={"kernel": jnp.zeros((1000, 64))}),
        dataclasses.replace(make(0), gates=()),
    ],
    ids=["shape", "average", "gates"],
)
def test_another_configs_checkpoints_are_refused_and_kept(tmp_path, template):
    save(tmp_path, 2, 4)
    refused = pytest.raises(CheckpointError, match=r"(?s)step 4.*step 2.*another --workdir")
    with Checkpoints(tmp_path, every=1) as checkpoints, refused:
        checkpoints.restore(template, everywhere(template))
    assert_same(restored(tmp_path), 4)


def test_all_damaged_is_an_error_and_not_a_new_beginning(tmp_path):
    save(tmp_path, 2)
    truncate(largest_file(tmp_path / "2"))
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        restored(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=str(tmp_path / "file")):
        Checkpoints(tmp_path / "file", every=1)


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, monkeypatch):
    save(tmp_path, 2)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=256_000))
    with Checkpoints(tmp_path, every=1) as checkpoints:
        with pytest.raises(CheckpointError, match="takes 0.7 MB, .* less on the disk; free some"):
            checkpoints.save(4, make(4))
        assert checkpoints.steps == [2]


def test_a_disk_that_fills_up_meanwhile_gives_one_error_and_no_pages(tmp_path, monkeypatch, caplog):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    save(tmp_path, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    refused = pytest.raises(CheckpointError, match=f"checkpoints in {tmp_path} cannot be written")
    with refused, Checkpoints(tmp_path, every=1) as checkpoints:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            checkpoints.save(4, make(4), wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            gc.collect()
    assert not printed and not [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert_same(restored(tmp_path), 2)


def test_a_write_that_fails_is_reported_and_the_last_good_one_stays(tmp_path, monkeypatch):
    save(tmp_path, 2)
    checkpoints = Checkpoints(tmp_path, every=1)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        checkpoints.save(4, make(4))
    checkpoints.__exit__()
    assert_same(restored(tmp_path), 2)


@pytest.mark.parametrize(
    "sharding", [SHARDING, jax.sharding.SingleDeviceSharding(jax.devices()[0])]
)
def test_arrays_without_elements_come_back(sharding, tmp_path):
    """A block that has lost all of its FFN units has some."""
    empty = {"kernel": jnp.zeros((0, 64)), "bias": jnp.zeros(0, jnp.bfloat16)}
    state = dataclasses.replace(make(3), params=jax.device_put(empty, sharding))
    shards = dataclasses.replace(everywhere(state), params=jax.tree.map(lambda _: sharding, empty))
    with Checkpoints(tmp_path, every=1) as checkpoints:
        checkpoints.save(3, state)
    with Checkpoints(tmp_path, every=1) as checkpoints:
        back = checkpoints.restore(state, shards)
    jax.tree.map(np.testing.assert_array_equal, back, state)
    for name, array in empty.items():
        assert back.params[name].dtype == array.dtype and back.params[name].sharding == sharding
