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

ours: scored, chosen and repaired on 2,048 of the training images. tried: that, of a shortlist.
search: the paper's, whose 3 epochs count. width, depth: the same FFN width everywhere, attention
everywhere or in the first blocks alone. magnitude, random: heads and units so chosen. small: a
narrower dense model from random weights; small5 with five times the epochs. torch-…: Torch-Pruning
(``pip install torch-pruning timm``) in PyTorch, by importance, grouping, and "all" dimensions or
"heads", which is heads' widths and FFN.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from spvit_jax import context as contexts
from spvit_jax import frontier
from spvit_jax.config import Budget, Config, Finetune, from_config_dict
from spvit_jax.context import Context
from spvit_jax.convert import save_torch
from spvit_jax.data.sources import open_source
from spvit_jax.models import ViT
from spvit_jax.progress import Console
from spvit_jax.shortlist import shortlist
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.axes import AXES
from spvit_jax.single_path.candidates import candidates
from spvit_jax.single_path.eliminate import Elimination
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.prune import prune
from spvit_jax.single_path.score import BlockScores, Scores
from spvit_jax.single_path.supernet import supernet
from spvit_jax.text import aligned
from spvit_jax.workdir import Workdir

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
SEARCH_EPOCHS = 3
TORCH = [
    f"torch-{importance}-{grouping}-{scope}"
    for importance in ("taylor", "magnitude")
    for grouping in ("isomorphic", "local")
    for scope in ("all", "heads")
]


class Cell(NamedTuple):
    """One model to be made and tested."""

    contestant: str
    budget: float  # share of the dense model's MACs as published
    epochs: int
    seed: int
    recipe: str  # "features" or "soft"; "" where there are no epochs

    @property
    def name(self) -> str:
        """Of its file and folder."""
        return "-".join(str(part) for part in self if part != "")


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all cells share."""

    context: Context
    dense: Any
    count: str  # "published" or "run"

    def gating(self, budget: float, axes: tuple[str, ...]) -> Gating:
        """What a contestant may choose from under a budget."""
        search = dataclasses.replace(self.context.config.search, axes=axes)
        held = Budget(macs=budget, count=self.count)
        return Gating.of(search, held, self.context.spec, self.dense)

    def training(self, cell: Cell) -> Finetune:
        """The recipe, the same for everybody, without dropout or stochastic depth."""
        values = runpy.run_path(str(QUICKSTART))["get_config"]("" if _matches(cell) else "paper")
        recipe = from_config_dict(values).finetune
        return dataclasses.replace(recipe, epochs=float(cell.epochs), start="pretrained")

    def at(self, cell: Cell) -> Context:
        """The context of a cell."""
        config = dataclasses.replace(self.context.config, seed=cell.seed)
        return dataclasses.replace(self.context, config=config)


def _matches(cell: Cell) -> bool:
    return cell.recipe == "features"


def ours(bench: Bench, cell: Cell) -> Any:
    """Scores, chooses and repairs; no search, no shortlist."""
    context, gating = bench.context, bench.gating(cell.budget, tuple(AXES))
    scores = frontier.score(context, bench.dense, contexts.calibrate(context))
    found = candidates(gating.space, scores, gating.budgets)["scored"]
    return frontier.repaired(context, bench.dense, found, contexts.calibrate(context))


def tried(bench: Bench, cell: Cell) -> Any:
    """The same, out of a shortlist, in the time of which no epoch is counted."""
    context, gating = bench.at(cell), bench.gating(cell.budget, tuple(AXES))
    scores = frontier.score(bench.context, bench.dense, contexts.calibrate(context))
    config = dataclasses.replace(context.config, finetune=bench.training(cell))
    folder = Path(context.workdir / f"trials/{cell.name}")
    folder.mkdir(parents=True, exist_ok=True)
    trial = dataclasses.replace(context, config=config, workdir=Workdir(folder))
    proposed = candidates(gating.space, scores, gating.budgets)
    found = shortlist(trial, bench.dense, proposed)[1]
    return frontier.repaired(context, bench.dense, found, contexts.calibrate(context))


def search(bench: Bench, cell: Cell) -> Any:
    """Searches as the quickstart's paper variant, whose weights go on."""
    paper = from_config_dict(runpy.run_path(str(QUICKSTART))["get_config"]("paper"))
    config = dataclasses.replace(paper, seed=cell.seed)
    config.search.epochs = float(SEARCH_EPOCHS)
    context = dataclasses.replace(bench.context, config=config)
    gating = bench.gating(cell.budget, config.search.axes)
    name = f"search-{cell.budget}-{cell.seed}"
    network, logits = contexts.fit(
        context, name, supernet(bench.dense), config.search, gating=gating
    )
    return prune(network, gating.project(logits))


def width(bench: Bench, cell: Cell) -> Any:
    """Keeps all of attention, or as large a share of heads as of units where that is too much."""
    found = _simple(bench, cell)
    return prune(bench.dense, found.get("uniform width") or found["uniform shares"])


def depth(bench: Bench, cell: Cell) -> Any:
    """Keeps attention in the first blocks."""
    return prune(bench.dense, _simple(bench, cell)["uniform depth"])


def _simple(bench: Bench, cell: Cell) -> dict[str, Architecture]:
    """Uniform architectures that keep what is largest."""

    def smallest_first(strength: np.ndarray) -> Elimination:
        return Elimination(np.argsort(strength, kind="stable"), np.arange(len(strength) + 1.0))

    rows = (
        BlockScores(
            dict.fromkeys(bench.context.config.search.ops, 1.0),
            smallest_first(AXES["heads"].strength(block)),
            smallest_first(AXES["ffn"].strength(block)),
        )
        for block in bench.dense.blocks
    )
    gating = bench.gating(cell.budget, tuple(AXES))
    return candidates(gating.space, Scores(tuple(rows), 0), gating.budgets)


def magnitude(bench: Bench, cell: Cell) -> Any:
    """Keeps the heads and units of the largest weights, compared over all blocks."""
    gating = bench.gating(cell.budget, ("heads", "ffn"))
    rows = [
        {axis: np.log(AXES[axis].strength(block)) for axis in ("heads", "ffn")}
        for block in bench.dense.blocks
    ]
    means = {axis: np.concatenate([row[axis] for row in rows]).mean() for axis in rows[0]}
    logits = tuple({axis: x - means[axis] for axis, x in row.items()} for row in rows)
    return prune(bench.dense, gating.project(logits))


def random(bench: Bench, cell: Cell) -> Any:
    """Keeps operations, heads and units by lot."""
    gating, rng = bench.gating(cell.budget, tuple(AXES)), np.random.default_rng(cell.seed)
    logits = jax.tree.map(lambda x: rng.standard_normal(x.shape), gating.initial())
    return prune(bench.dense, gating.project(logits))


def small(bench: Bench, cell: Cell) -> Any:
    """Makes the widest dense model within the budget, with random weights."""
    spec = bench.context.spec
    ratio = spec.hidden // spec.width
    for wide in range(spec.width, 0, -spec.heads):
        narrow = dataclasses.replace(spec, width=wide, hidden=ratio * wide)
        if _macs(narrow, bench.count).dense <= cell.budget * prices.published_macs(spec).dense:
            return ViT(narrow, rngs=nnx.Rngs(cell.seed))
    raise ValueError(f"no dense model has {cell.budget:.0%} of the MACs")


def _macs(spec: Any, count: str) -> prices.Prices:
    return prices.published_macs(spec) if count == "published" else prices.macs(spec)


Contestant = Callable[[Bench, Cell], Any]  # a model before fine-tuning
CONTESTANTS: dict[str, Contestant] = {
    "ours": ours,
    "tried": tried,
    "search": search,
    "width": width,
    "depth": depth,
    "magnitude": magnitude,
    "random": random,
    "small": small,
    "small5": small,
}
OTHER_WIDTHS = ("small", "small5", *(name for name in TORCH if name.endswith("all")))
LEAST_EPOCHS = {"search": SEARCH_EPOCHS + 1, "tried": 1, "small": 1, "small5": 1}


def cells(
    names: list[str], budgets: list[float], epochs: list[int], seeds: list[int]
) -> list[Cell]:
    """Lists what can be made; without epochs the seed matters to what is drawn by lot alone."""
    found = []
    for seed in seeds:
        for count in epochs:
            for budget in budgets:
                for name in names:
                    recipes = ["soft"] if name in OTHER_WIDTHS else ["features", "soft"]
                    for recipe in recipes if count else [""]:
                        fixed = not count and name != "random" and seed != seeds[0]
                        if count >= LEAST_EPOCHS.get(name, 0) and not fixed:
                            found.append(Cell(name, budget, count, seed, recipe))
    return found


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
        model, _ = contexts.fit(context, f"runs/{cell.name}", model, training)
    counted, spec, found = contexts.evaluate(context, model), model.spec, model.architecture
    run, published = prices.macs(spec), prices.published_macs(spec)
    return {
        "top1": counted.top1,
        "images": counted.images,
        "macs": published.dense if found is None else found.price(published, spec),
        "macs_run": run.dense if found is None else found.price(run, spec),
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
        np.savez(folder / "images.npz", **arrays)
    fields = ("image_size", "patch_size", "width", "depth", "heads", "hidden", "classes")
    names = ("batch_size", "learning_rate", "final_learning_rate", "weight_decay")
    recipe = {name: getattr(training, name) for name in (*names, "label_smoothing", "distillation")}
    recipe |= {
        "epochs": cell.epochs,
        "weight": training.distillation_weight,
        "temperature": training.distillation_temperature,
    }
    job = {
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
    context = contexts.open_context(config, Workdir(folder), Console(), lambda: False)
    if arguments.test:
        test = dataclasses.replace(config.data, source=arguments.test)
        context = dataclasses.replace(context, test=open_source(test, "test"))
    dense = contexts.load_dense(context)
    contexts.top1(context, "dense", dense)
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
    numbers = [
        [kind(part) for part in getattr(arguments, name).split(",")]
        for name, kind in (("budgets", float), ("epochs", int), ("seeds", int))
    ]
    made = {}
    for cell in cells(arguments.contestants.split(","), *numbers):
        file = folder / f"{cell.name}.json"
        if not file.exists() and time.monotonic() < end:
            print(f"\n{cell.name}", flush=True)
            file.write_text(json.dumps(run(bench, cell), indent=1))
        if file.exists():
            made[cell] = json.loads(file.read_text())
    print(table(made))


if __name__ == "__main__":
    main()
