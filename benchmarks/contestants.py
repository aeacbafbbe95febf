"""Who competes in ``rivals.py``: each makes a model of a budget out of the same dense one."""

import dataclasses
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.calibrated import calibrate, repaired, score
from spvit_jax.config import Budget, Finetune, from_config_dict
from spvit_jax.context import Context
from spvit_jax.convert.fit import resize_grid
from spvit_jax.merges import Schedules
from spvit_jax.models import Classifier, ViT
from spvit_jax.shortlist import shortlist
from spvit_jax.single_path import prices
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.axes import AXES, FfnAxis, HeadsAxis
from spvit_jax.single_path.budget import select
from spvit_jax.single_path.candidates import candidates
from spvit_jax.single_path.eliminate import Elimination
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.merging import Merges
from spvit_jax.single_path.prune import prune
from spvit_jax.single_path.schedules import SHAPES, saving
from spvit_jax.single_path.score import BlockScores, Scores
from spvit_jax.single_path.supernet import supernet
from spvit_jax.trained import fit
from spvit_jax.workdir import Workdir

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"
SEARCH_EPOCHS = 3


class Unreached(Exception):
    """A contestant cannot be made so small."""


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

    def gating(self, budget: float, axes: tuple[str, ...], merges: Merges = ()) -> Gating:
        """What a contestant may choose from under a budget."""
        search = dataclasses.replace(self.context.config.search, axes=axes)
        held = Budget(macs=budget, count=self.count)
        return Gating.of(search, held, self.context.spec, self.dense, merges)

    @property
    def scores(self) -> Scores:
        """Those of the dense model, made once."""
        return score(self.context, self.dense, calibrate(self.context))

    def merges(self, budget: float) -> Merges:
        """The schedule of merges that suits a budget best."""
        held = Budget(macs=budget, count=self.count)
        folder = f"merges-{self.count}-{budget}"
        return Schedules(self.context, folder, held, self.dense, self.scores).choose()

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
    """Scores, merges, chooses and repairs; no search, no shortlist."""
    return _scored(bench, cell, bench.merges(cell.budget))


def weights(bench: Bench, cell: Cell) -> Any:
    """The same, with all tokens."""
    return _scored(bench, cell, ())


def _scored(bench: Bench, cell: Cell, merges: Merges) -> Any:
    gating = bench.gating(cell.budget, tuple(AXES), merges)
    architecture = select(gating.space, bench.scores, gating.budgets)
    return repaired(bench.context, bench.dense, architecture, calibrate(bench.context))


def tried(bench: Bench, cell: Cell) -> Any:
    """Ours, out of a shortlist, in the time of which no epoch is counted."""
    context, merges = bench.at(cell), bench.merges(cell.budget)
    gating = bench.gating(cell.budget, tuple(AXES), merges)
    config = dataclasses.replace(context.config, finetune=bench.training(cell))
    folder = Path(context.workdir / f"trials/{cell.name}")
    folder.mkdir(parents=True, exist_ok=True)
    trial = dataclasses.replace(context, config=config, workdir=Workdir(folder))
    proposed = candidates(gating.space, bench.scores, gating.budgets)
    architecture = shortlist(trial, bench.dense, proposed)[1]
    return repaired(context, bench.dense, architecture, calibrate(context))


def merging(bench: Bench, cell: Cell) -> Any:
    """Merges alike in every block, if that saves enough, and leaves the weights as they are."""
    spec = bench.context.spec

    def pricing(merges: Merges) -> tuple[Any, ...]:
        return bench.gating(cell.budget, ("heads",), merges).budgets

    schedules = (saving(spec, shape, 1.0, pricing) for shape in SHAPES)
    merges = next((schedule for schedule in schedules if schedule is not None), None)
    if merges is None:
        raise Unreached(f"merging alone does not reach {cell.budget:.0%} of the MACs")
    whole = tuple(block.hidden for block in spec.blocks)
    return prune(bench.dense, Architecture(("msa",) * len(whole), whole, merges=merges))


class Smaller(Classifier):
    """A network that scales images down to the size of another one, which sees them."""

    def __init__(self, inner: ViT, spec: Any):
        self.inner, self.spec = inner, spec

    def heads(self, images: Any, extras: Any = None, **options: Any) -> tuple[Any, ...]:
        """The logits of each head; images are scaled with antialiasing."""
        side = self.inner.spec.image_size
        scaled = jax.image.resize(images, (len(images), side, side, 3), "cubic", antialias=True)
        return self.inner.heads(scaled, extras, **options)


def smaller(bench: Bench, cell: Cell) -> Any:
    """Sees images of fewer pixels, of the largest size that fits; positions are interpolated."""
    spec, patch = bench.context.spec, bench.context.spec.patch_size
    target = cell.budget * prices.published_macs(spec).dense
    sizes = range(spec.image_size - patch, 0, -patch)
    specs = (dataclasses.replace(spec, image_size=size) for size in sizes)
    seen = next(s for s in specs if _macs(s, bench.count).dense <= target)
    grid, side = (one.image_size // patch for one in (spec, seen))
    first, others = np.split(np.asarray(bench.dense.pos_embed[...]), [spec.prefix])
    others = resize_grid(others.reshape(grid, grid, -1), (side, side)).reshape(side**2, -1)
    inner, copy = ViT(seen, rngs=nnx.Rngs(0)), nnx.clone(bench.dense)
    copy.pos_embed = nnx.Param(jnp.asarray(np.concatenate([first, others])))
    nnx.update(inner, nnx.state(copy))
    return Smaller(inner, spec)


def search(bench: Bench, cell: Cell) -> Any:
    """Searches as the quickstart's paper variant, whose weights go on."""
    paper = from_config_dict(runpy.run_path(str(QUICKSTART))["get_config"]("paper"))
    config = dataclasses.replace(paper, seed=cell.seed)
    config.search.epochs = float(SEARCH_EPOCHS)
    context = dataclasses.replace(bench.context, config=config)
    gating = bench.gating(cell.budget, config.search.axes)
    name = f"search-{cell.budget}-{cell.seed}"
    network, logits = fit(context, name, supernet(bench.dense), config.search, gating=gating)
    return prune(network, gating.project(logits))


def width(bench: Bench, cell: Cell) -> Any:
    """Keeps all of attention, or as large a share of heads as of units where that is too much."""
    architectures = _simple(bench, cell)
    return prune(bench.dense, architectures.get("uniform width") or architectures["uniform shares"])


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
            smallest_first(HeadsAxis().strength(block)),
            smallest_first(FfnAxis().strength(block)),
        )
        for block in bench.dense.blocks
    )
    gating = bench.gating(cell.budget, tuple(AXES))
    return candidates(gating.space, Scores(tuple(rows), 0), gating.budgets)


def magnitude(bench: Bench, cell: Cell) -> Any:
    """Keeps the heads and units of the largest weights, compared over all blocks."""
    gating = bench.gating(cell.budget, ("heads", "ffn"))
    rows = [
        {axis.name: np.log(axis.strength(block)) for axis in (HeadsAxis(), FfnAxis())}
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
    raise Unreached(f"no dense model has {cell.budget:.0%} of the MACs")


def _macs(spec: Any, count: str) -> prices.Prices:
    return prices.published_macs(spec) if count == "published" else prices.macs(spec)


Contestant = Callable[[Bench, Cell], Any]  # a model before fine-tuning
CONTESTANTS: dict[str, Contestant] = {
    "ours": ours,
    "tried": tried,
    "weights": weights,
    "merging": merging,
    "smaller": smaller,
    "search": search,
    "width": width,
    "depth": depth,
    "magnitude": magnitude,
    "random": random,
    "small": small,
    "small5": small,
}
