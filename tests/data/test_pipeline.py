"""Order, resumption, sharing and padding of batches."""

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from spvit_jax.config import Data
from spvit_jax.data import pipeline
from spvit_jax.data.errors import DataError
from spvit_jax.data.sources import ArraySource, FolderSource, open_source
from spvit_jax.remote import is_transient


def numbered(count, side=8):
    """A source whose image i has the value i + 1 in every pixel, and the label i."""
    images = np.broadcast_to(
        np.arange(1, count + 1, dtype=np.uint8)[:, None, None], (count, side, side)
    )
    return ArraySource(images, np.arange(count), tuple(map(str, range(count))))


def train(source, steps, start=0, batch=4, *, rows=None, image_size=8, seed=3, **data):
    batches = pipeline.train_batches(
        source,
        Data(**{"augment": "shift"} | data),
        batch_size=batch,
        rows=np.arange(batch) if rows is None else rows,
        image_size=image_size,
        seed=seed,
        start_step=start,
    )
    return list(itertools.islice(batches, steps))


def evaluate(source, batch, *, rows=None, image_size=8, **data):
    data = Data(**{"crop_ratio": 1.0} | data)
    rows = np.arange(batch) if rows is None else rows
    return list(
        pipeline.eval_batches(source, data, batch_size=batch, rows=rows, image_size=image_size)
    )


def viewed(source, batch, rows=None, **data):
    rows = np.arange(batch) if rows is None else rows
    data = Data(**{"crop_ratio": 1.0} | data)
    options = {"batch_size": batch, "rows": rows, "image_size": 8, "views": 3}
    return list(pipeline.eval_batches(source, data, **options))


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype


def labels(batches):
    return np.concatenate([batch["label"] for batch in batches])


def test_train_batches_have_shape_and_type():
    (batch,) = train(numbered(10), 1)
    assert batch["image"].shape == (4, 8, 8, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].shape == (4,) and batch["label"].dtype == np.int32
    np.testing.assert_array_equal(batch["image"][:, 4, 4, 0], batch["label"] + 1)


def test_every_epoch_has_whole_batches_of_different_images_in_its_own_order():
    epochs = labels(train(numbered(10), 40)).reshape(20, 8)  # two of ten images wait
    for epoch in epochs:
        assert len(set(epoch)) == 8
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set(epochs.ravel()) == set(range(10))
    whole = labels(train(numbered(10), 8, batch=5)).reshape(4, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in whole)


def test_repeats_follow_each_other_and_an_epoch_keeps_its_length():
    source = numbered(12)
    once, thrice = (labels(train(source, 9, repeats=n)).reshape(3, 12) for n in (1, 3))
    for epoch, order in zip(thrice, once, strict=True):
        np.testing.assert_array_equal(epoch, np.repeat(order[:4], 3))
    views = {batch["image"].tobytes() for batch in train(one_gradient(), 3, batch=1, repeats=3)}
    assert len(views) > 1  # each repeat is another view
    assert_same(train(source, 9, repeats=3)[4:], train(source, 5, start=4, repeats=3))


def one_gradient():
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    return ArraySource(images, np.zeros(1, int), ("a",))


def test_augmentation_differs_between_epochs():
    views = {batch["image"].tobytes() for batch in train(one_gradient(), 30, batch=1)}
    assert len(views) > 10


def test_seed_decides_order_and_augmentation():
    source = numbered(50)
    assert_same(train(source, 5), train(source, 5))
    assert not np.array_equal(labels(train(source, 5)), labels(train(source, 5, seed=4)))
    first, second = (train(one_gradient(), 10, batch=1, seed=seed) for seed in (3, 4))
    assert any((a["image"] != b["image"]).any() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("start", [1, 2, 3, 7, 24])
def test_resumed_at_any_step_the_rest_is_the_same(start):
    source = numbered(10)
    assert_same(train(source, 30)[start:], train(source, 30 - start, start=start))


def test_worker_processes_change_nothing():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes copy the flags of this one
    source = open_source(Data(), "test[:100]")
    view = {"batch": 32, "image_size": 28, "start": 2}
    assert_same(train(source, 5, **view), train(source, 5, workers=2, **view))
    view = {"batch": 32, "image_size": 28, "crop_ratio": 0.875}
    assert_same(evaluate(source, **view), evaluate(source, workers=2, **view))


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2, 3], [0, 3], [1]])
@pytest.mark.parametrize("start", [0, 3])
def test_processes_feed_their_rows_of_the_very_same_batches(rows, start):
    rng = np.random.default_rng(0)  # noise, so that each augmentation shows
    source = ArraySource(rng.integers(0, 256, (10, 8, 8), np.uint8), np.arange(10), ("a",) * 10)
    whole = train(source, 7, repeats=2)
    mine = train(source, 7 - start, start, rows=np.array(rows), repeats=2)
    for batch, part in zip(whole[start:], mine, strict=True):
        for name in batch:
            np.testing.assert_array_equal(part[name], batch[name][rows])


@pytest.mark.parametrize(("count", "batch"), [(1, 4), (4, 4), (5, 4), (7, 2), (10, 4), (3, 16)])
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_counts_each_image_once(count, batch, processes):
    found, lengths = [], set()
    for rows in np.split(np.arange(batch), processes):
        batches = evaluate(numbered(count), batch, rows=rows)
        lengths.add(len(batches))
        for one in batches:
            assert one["image"].shape == (batch // processes, 8, 8, 3)
            assert one["mask"].dtype == bool and one["label"].dtype == np.int32
            assert not one["image"][~one["mask"]].any()
            np.testing.assert_array_equal(
                one["image"][one["mask"], 0, 0, 0], one["label"][one["mask"]] + 1
            )
            found += one["label"][one["mask"]].tolist()
    assert sorted(found) == list(range(count)) and lengths == {-(-count // batch)}


def test_evaluation_keeps_the_order():
    batches = evaluate(numbered(10), 4)
    np.testing.assert_array_equal(labels(batches)[:10], range(10))


def test_too_few_images_are_refused():
    assert pipeline.steps_per_epoch(10, 4) == 2
    with pytest.raises(DataError, match="a batch of 11 images is more than the 10 training images"):
        pipeline.steps_per_epoch(10, 11)
    with pytest.raises(DataError, match="a batch of 11 images"):
        train(numbered(10), 1, batch=11)


def test_errors_of_a_source_reach_the_caller():
    class Broken:
        class_names = ("a",)

        def __len__(self):
            return 8

        def __getitem__(self, index):
            raise DataError("cannot decode the image x")

    with pytest.raises(DataError, match="cannot decode the image x"):
        train(Broken(), 1)


class Damaged:
    """``numbered(count)``, some of whose images cannot be decoded."""

    def __init__(self, count, damaged):
        self.whole, self.damaged = numbered(count), damaged
        self.class_names = self.whole.class_names

    def __len__(self):
        return len(self.whole)

    def __getitem__(self, index):
        if index in self.damaged:
            raise DataError(f"cannot decode the image {index}")
        return self.whole[index]


def test_skipped_images_give_way_to_the_next_and_are_warned_of_once(caplog):
    source = Damaged(8, {2, 3, 7})
    found = labels(train(source, 20, on_error="skip")).reshape(10, 8)
    whole = labels(train(numbered(8), 20)).reshape(10, 8)
    instead = {2: 4, 3: 4, 7: 0}
    np.testing.assert_array_equal(found, np.vectorize(lambda i: instead.get(i, i))(whole))
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records].count("3") == 1
    assert sorted(r.getMessage()[:16] for r in caplog.records) == [
        f"left out image {n}" for n in (1, 2, 3)
    ]
    assert_same(train(source, 6, on_error="skip")[2:], train(source, 4, 2, on_error="skip"))
    with pytest.raises(DataError, match=r"100 damaged images in a row"):
        train(Damaged(4, range(4)), 1, on_error="skip")


@pytest.mark.parametrize("workers", [0, 1])
def test_images_on_a_disk_that_fails_are_not_left_out(workers):
    flags.FLAGS.mark_as_parsed()  # Grain's worker processes copy the flags of this one
    source = FolderSource(Path("/proc/self"), (("mem", 0),) * 16, ("a",))  # reading it gives EIO
    for read in (train, evaluate):
        with pytest.raises(OSError, match="Input/output error") as caught:
            read(source, 1, workers=workers, on_error="skip")
        assert is_transient(caught.value)


def test_skipped_images_are_masked_in_evaluation(caplog):
    batches = evaluate(Damaged(10, {1, 9}), 4, on_error="skip")
    counted = labels(batches)[np.concatenate([batch["mask"] for batch in batches])]
    np.testing.assert_array_equal(counted, [0, 2, 3, 4, 5, 6, 7, 8])
    assert len(caplog.records) == 2
    with pytest.raises(DataError, match="cannot decode the image 1"):
        evaluate(Damaged(10, {1, 9}), 4)


def data_sharding():
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    return NamedSharding(mesh, PartitionSpec("data"))


def test_prefetch_gives_every_batch_in_order_as_sharded_arrays():
    sharding, size = data_sharding(), 8 * jax.device_count()
    host = train(numbered(250), 5, batch=size)
    device = list(pipeline.prefetch(iter(host), sharding))
    for one, other in zip(host, device, strict=True):
        assert other["image"].sharding == sharding
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], other["label"])


def test_prefetch_stays_two_ahead_and_takes_endless_batches():
    taken = []
    host = train(numbered(8 * jax.device_count()), 1, batch=8 * jax.device_count())
    endless = (taken.append(k) or host[0] for k in itertools.count())
    batches = pipeline.prefetch(endless, data_sharding())
    for _ in range(3):
        next(batches)
    assert len(taken) == 4


@pytest.mark.parametrize("augment", ["flip", "plain", "recipe"])
def test_views_of_an_image_begin_with_the_one_that_evaluation_sees(augment):
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12), np.uint8)
    source = ArraySource(images, np.arange(5), tuple("abcde"))
    batches = viewed(source, 4, augment=augment)
    assert len(batches) == 4 and sum(batch["mask"].sum() for batch in batches) == 15
    shown, names = (np.concatenate([b[key] for b in batches])[:15] for key in ("image", "label"))
    np.testing.assert_array_equal(names, np.repeat(np.arange(5), 3))
    ((plain,), shown) = [b["image"] for b in evaluate(source, 5)], shown.reshape(5, 3, 8, 8, 3)
    np.testing.assert_array_equal(shown[:, 0], plain)
    several = len(np.unique(shown.reshape(15, -1), axis=0))
    assert several > 10 if augment != "flip" else 5 < several <= 10
    assert_same(batches, viewed(source, 4, augment=augment))
    halves = [viewed(source, 4, np.array(rows), augment=augment) for rows in ([0, 1], [2, 3])]
    for batch, one, other in zip(batches, *halves, strict=True):
        both = np.concatenate([one["image"], other["image"]])
        np.testing.assert_array_equal(both, batch["image"])
    if augment == "recipe":  # whose colours are none that a model is scored on
        assert_same(batches, viewed(source, 4, augment="plain"))
