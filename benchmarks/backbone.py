"""A real backbone pruned without training or labels: how near its features stay to the dense ones.

    python benchmarks/backbone.py WEIGHTS.safetensors PHOTOS [--heads=6] [--size=224]
        [--budgets=0.8,0.7,0.6,0.5] [--seed=0]

WEIGHTS is a plain ViT in timm's names, with or without a head, such as a DINOv2; PHOTOS a folder
of images. Half of them, drawn by the seed, is scored and repaired on, the other half is tested
on: the cosine of the class token's features and of the patches' to the dense model's, and how many
of an image's ten nearest neighbours among the photos are the dense model's as well. MACs are
counted as published, and all tokens are read.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

from spvit_jax.config import Budget, Data
from spvit_jax.convert import load
from spvit_jax.models import ViT
from spvit_jax.single_path.architecture import describe
from spvit_jax.single_path.budget import budgets, select
from spvit_jax.single_path.calibration import Calibration
from spvit_jax.single_path.repair import repair
from spvit_jax.single_path.score import score
from spvit_jax.single_path.space import Space
from spvit_jax.text import aligned
from spvit_jax.training.normalise import Normalise

OPS = ("skip", "msa")  # a convolution cannot follow what class tokens do
BATCH = 20  # images
NEIGHBOURS = 10
NORMALISE = Normalise(Data().mean, Data().std)


def backbone(file: Path, heads: int, size: int) -> Any:
    """Loads the model, all of whose tokens are read."""
    state = load_file(file)
    if "head.weight" not in state:  # which is not looked at
        width = state["norm.weight"].shape[0]
        state |= {"head.weight": np.zeros((2, width), np.float32)}
        state |= {"head.bias": np.zeros(2, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.safetensors")
        save_file(state, whole)
        pooled = load(whole, heads=heads, image_size=size)
    model = ViT(dataclasses.replace(pooled.spec, pool="norm_average"), rngs=nnx.Rngs(0))
    nnx.update(model, nnx.state(pooled))
    return model


def photos(folder: Path, size: int) -> np.ndarray:
    """Reads the folder's images, the shorter side scaled to ``size``, the centre cropped."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return np.stack(list(_cropped(files, size)))


def _cropped(files: list[Path], size: int) -> Iterator[np.ndarray]:
    for file in files:
        with Image.open(file) as opened:
            image = opened.convert("RGB")
        if min(image.size) != size:
            scale = size / min(image.size)
            shape = (max(round(side * scale), size) for side in image.size)
            image = image.resize(tuple(shape), Image.Resampling.BICUBIC)
        left, top = ((side - size) // 2 for side in image.size)
        yield np.asarray(image.crop((left, top, left + size, top + size)))


def features(model: Any, images: np.ndarray) -> np.ndarray:
    """The tokens behind the last norm, ``[images, tokens, D]``."""
    run = jax.jit(lambda batch: model.norm(model.stream(NORMALISE(batch))[-1]))
    batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
    return np.concatenate([np.asarray(run(batch)) for batch in batches])


def compared(found: np.ndarray, dense: np.ndarray) -> tuple[str, ...]:
    """Cosines of the class token, mean and worst, and of patches; and neighbours that stay."""
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(dense, axis=-1)
    cosines = (found * dense).sum(-1) / norms
    kept = [len(set(a) & set(b)) for a, b in zip(*map(_nearest, (found, dense)), strict=True)]
    first = cosines[:, 0]
    values = (first.mean(), first.min(), cosines[:, 1:].mean(), np.mean(kept) / NEIGHBOURS)
    return tuple(f"{value:.4f}" for value in values)


def _nearest(tokens: np.ndarray) -> np.ndarray:
    """The nearest other images of each by the class token, ``[images, NEIGHBOURS]``."""
    one = tokens[:, 0] / np.linalg.norm(tokens[:, 0], axis=-1, keepdims=True)
    near = one @ one.T
    np.fill_diagonal(near, -np.inf)
    return np.argsort(-near, axis=1)[:, :NEIGHBOURS]


def main() -> None:
    """Prints a row for each budget as it is found, and the table at the end."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--heads", type=int, default=0)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--budgets", default="0.8,0.7,0.6,0.5")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dense, images = (
        backbone(given.weights, given.heads, given.size),
        photos(given.photos, given.size),
    )
    order = np.random.default_rng(given.seed).permutation(len(images))
    seen, test = np.split(images[order], [len(images) // 2])
    calibration, target = Calibration.of(seen, NORMALISE, BATCH), features(dense, test)
    start = time.perf_counter()
    scores = score(dense, calibration, OPS)
    print(f"{len(seen)} images scored in {time.perf_counter() - start:.0f} s", flush=True)
    space = Space(dense.spec.blocks, OPS, ("op", "heads", "ffn"))
    rows = [("MACs", "class, mean", "worst", "patches", "neighbours", "repaired in", "blocks")]
    for share in map(float, given.budgets.split(",")):
        held = budgets(Budget(macs=share, count="published"), dense.spec, OPS)
        found, start = select(space, scores, held), time.perf_counter()
        model = repair(dense, dense, calibration, found)
        seconds = f"{time.perf_counter() - start:.0f} s"
        share = found.published_macs(dense.spec) / held[0].prices.dense
        compare = compared(features(model, test), target)
        rows.append((f"{share:.1%}", *compare, seconds, describe(found, dense.spec)))
        print(*rows[-1], flush=True)
    print(aligned(rows))


if __name__ == "__main__":
    main()
