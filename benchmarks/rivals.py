"""This method against its rivals: equal budgets, images, epochs and recipe, top-1 with error bars.

    python benchmarks/rivals.py --workdir=FOLDER --test=idx:FASHION_MNIST_FOLDER
        [--budgets=0.7,0.5,0.3,0.2] [--epochs=0,1,4,11] [--seeds=0,1,2] [--count=published]
        [--contestants=ours,…] [--minutes=60] [--data=packaged:fashion_mnist]

Every cell of the table is a model: a contestant, a budget, a number of epochs, a seed and a
recipe. Cells are kept in FOLDER, so the same command goes on with those that are missing, and with
``--minutes`` it stops in between; at the end it prints what there is. Everybody starts from the
same pretrained model, sees the same training images, and is trained by the same recipe: "soft" is
the paper's quickstart, labels and the dense model's logits; "features" matches the outputs of its
blocks, where the widths agree.

ours: scored, merged, chosen and repaired on 2,048 of the training images. tried: that, of a
shortlist. weights: ours without merging. merging: token merging alone, the dense weights. smaller:
smaller images alone, the dense weights, positions interpolated. search: the paper's, whose 3 epochs
count. width, depth: the same FFN width everywhere, attention everywhere or in the first blocks
alone. magnitude, random: heads and units so chosen. small: a narrower dense model from random
weights; small5 with five times the epochs. torch-…: Torch-Pruning (``pip install torch-pruning
timm``) in PyTorch, by importance, grouping, and "all" dimensions or "heads", which is heads' widths
and FFN.

``--count=published`` counts everybody's MACs by the paper's formula; "run" as programs run, in
which what nobody reads of the last block is not computed.
"""

import argparse
import dataclasses
import json
import math
import runpy
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from contestants import CONTESTANTS, QUICKSTART, SEARCH_EPOCHS, Bench, Cell, Smaller, Unreached

from spvit_jax.config import Config, from_config_dict
from spvit_jax.context import Inputs, open_context
from spvit_jax.convert import save_torch
from spvit_jax.data.sources import open_source
from spvit_jax.judged import evaluate, quality
from spvit_jax.progress import Console
from spvit_jax.single_path import prices
from spvit_jax.text import aligned
from spvit_jax.trained import fit, load_dense
from spvit_jax.workdir import Workdir

TORCH = [
    f"torch-{importance}-{grouping}-{scope}"
    for importance in ("taylor", "magnitude")
    for grouping in ("isomorphic", "local")
    for scope in ("all", "heads")
]


OTHER_WIDTHS = ("small", "small5", "smaller", *(name for name in TORCH if name.endswith("all")))
LEAST_EPOCHS = {"search": SEARCH_EPOCHS + 1, "tried": 1, "small": 1, "small5": 1}


def cells(
    names: list[str], budgets: list[float], epochs: list[int], seeds: list[int]
) -> list[Cell]:
    """Lists what can be made; without epochs the seed matters to what is drawn by lot alone."""
    grid = []
    for seed in seeds:
        for count in epochs:
            for budget in budgets:
                for name in names:
                    recipes = ["soft"] if name in OTHER_WIDTHS else ["features", "soft"]
                    for recipe in recipes if count else [""]:
                        fixed = not count and name != "random" and seed != seeds[0]
                        if count >= LEAST_EPOCHS.get(name, 0) and not fixed:
                            grid.append(Cell(name, budget, count, seed, recipe))
    return grid


def run(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Makes, trains and tests the model of a cell."""
    start = time.perf_counter()
    if cell.contestant in TORCH:
        return _in_torch(bench, cell)
    model = CONTESTANTS[cell.contestant](bench, cell)
    context, training = bench.at(cell), bench.training(cell)
    taken = SEARCH_EPOCHS if cell.contestant == "search" else 0
    training.epochs = (training.epochs - taken) * (5 if cell.contestant == "small5" else 1)
    if cell.epochs:
        model, _ = fit(context, f"runs/{cell.name}", model, training)
    counted, architecture = evaluate(context, model), model.architecture
    spec = model.inner.spec if isinstance(model, Smaller) else model.spec
    run, published = prices.macs(spec), prices.published_macs(spec)
    return {
        "top1": counted.top1,
        "images": counted.images,
        "macs": published.dense if architecture is None else architecture.published_macs(spec),
        "macs_run": run.dense if architecture is None else architecture.macs(spec),
        "parameters": prices.count_parameters(model),
        "seconds": time.perf_counter() - start,
    }


def _in_torch(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Runs a cell of Torch-Pruning in a process of its own."""
    _, importance, grouping, scope = cell.contestant.split("-")
    context, training, spec = bench.context, bench.training(cell), bench.context.spec
    folder = Path(context.workdir / "torch")
    folder.mkdir(exist_ok=True)
    if not (folder / "images.npz").exists():
        save_torch(bench.dense, folder / "dense.safetensors")
        arrays = {}
        for split, source in (("train", context.train), ("test", context.test)):
            rows = [source[n] for n in range(len(source))]
            arrays[f"{split}_images"] = np.stack([np.asarray(row["image"].full()) for row in rows])
            arrays[f"{split}_labels"] = np.array([row["label"] for row in rows])
        np.savez(folder / "images.npz", allow_pickle=False, **arrays)
    fields = ("image_size", "patch_size", "width", "depth", "heads", "hidden", "classes")
    names = ("batch_size", "learning_rate", "final_learning_rate", "weight_decay")
    recipe = {name: getattr(training, name) for name in (*names, "label_smoothing", "distillation")}
    recipe |= {
        "epochs": cell.epochs,
        "weight": training.distillation_weight,
        "temperature": training.distillation_temperature,
    }
    job: dict[str, Any] = {
        "weights": str(folder / "dense.safetensors"),
        "data": str(folder / "images.npz"),
        "spec": {name: getattr(spec, name) for name in fields},
        "mean": context.config.data.mean,
        "std": context.config.data.std,
        "budget": cell.budget,
        "count": bench.count,
        "importance": importance,
        "grouping": grouping,
        "scope": scope,
        "recipe": recipe,
        "seed": cell.seed,
        "output": str(folder / f"{cell.name}.json"),
    }
    file = folder / f"{cell.name}.job.json"
    file.write_text(json.dumps(job))
    script = Path(__file__).parent / "torch_pruning_side.py"
    subprocess.run([sys.executable, str(script), str(file)], check=True)
    return json.loads(Path(job["output"]).read_text())


def table(made: dict[Cell, dict[str, Any]]) -> str:
    """Shows the mean top-1 over seeds, in percent, and its standard error.

    That of one model is what so many test images leave open; over seeds, their spread if larger.
    """
    columns = sorted({(c.epochs, c.recipe, c.budget) for c in made}, key=lambda c: (*c[:2], -c[2]))
    names = list(dict.fromkeys(cell.contestant for cell in made))
    head = ["top-1 (%)", *(f"{e} {recipe} {budget:.0%}" for e, recipe, budget in columns)]
    rows = [tuple(head)]
    for name in names:
        row = [name]
        for epochs, recipe, budget in columns:
            key = (name, budget, epochs, recipe)
            own = [
                v for c, v in made.items() if (c.contestant, c.budget, c.epochs, c.recipe) == key
            ]
            row.append(_mean([v["top1"] for v in own], own[0]["images"]) if own else "")
        rows.append(tuple(row))
    return aligned(rows)


def _mean(shares: list[float], images: int) -> str:
    mean = float(np.mean(shares))
    error = math.sqrt(mean * (1 - mean) / images)
    if len(shares) > 1:
        error = max(error, float(np.std(shares, ddof=1)) / math.sqrt(len(shares)))
    return f"{100 * mean:.2f} ±{100 * error:.2f}" + (f" ({len(shares)})" if len(shares) > 1 else "")


def opened(arguments: argparse.Namespace) -> Bench:
    """Opens images and the dense model, and says how good that is."""
    values = runpy.run_path(str(QUICKSTART))["get_config"]("")
    config: Config = from_config_dict(values)
    config.data.source, config.eval_every, config.log_every = arguments.data, 0.0, 50
    config.checkpoint_every = 10_000
    folder = Path(arguments.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    images, note = f"{arguments.data} {arguments.test}\n", folder / "images.txt"
    if note.exists() and note.read_text() != images:
        sys.exit(f"{folder} holds cells of {note.read_text().strip()}; take another --workdir")
    note.write_text(images)
    others = dataclasses.replace(config.data, source=arguments.test or arguments.data)
    inputs = Inputs(open_source(config.data, "train"), open_source(others, "test"))
    context = open_context(config, Workdir(folder), Console(), lambda: False, inputs=inputs)
    dense = load_dense(context)
    quality(context, "dense", dense, dense)
    return Bench(context, dense, arguments.count)


def main() -> None:
    """Makes the cells that are missing, and prints the table of what there is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data", default="packaged:fashion_mnist")
    parser.add_argument("--test", default="")
    parser.add_argument("--budgets", default="0.7,0.5,0.3,0.2")
    parser.add_argument("--epochs", default="0,1,4,11")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--contestants", default=",".join([*CONTESTANTS, *TORCH]))
    parser.add_argument("--count", default="published", choices=("published", "run"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    arguments = parser.parse_args()
    bench, end = opened(arguments), time.monotonic() + 60 * arguments.minutes
    folder = Path(arguments.workdir) / f"cells-{arguments.count}"
    folder.mkdir(exist_ok=True)
    budgets = [float(share) for share in arguments.budgets.split(",")]
    epochs, seeds = (
        [int(number) for number in text.split(",")] for text in (arguments.epochs, arguments.seeds)
    )
    made = {}
    for cell in cells(arguments.contestants.split(","), budgets, epochs, seeds):
        file = folder / f"{cell.name}.json"
        if not file.exists() and time.monotonic() < end:
            print(f"\n{cell.name}", flush=True)
            try:
                file.write_text(json.dumps(run(bench, cell), indent=1))
            except Unreached as error:  # its place in the table stays empty
                print(error, flush=True)
        if file.exists():
            made[cell] = json.loads(file.read_text())
    print(table(made))


if __name__ == "__main__":
    main()
