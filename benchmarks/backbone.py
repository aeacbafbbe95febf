"""A real backbone made smaller without training or labels: how near its features stay.

    python benchmarks/backbone.py WEIGHTS.safetensors PHOTOS [--heads=6] [--size=224]
        [--budgets=0.7,0.6,0.5,0.35] [--contestants=weights,merging,smaller,ours] [--seed=0]
        [--steps=0]

WEIGHTS is a plain ViT in timm's names, with or without a head, such as a DINOv2; PHOTOS a folder
of images. Half of them, drawn by the seed, is scored and repaired on, three views of each, the
other half is tested on: the cosine of the class token's features and of the patches' to the dense
model's, and how many of an image's ten nearest neighbours among the photos are the dense model's as
well. MACs are counted as published, and all tokens are read.

Contestants: "weights" cuts heads, units and whole attentions, and repairs; "merging" merges the
same number of tokens in every block of the dense model, no more; "smaller" shows it smaller images;
"ours" does all of the first two under one budget. Patches are compared on the full grid.

With --steps=500 each but "smaller" is shown once more after so many steps in which its blocks are
matched to the dense model's, without labels, on random crops of the first half.
"""

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from spvit_jax.config import Budget, Data
from spvit_jax.convert import Facts, load, read_spec
from spvit_jax.convert.fit import resize_grid
from spvit_jax.data.images import open_images
from spvit_jax.data.pipeline import eval_batches, train_batches
from spvit_jax.data.sources import Some, Source
from spvit_jax.models import ViT
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture, describe
from spvit_jax.single_path.budget import budgets, select
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.merging import Merges, merged
from spvit_jax.single_path.prune import prune
from spvit_jax.single_path.repair import repair, repaired_error
from spvit_jax.single_path.schedules import SHAPES, saving, tried
from spvit_jax.single_path.score import Scores, score
from spvit_jax.single_path.space import Space
from spvit_jax.sizes import sides
from spvit_jax.text import aligned
from spvit_jax.training.fitting import fit
from spvit_jax.training.losses import feature_distillation
from spvit_jax.training.normalise import Normalise

OPS = ("skip", "msa")  # a convolution cannot follow what class tokens do
BATCH = 20  # images
VIEWS = 3  # of each photo that is scored and repaired on
NEIGHBOURS = 10
PATCHES = 0.5  # of the error that schedules are judged by
NORMALISE = Normalise(Data().mean, Data().std)
COLUMNS = "", "MACs", "class, mean", "worst", "patches", "neighbours", "made in", "blocks"
TRAINED = 8  # images per step
RATE = 1e-4


def backbone(file: Path, heads: int, size: int) -> Any:
    """Loads the model without its head; its class token and patches are read."""
    facts = Facts.of(heads)
    own: Any = read_spec(str(file), facts)
    spec = dataclasses.replace(own, classes=0, patches=True)
    return load(file, dataclasses.replace(spec, image_size=size), facts=facts)


def photos(pictures: Source, size: int, views: int = 1) -> np.ndarray:
    """The centres of images, the shorter side scaled to ``size``, and other crops of each."""
    count, data = len(pictures) * views, Data(augment="plain", crop_ratio=1.0)
    rows = np.arange(count)
    seen = eval_batches(pictures, data, batch_size=count, rows=rows, image_size=size, views=views)
    return next(seen)["image"]


def features(model: Any, images: np.ndarray) -> np.ndarray:
    """The tokens behind the last norm, unmerged and on the grid of the images given."""
    size, own = images.shape[1], model.spec.image_size
    run = jax.jit(lambda batch: model.norm(model.stream(NORMALISE(batch))[-1].unmerged()))
    chunks = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        if own != size:
            batch = np.stack([_scaled(image, own) for image in batch])
        chunks.append(np.asarray(run(batch)))
    tokens = np.concatenate(chunks)
    if own == size:
        return tokens
    grids = [n // model.spec.patch_size for n in (own, size)]
    maps = tokens[:, 1:].reshape(len(tokens), grids[0], grids[0], -1)
    shape = (len(tokens), grids[1], grids[1], maps.shape[-1])
    maps = np.asarray(jax.image.resize(maps, shape, "bilinear"))
    return np.concatenate([tokens[:, :1], maps.reshape(len(tokens), grids[1] ** 2, -1)], axis=1)


def _scaled(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def compared(tokens: np.ndarray, dense: np.ndarray) -> tuple[str, ...]:
    """Cosines of the class token, mean and worst, and of patches; and neighbours that stay."""
    norms = np.linalg.norm(tokens, axis=-1) * np.linalg.norm(dense, axis=-1)
    cosines = (tokens * dense).sum(-1) / norms
    kept = [len(set(a) & set(b)) for a, b in zip(*map(_nearest, (tokens, dense)), strict=True)]
    first = cosines[:, 0]
    values = (first.mean(), first.min(), cosines[:, 1:].mean(), np.mean(kept) / NEIGHBOURS)
    return tuple(f"{value:.4f}" for value in values)


def _nearest(tokens: np.ndarray) -> np.ndarray:
    """The nearest other images of each by the class token, ``[images, NEIGHBOURS]``."""
    one = tokens[:, 0] / np.linalg.norm(tokens[:, 0], axis=-1, keepdims=True)
    near = one @ one.T
    np.fill_diagonal(near, -np.inf)
    return np.argsort(-near, axis=1)[:, :NEIGHBOURS]


@dataclasses.dataclass
class Bench:
    """What all contestants share."""

    dense: Any
    seen: Source
    test: np.ndarray
    target: np.ndarray  # the dense model's features of the test images

    @cached_property
    def scores(self) -> Scores:
        """Of the images that may be seen."""
        return score(self.dense, self.calibration(), OPS)

    def calibration(self, indices: np.ndarray | None = None) -> Calibration:
        """Images to score and repair on: those of some indices, or several views of all."""
        size, whole = sides(self.dense.spec.image_size)[0], indices is None
        some = self.seen if indices is None else Some(self.seen, indices)
        return Calibration.of(photos(some, size, VIEWS if whole else 1), NORMALISE, BATCH)

    def budgets(self, share: float, merges: Merges = ()) -> tuple[Any, ...]:
        """The budget of a share of the MACs, tokens merged."""
        return budgets(Budget(macs=share, count="published"), self.dense.spec, OPS, merges)

    def chosen(self, share: float, merges: Merges = ()) -> Architecture:
        """What scores choose beside the merges."""
        space = Space(
            merged(self.dense.spec, merges), OPS, ("op", "heads", "dims", "tokens", "ffn")
        )
        return select(space, self.scores, self.budgets(share, merges))


def weights(bench: Bench, share: float) -> tuple[Any, Architecture]:
    """Keeps all tokens."""
    architecture = bench.chosen(share)
    return repair(bench.dense, bench.dense, bench.calibration(), architecture), architecture


def merging(bench: Bench, share: float) -> tuple[Any, Architecture]:
    """Merges alike in every block, if that is enough, and leaves the weights as they are."""
    spec = bench.dense.spec
    schedules = (saving(spec, shape, 1.0, lambda m: bench.budgets(share, m)) for shape in SHAPES)
    whole = tuple(block.hidden for block in spec.blocks)
    merges = next(schedule for schedule in schedules if schedule is not None)
    architecture = Architecture(("msa",) * len(whole), whole, merges=merges)
    return prune(bench.dense, architecture), architecture


def smaller(bench: Bench, share: float) -> tuple[Any, Architecture]:
    """Sees images of fewer pixels, positions interpolated; of the largest size that fits."""
    spec, patch = bench.dense.spec, bench.dense.spec.patch_size
    target = share * prices.published_macs(spec).dense
    sizes = range(spec.image_size, 0, -patch)
    specs = (dataclasses.replace(spec, image_size=size) for size in sizes)
    fitting = next(one for one in specs if prices.published_macs(one).dense <= target)
    model = ViT(fitting, rngs=nnx.Rngs(0))
    grid, side = (one.image_size // patch for one in (spec, fitting))
    positions = np.asarray(bench.dense.pos_embed[...])
    first, others = np.split(positions, [spec.prefix])
    others = resize_grid(others.reshape(grid, grid, -1), (side, side)).reshape(side**2, -1)
    copy = nnx.clone(bench.dense)
    copy.pos_embed = nnx.Param(jnp.asarray(np.concatenate([first, others])))
    nnx.update(model, nnx.state(copy))
    whole = tuple(block.hidden for block in fitting.blocks)
    return model, Architecture(("msa",) * len(whole), whole)


def ours(bench: Bench, share: float) -> tuple[Any, Architecture]:
    """Merges and cuts: the schedule of the least error on photos that were not repaired on."""
    trial, judges = np.split(np.arange(len(bench.seen)), [2 * len(bench.seen) // 3])
    calibration, judging = bench.calibration(trial[::2]), bench.calibration(judges)

    def error(name: str, merges: Merges) -> float:
        architecture = bench.chosen(share, merges)
        off = repaired_error(bench.dense, calibration, judging, architecture, PATCHES)
        print(f"  {name}: {off:.4f}  {describe(architecture, bench.dense.spec)}", flush=True)
        return off

    def find(shape: str, part: float) -> Merges | None:
        return saving(bench.dense.spec, shape, part, lambda m: bench.budgets(share, m))

    errors = tried(error, find)
    architecture = bench.chosen(share, min(errors, key=errors.__getitem__))
    return repair(bench.dense, bench.dense, bench.calibration(), architecture), architecture


def matched(bench: Bench, model: Any, steps: int) -> Any:
    """Trains a model's blocks to put out what the dense one's do."""
    dense, data, rows = bench.dense, Data(augment="plain"), np.arange(TRAINED)
    size = dense.spec.image_size
    teach = jax.jit(lambda images: [tokens.x for tokens in dense.stream(images)])

    def batches() -> Iterator[dict[str, Any]]:
        crops = train_batches(
            bench.seen,
            data,
            batch_size=TRAINED,
            rows=rows,
            image_size=size,
            seed=0,
            start_step=0,
        )
        for batch in crops:
            images = NORMALISE(jnp.asarray(batch["image"]))
            yield {"images": images, "taught": teach(images)}

    loss = partial(feature_distillation, weight=1.0)
    return fit(model, batches(), loss=loss, steps=steps, learning_rate=RATE)


CONTESTANTS: dict[str, Callable[[Bench, float], tuple[Any, Architecture]]] = {
    "weights": weights,
    "merging": merging,
    "smaller": smaller,
    "ours": ours,
}


def main() -> None:
    """Prints a row for each budget as it is found, and the table at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--budgets", default="0.7,0.6,0.5,0.35")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=0)
    options = parser.parse_args()
    dense = backbone(options.weights, options.heads, options.size)
    pictures = open_images(options.photos)
    order = np.random.default_rng(options.seed).permutation(len(pictures))
    seen, tested = np.split(order, [len(order) // 2])
    test = photos(Some(pictures, tested), options.size)
    bench = Bench(dense, Some(pictures, seen), test, features(dense, test))
    rows: list[tuple[str, ...]] = [COLUMNS]
    for name in options.contestants.split(","):
        for share in map(float, options.budgets.split(",")):
            start = time.perf_counter()
            model, architecture = CONTESTANTS[name](bench, share)
            rows.append(row(bench, name, model, architecture, start))
            if options.steps and model.spec.image_size == options.size:
                start = time.perf_counter()
                model = matched(bench, model, options.steps)
                after = f"{name}, {options.steps} steps"
                rows.append(row(bench, after, model, architecture, start))
    print(aligned(rows))


def row(
    bench: Bench, name: str, model: Any, architecture: Architecture, start: float
) -> tuple[str, ...]:
    """Compares a model with the dense one, and prints that."""
    seconds = f"{time.perf_counter() - start:.0f} s"
    whole = prices.published_macs(bench.dense.spec).dense
    share = f"{architecture.published_macs(model.spec) / whole:.1%}"
    compare = compared(features(model, bench.test), bench.target)
    found = name, share, *compare, seconds, describe(architecture, model.spec)
    print(*found, flush=True)
    return found


if __name__ == "__main__":
    main()
