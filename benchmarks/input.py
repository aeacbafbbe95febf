"""Images a second of the input, against torchvision's and timm's on the same files.

    python benchmarks/input.py [--folder DIR | --size 500x375] [--images 32] [--turns 11]
        [--workers 2] [--only transforms,loaders,waiting]

Without ``--folder`` (laid out DIR/train/CLASS/*.jpg) photo-like JPEGs are made: quality 90, 4:2:0,
about 110 KB at 500x375, the typical file of ImageNet. Three parts:

- transforms: one thread, from a file in memory to the model's input, in CPU time, so a core's;
- loaders: whole training loaders, reading files, in wall time on all cores;
- waiting: the share of the time of DeiT-Ti training steps spent waiting for a batch.

Contestants take turns; ratios are taken turn by turn, medians and quartiles shown. The work is
not quite the same: torchvision's and timm's end with float tensors, normalised and erased on the
host, while this project's end with uint8 pixels and do that on the device, with mixup and cutmix;
"timm_uint8" ends there too. torchvision and timm are left out where they are not installed.
timm 1.0's posterize is patched: at level 10 it asks for 0 bits, which Pillow 13 refuses.
"""

import argparse
import contextlib
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from waiting import print_waiting

SIDE, CROP_RATIO = 224, 0.875
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
Transform = Callable[[bytes], Any]
Contestants = dict[str, Callable[[], object]]


def photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Smooth shapes, some detail, and noise to give a JPEG the entropy of a photograph's."""
    total = np.full((height, width, 3), 128.0)
    for cells, weight in ((3, 0.6), (10, 0.35), (40, 0.25)):
        colours = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += weight * (np.asarray(colours.resize((width, height), 3), float) - 128)
    total += rng.normal(0, 18, (height, width, 1)) + rng.normal(0, 5, (height, width, 3))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, size: str, count: int) -> None:
    """``count`` photos of ``size``, "WIDTHxHEIGHT", in two classes of a training split."""
    width, height = (int(side) for side in size.split("x"))
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / "train" / f"class{number % 2}" / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(width, height, rng).save(path, quality=90)


def decode(data: bytes) -> np.ndarray:
    """A whole file as RGB, the least that any input has to do."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def ours() -> dict[str, Transform]:
    """This project's, by the name of what they are for."""
    from spvit_jax.data.decode import open_image
    from spvit_jax.data.transforms import eval_transform, train_transform

    rng = np.random.default_rng(0)

    def train(augment: str) -> Transform:
        return lambda data: train_transform(
            open_image(data, "a file"), rng, image_size=SIDE, augment=augment
        )

    return {
        "evaluation": lambda data: eval_transform(
            open_image(data, "a file"), image_size=SIDE, crop_ratio=CROP_RATIO
        ),
        "plain": train("plain"),
        "recipe": train("recipe"),
    }


def torchvision() -> dict[str, Transform]:
    """Those of its reference training nearest to the recipe.

    Its RandAugment applies both of its operations to every image, the recipe's half of them.
    """
    from torchvision import transforms as t

    bicubic = t.InterpolationMode.BICUBIC
    end = [t.ToTensor(), t.Normalize(MEAN, STD)]
    crop = [t.RandomResizedCrop(SIDE, interpolation=bicubic), t.RandomHorizontalFlip()]
    strong = t.RandAugment(2, 9, interpolation=bicubic, fill=[124, 116, 104])
    erase = t.RandomErasing(0.25, value="random")
    short = round(SIDE / CROP_RATIO)
    made = {
        "evaluation": [t.Resize(short, bicubic), t.CenterCrop(SIDE), *end],
        "plain": [*crop, *end],
        "recipe": [*crop, strong, *end, erase],
    }
    return {name: _from_file(t.Compose(steps)) for name, steps in made.items()}


def timm_transforms(uint8: bool = False) -> dict[str, Callable[[Image.Image], Any]]:
    """timm's, from a decoded image; to ``uint8`` for its prefetcher, which needs a GPU."""
    from timm.data import auto_augment, create_transform

    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = _at_least_one_bit
    shared: dict[str, Any] = {"input_size": SIDE, "interpolation": "bicubic"}
    shared["use_prefetcher"] = uint8
    erase: dict[str, Any] = {"re_prob": 0.25, "re_mode": "pixel"}
    return {
        "evaluation": create_transform(**shared, is_training=False, crop_pct=CROP_RATIO),
        "plain": create_transform(**shared, is_training=True, color_jitter=0.0),
        "recipe": create_transform(
            **shared, **erase, is_training=True, color_jitter=0.4, auto_augment=RAND_AUGMENT
        ),
    }


def timm() -> dict[str, Transform]:
    """timm's, from a file."""
    return {name: _from_file(transform) for name, transform in timm_transforms().items()}


def timm_uint8() -> dict[str, Transform]:
    """timm's, from a file to what its prefetcher normalises and erases on a GPU."""
    return {name: _from_file(transform) for name, transform in timm_transforms(True).items()}


def _at_least_one_bit(image: Image.Image, bits: int, **_: object) -> Image.Image:
    from timm.data import auto_augment

    return auto_augment.posterize(image, max(bits, 1))


def _from_file(transform: Callable[[Image.Image], Any]) -> Transform:
    return lambda data: transform(Image.open(io.BytesIO(data)).convert("RGB"))


def compare_transforms(files: list[bytes], turns: int) -> None:
    """Prints the table of one core."""
    with _optional("torch"):
        import torch

        torch.set_num_threads(1)
    transforms: dict[str, Transform] = {"decode only": decode}
    for owner in (ours, torchvision, timm, timm_uint8):
        with _optional(owner.__name__):
            pairs = owner().items()
            transforms |= {f"{kind}, {owner.__name__}": transform for kind, transform in pairs}

    def all_files(transform: Transform) -> Callable[[], object]:
        return lambda: [transform(data) for data in files]

    contestants = {name: all_files(transforms[name]) for name in sorted(transforms)}
    times = take_turns(contestants, turns, time.process_time)
    kilobytes = sum(map(len, files)) / len(files) / 1000
    title = f"transforms, {len(files)} files of {kilobytes:.0f} KB, images/s a core"
    rates = show(title, times, len(files), {"decode": "decode only", "timm": "{kind}, timm"})
    rate = rates["recipe, ours"]
    needed = ", ".join(f"{wanted}: {wanted / rate:.1f}" for wanted in (500, 1000, 2000, 5000))
    print("ours and timm_uint8 end with uint8 pixels; timm and torchvision with floats, normalised")
    print("and, in the recipe, erased. timm's posterize is patched to keep at least one bit.")
    print(f"Cores of input, computed, for steps that train so many images/s: {needed}")


def compare_loaders(folder: Path, turns: int, workers: int) -> None:
    """Prints the table of all cores: batches of 16 with the recipe, shuffled, endless."""
    size, batches = 16, 16
    loaders: dict[str, Iterator[Any]] = {
        "recipe, ours, threads": our_batches(folder, size, 0),
        f"recipe, ours, {workers} processes": our_batches(folder, size, workers),
    }
    reference = f"recipe, timm, {workers} processes"
    with _optional("timm"):
        loaders[reference] = timm_batches(folder, size, workers)
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(turns + 1):
        for name, loader in loaders.items():
            for _ in range(8 * workers + 4):  # more than was made while others had their turn
                next(loader)
            begin = time.perf_counter()
            for _ in range(batches):
                next(loader)
            if turn:  # the first starts processes
                times[name].append(time.perf_counter() - begin)
    show("loaders, images/s on all cores", times, size * batches, {"timm": reference})


def our_batches(folder: Path, size: int, workers: int) -> Iterator[Any]:
    """The project's training batches, uint8."""
    from absl import flags

    from spvit_jax.config import Data
    from spvit_jax.data.pipeline import train_batches
    from spvit_jax.data.sources import open_source

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes copy the flags of this one
    data = Data(source=f"folder:{folder}", augment="recipe", workers=workers)
    source = open_source(data, "train")
    rows = np.arange(size)
    return train_batches(
        source, data, batch_size=size, rows=rows, image_size=SIDE, seed=0, start_step=0
    )


def timm_batches(folder: Path, size: int, workers: int) -> Iterator[Any]:
    """timm's data set and transforms in PyTorch's loader, floats."""
    from timm.data import ImageDataset
    from torch.utils.data import DataLoader

    dataset = ImageDataset(str(folder / "train"), transform=timm_transforms()["recipe"])
    loader = DataLoader(
        dataset,
        size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",  # forking a process that runs JAX may hang
    )
    return itertools.chain.from_iterable(itertools.repeat(loader))


def take_turns(
    contestants: Contestants, turns: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each contestant's ``turns`` runs, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(turns + 1):
        for name, run in contestants.items():
            begin = clock()
            run()
            if turn:
                times[name].append(clock() - begin)
    return times


def show(
    title: str, times: dict[str, list[float]], images: int, references: dict[str, str]
) -> dict[str, float]:
    """A table for people, and a JSON line for everything else.

    Args:
      times: seconds of each contestant's turns, of ``images`` images each.
      references: heading of a column of speed ratios and the contestant they are to; ``{kind}``
        stands for what comes before a contestant's first comma.

    Returns:
      Each contestant's images/s.
    """
    print(f"\n{title}\n{'':30}{'images/s':>9}", end="")
    print("".join(f"{'× ' + heading:>10}{'quartiles':>13}" for heading in references))
    results: dict[str, Any] = {}
    for name, seconds in times.items():
        results[name] = {"images_per_second": images / statistics.median(seconds)}
        line = f"{name:30}{results[name]['images_per_second']:9.1f}"
        for heading, pattern in references.items():
            reference = times.get(pattern.format(kind=name.split(",")[0]))
            if reference is None:
                line += f"{'–':>10}{'':13}"
                continue
            ratios = sorted(a / b for a, b in zip(reference, seconds, strict=True))
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            results[name][f"ratio_to_{heading}"] = [low, statistics.median(ratios), high]
            line += f"{statistics.median(ratios):10.2f}{low:8.2f}–{high:.2f}"
        print(line)
    print(json.dumps({title: results}))
    return {name: row["images_per_second"] for name, row in results.items()}


@contextlib.contextmanager
def _optional(package: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, RuntimeError) as error:  # built for another torch, they raise the latter
        print(f"left out {package}, which cannot be imported: {error}")


def run(options: argparse.Namespace, folder: Path) -> None:
    """Prints the parts asked for."""
    from spvit_jax.config import Data
    from spvit_jax.data.sources import open_source

    source = open_source(Data(source=f"folder:{folder}"), "train")
    parts = options.only.split(",")
    if "transforms" in parts:
        files = [source[index]["image"].source for index in range(min(options.images, len(source)))]
        compare_transforms(files, options.turns)
    if "loaders" in parts:
        compare_loaders(folder, options.turns, options.workers)
    if "waiting" in parts:
        print_waiting(our_batches(folder, 8, options.workers), 8, f"{options.workers} workers")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--size", default="500x375")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="transforms,loaders,waiting")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        if options.folder is None:
            write_photos(Path(made), options.size, max(options.images, 64))
        run(options, options.folder or Path(made))
