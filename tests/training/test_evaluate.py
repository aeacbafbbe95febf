"""Counting. Run as a program, it evaluates on 8 devices and writes the counts to a file."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from spvit_jax.config import Config
from spvit_jax.data import pipeline
from spvit_jax.data.errors import DataError
from spvit_jax.data.pipeline import to_device
from spvit_jax.data.sources import open_source
from spvit_jax.models import ViT, ViTSpec
from spvit_jax.progress import Console
from spvit_jax.single_path.gates import decide, initial_logits
from spvit_jax.single_path.space import Space
from spvit_jax.single_path.supernet import supernet
from spvit_jax.training.evaluate import Evaluation, Evaluator, make_eval_step, no_totals
from spvit_jax.training.loop import Interrupted
from spvit_jax.training.normalise import Normalise
from spvit_jax.training.sharding import batch_sharded, make_mesh

SAME = Normalise((0.0,) * 3, (1.0,) * 3)
SPEC = ViTSpec(width=24, depth=2, heads=3, hidden=48, patch_size=7, image_size=28, classes=12)


class Pixels(nnx.Module):
    """Its logits are the red of an image's first row: whatever a test wants."""

    def __call__(self, images, extras=None):
        return images[:, 0, :, 0]


def rows(classes, batches, ties=False):
    """Batches of 16 images of ``classes`` pixels, the last one mostly padding."""
    rng = np.random.default_rng(classes)
    for number in range(batches):
        red = np.stack([rng.permutation(256)[:classes] for _ in range(16)])
        image = np.zeros((16, 1, classes, 3), np.uint8)
        image[:, 0, :, 0] = red // (64 if ties else 1)
        label = rng.integers(0, classes, 16).astype(np.int32)
        mask = np.arange(16) < 5 if number == batches - 1 else rng.random(16) < 0.8
        yield {"image": image, "label": label, "mask": mask}


def count(classes, batches):
    mesh, model = make_mesh(), Pixels()
    step = make_eval_step(nnx.graphdef(model), SAME, mesh, nnx.state(model, nnx.Param))
    totals = no_totals(classes, mesh)
    for batch in batches:
        states = nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat)
        totals = step(totals, *states, None, to_device(batch, batch_sharded(mesh)))
    assert step._cache_size() == 1
    return totals


def counted_by_hand(classes, batches):
    """Confusion and top-5 hits, one image after the other."""
    confusion, hits = np.zeros((classes, classes), int), 0
    for batch in batches:
        for image, label, mask in zip(*batch.values(), strict=True):
            order = np.argsort(-image[0, :, 0].astype(int), kind="stable")
            if mask:
                confusion[label, order[0]] += 1
                hits += label in order[:5]
    return confusion, hits


def evaluate(model, should_stop=lambda: False, **data):
    """How a model does on 21 images, in batches of 8."""
    config = Config()
    config.data.test_split, config.data.crop_ratio = "test[:21]", 1.0
    config.data.eval_batch_size = 8
    for name, value in data.items():
        setattr(config.data, name, value)
    test = open_source(config.data, config.data.test_split)
    evaluator = Evaluator(test, config.data, make_mesh(), should_stop)
    return evaluator.evaluate(model, Console(silent=True))


def every_count():
    """All that 1 and 8 devices must agree in, by name."""
    found = {}
    for classes in (2, 7):
        totals = count(classes, rows(classes, 3, ties=True))
        found |= {f"confusion {classes}": totals.confusion, f"hits {classes}": totals.top5}
    whole = evaluate(ViT(SPEC, rngs=nnx.Rngs(0)))
    found |= {"confusion": whole.confusion, "hits": whole.top5_hits, "out": whole.left_out}
    return {name: np.asarray(value) for name, value in found.items()}


def test_eight_devices_count_what_one_does(tmp_path):
    file = tmp_path / "counts.npz"
    settings = {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, __file__, file]
    process = subprocess.run(
        command, check=True, env=os.environ | settings, capture_output=True, text=True
    )
    assert "onat" not in process.stderr  # no donation that could not be used
    alone = every_count()
    with np.load(file) as other:
        assert set(other) == set(alone) and int(alone["confusion"].sum()) == 21
        for name, value in alone.items():
            np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 5, 40])
def test_totals_are_those_counted_by_hand(classes, ties):
    totals = count(classes, rows(classes, 3, ties))
    confusion, hits = counted_by_hand(classes, rows(classes, 3, ties))
    np.testing.assert_array_equal(totals.confusion, confusion)
    assert int(totals.top5) == hits and totals.confusion.dtype == totals.top5.dtype == np.int32
    assert hits == confusion.sum() if classes <= 5 else hits < confusion.sum()


def test_top_5_is_torchs():
    torch = pytest.importorskip("torch")
    expected = 0
    for batch in rows(40, 3):
        highest = torch.from_numpy(batch["image"][:, 0, :, 0].astype(np.float32)).topk(5)[1]
        hits = (highest == torch.from_numpy(batch["label"])[:, None]).any(1).numpy()
        expected += int((hits & batch["mask"]).sum())
    assert int(count(40, rows(40, 3)).top5) == expected > 0


def test_totals_are_int32_in_float64_too():
    with jax.enable_x64(True):
        totals = count(7, rows(7, 2))
        assert totals.confusion.dtype == totals.top5.dtype == np.int32


def test_shares_by_hand():
    found = Evaluation(np.array([[3, 1, 0], [0, 0, 0], [2, 0, 4]]), top5_hits=9, left_out=2)
    assert (found.images, found.top1, found.top5, found.left_out) == (10, 0.7, 0.9, 2)
    np.testing.assert_array_equal(found.class_images, [4, 0, 6])
    np.testing.assert_array_equal(found.accuracy, [0.75, np.nan, 4 / 6])
    np.testing.assert_array_equal(found.precision, [0.6, 0, 1])


def test_a_supernet_is_evaluated_under_its_gates():
    network, space = supernet(ViT(SPEC, rngs=nnx.Rngs(0))), Space(SPEC.blocks)
    logits = initial_logits(space)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(
        lambda x: x + 0.3 * rng.standard_normal(x.shape, np.float32), nnx.state(network, nnx.Param)
    )
    nnx.update(network, noisy)
    gates, others = (decide(space, x) for x in (logits, jax.tree.map(jnp.negative, logits)))
    step = make_eval_step(nnx.graphdef(network), SAME, make_mesh(), nnx.state(network, nnx.Param))
    images = rng.integers(0, 256, (16, 28, 28, 3), np.uint8)
    predicted = network(SAME(jnp.asarray(images)), gates).argmax(-1)
    assert (predicted != network(SAME(jnp.asarray(images)), others).argmax(-1)).sum() > 4
    right, mask = np.arange(16) % 3 == 0, np.arange(16) < 9
    label = np.where(right, predicted, (predicted + 1) % 12).astype(np.int32)
    batch = to_device({"image": images, "label": label, "mask": mask}, batch_sharded(make_mesh()))
    states = nnx.state(network, nnx.Param), nnx.state(network, nnx.BatchStat)
    totals = step(no_totals(12, make_mesh()), *states, gates, batch)
    assert (int(totals.confusion.trace()), int(totals.confusion.sum())) == (3, 9)


def test_damaged_images_are_left_out_of_the_denominator(monkeypatch):
    def some(source, data, **options):
        for batch in pipeline.eval_batches(source, data, **options):
            yield batch | {"mask": batch["mask"] & (np.arange(8) != 2)}

    monkeypatch.setattr("spvit_jax.training.evaluate.eval_batches", some)
    model = ViT(SPEC, rngs=nnx.Rngs(0))
    found = evaluate(model)
    assert (found.images, found.left_out) == (18, 3)
    assert found.top1 == found.confusion.trace() / 18

    def none(source, data, **options):
        for batch in pipeline.eval_batches(source, data, **options):
            yield batch | {"mask": batch["mask"] & False}

    monkeypatch.setattr("spvit_jax.training.evaluate.eval_batches", none)
    with pytest.raises(DataError, match="none of the 21 test images can be decoded"):
        evaluate(model)


def test_a_damaged_file_is_skipped_or_ends_the_evaluation(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(10):
        file = tmp_path / "data" / "val" / f"class {number % 2}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (28, 28, 3), np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:100])
    where = {"source": f"folder:{tmp_path / 'data'}", "train_split": "val", "test_split": "val"}
    model = ViT(SPEC, rngs=nnx.Rngs(0))
    found = evaluate(model, on_error="skip", **where)
    assert (found.images, found.left_out) == (9, 1)
    np.testing.assert_array_equal(found.class_images[:2], [5, 4])
    with pytest.raises(DataError, match=r"9\.png"):
        evaluate(model, **where)


def test_an_evaluation_stops_when_it_is_told_to():
    asked = iter([False, True])
    with pytest.raises(Interrupted, match="begins again"):
        evaluate(ViT(SPEC, rngs=nnx.Rngs(0)), lambda: next(asked))


if __name__ == "__main__":
    np.savez(sys.argv[1], **every_count())
