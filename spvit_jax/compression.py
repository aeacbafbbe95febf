"""A user's own model and images through the pipeline's stages: ``compress`` and ``frontier``."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from spvit_jax import config as schema
from spvit_jax import curve
from spvit_jax.choosing import choose
from spvit_jax.config import Config, ConfigError, from_config_dict
from spvit_jax.context import Context, Inputs, open_context
from spvit_jax.convert import load, save
from spvit_jax.convert.forms import check_numbers, variables
from spvit_jax.data.errors import DataError
from spvit_jax.data.images import Images, open_images
from spvit_jax.data.sources import Some, Source
from spvit_jax.delivery import finetuned, pruned_by
from spvit_jax.judged import quality
from spvit_jax.models import Classifier, RegNetSpec, SwinSpec, check_model
from spvit_jax.pipeline import claimed
from spvit_jax.predict.classify import crop_ratio_of, normalise_of
from spvit_jax.progress import Console
from spvit_jax.single_path.gating import Gating
from spvit_jax.single_path.prune import fold, form
from spvit_jax.single_path.space import SpaceError
from spvit_jax.tradeoff import Frontier
from spvit_jax.trained import load_dense
from spvit_jax.training.sharding import host

Model = TypeVar("Model", bound=Classifier)
LEAST = 8  # images: what fewer say of a model is chance
JUDGING = 500  # images at most that say how near the smaller model is; a fifth of what there is
PRUNED = "pruned.safetensors"
MEASURED = 0.5  # seconds given to the latency of each model of a frontier, and to its throughput


def compress(
    model: Model,
    images: Images,
    *,
    macs: float = 0.0,
    params: float = 0.0,
    latency: str = "",
    axes: Sequence[str] = (),
    calibration: int = 512,
    candidates: int = 0,
    steps: int = 0,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    workdir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Model:
    """Makes a model smaller: scored, tokens merged, pruned within the budgets, repaired, folded.

    No label is read. It is what ``spvit_jax.main`` does with ``search.epochs=0``, by the same code.

    Args:
      model: dense, a ViT or Swin; stays as it is. What it was trained on is ``model.about``.
      images: of the kind it is for, some hundreds; see ``open_images``. A fifth, at most 500, only
        says at the end how near the smaller model's features are.
      macs: budget; up to 1: a share of the dense model's MACs as published; above: so many per
        image, as the program runs.
      params: budget; up to 1: a share of the dense model's parameters; above: so many.
      latency: budget, ``TABLE.json:SHARE`` of the dense model's time; ``spvit-prices`` makes the
        table.
      axes: what may be touched, of "op", "heads", "dims" (features of heads), "tokens" and "ffn";
        (): all that the model has.
      calibration: images to score and repair on, at most; fewer are shown in several crops.
      candidates: of the choice and simpler ones, how many are trained for 100 steps before one is
        taken; 0: the choice of the scores stands.
      steps: of training, in which each block learns to give what the dense model's gives; 0: none.
      learning_rate: its peak.
      batch_size: images per step of it.
      workdir: where everything is kept, and goes on from if it was interrupted; None: nowhere.
      seed: of the training.
      progress: whether stages and bars are shown.

    Returns:
      The smaller model, folded; its ``architecture`` says what is left.

    Raises:
      ConfigError: no budget, one that leaves nothing to do, or a model that cannot be pruned.
      BudgetError, SpaceError: a budget or axes that the model cannot have.
      DataError: images that are none, or too few.
      CheckpointError: weights that are not finite.
    """
    _check_model(model)
    budget = schema.Budget(macs=_number(macs), params=_number(params), latency=latency)
    if budget == schema.Budget():
        raise ConfigError(
            "compress needs a budget: macs=0.5 is half of the dense model's multiply-accumulates,"
            " params=0.5 half of its parameters, latency='table.json:0.5' half of its time"
        )
    if steps < 0:
        raise ConfigError(f"steps must be 0 or more, got {steps}")
    source = _source(images)
    config = Config(
        stage="all" if steps else "search",
        seed=seed,
        model=schema.Model(variant=""),
        data=_data(model, images),
        budget=budget,
        search=schema.Search(epochs=0, axes=_axes(model, axes)),
        score=_score(calibration),
        shortlist=schema.Shortlist(candidates=candidates),
        finetune=_tuning(steps, learning_rate, batch_size, len(source) - len(_judging(source))),
        eval_every=0.0,
    )
    with _opened(config, model, source, workdir, progress) as context:
        _check_budgets(context)
        small: Model = _compressed(context)
        return small


def _compressed(context: Context) -> Any:
    """Chooses, prunes, repairs, trains if it is to and folds; what is finished is only read."""
    if context.workdir.check(PRUNED):
        context.console.stage("finished", "before this call")
        return load(str(context.workdir / PRUNED))
    dense = load_dense(context)
    decision, _ = choose(context, dense)
    small = pruned_by(context, dense, decision)
    if "finetune" in context.config.trainings:
        small = finetuned(context, small)
    small = fold(small, batch_norm=True)
    quality(context, "pruned", small, dense)
    context.workdir.write(PRUNED, lambda path: save(small, path))
    return small


def _tuning(steps: int, learning_rate: float, batch_size: int, images: int) -> schema.Finetune:
    """A short training in which each block learns to give what the dense model's gives."""
    batch_size = min(batch_size, images // 2)
    return schema.Finetune(
        epochs=(steps or 1) / (images // max(batch_size, 1)),
        start="repaired",
        batch_size=batch_size,
        learning_rate=learning_rate,
        schedule="cosine",
        distillation="features",
        distillation_weight=1.0,
    )


def frontier(
    model: Classifier,
    images: Images,
    macs: Sequence[float] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2),
    *,
    axes: Sequence[str] = (),
    calibration: int = 512,
    workdir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Frontier:
    """Makes a smaller model for each of several budgets, from one pass of scoring.

    Args:
      model, images, axes, calibration, workdir, progress: as for ``compress``.
      macs: budgets, as shares of the dense model's MACs as published.

    Returns:
      What each costs and how near its features are to the dense model's, on a fifth of the images;
      and the models.

    Raises:
      ConfigError, BudgetError, SpaceError, DataError, CheckpointError: as ``compress`` does.
    """
    _check_model(model)
    if not isinstance(macs, Iterable):
        raise ConfigError(f"macs must be several shares, such as (0.8, 0.5), got {macs!r}")
    budgets = tuple(map(_number, macs))
    config = Config(
        stage="frontier",
        model=schema.Model(variant=""),
        data=_data(model, images),
        search=schema.Search(epochs=0, axes=_axes(model, axes)),
        score=_score(calibration),
        frontier=schema.Frontier(budgets=budgets),
        measure_batch=8,
        measure_seconds=MEASURED * (len(budgets) + 1),
    )
    workdir = _folder(workdir)
    folder = Path(tempfile.mkdtemp(prefix="spvit_")) if workdir is None else Path(workdir)
    with _opened(config, model, _source(images), folder, progress) as context:
        dense, *points = curve.points(context, load_dense(context))
        context.workdir.write_json("frontier.json", curve.Curve((dense, *points)))
    result = Frontier.of(dense, points, model, folder)
    if workdir is None:
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
    return result


def _check_model(model: Classifier) -> None:
    """Raises ConfigError or CheckpointError unless the model is one to prune."""
    check_model(model)
    if isinstance(model.spec, RegNetSpec):
        raise ConfigError("a RegNetY has no attention to prune; give a ViT or a Swin")
    if form(model) == "supernet":
        raise ConfigError("the model is a search's supernet; give the dense one it was made of")
    if form(model) != "dense":
        raise ConfigError(
            f"the model is of {form(model)} form: it is pruned already; give the dense one"
        )
    check_numbers(variables(model))


def _number(value: Any) -> Any:
    """NumPy's and JAX's numbers as Python's, which configurations are made of."""
    return value.item() if isinstance(value, np.generic | jax.Array) else value


def _score(calibration: int) -> schema.Score:
    """Scores on so many images; ConfigError where that is chance."""
    if isinstance(calibration, int) and calibration < LEAST:
        raise ConfigError(f"calibration must be {LEAST} images or more, got {calibration}")
    return schema.Score(images=calibration)


def _check_budgets(context: Context) -> None:
    """Raises ConfigError where a budget is no less than what the dense model takes."""
    config = context.config
    for budget in Gating.of(config.search, config.budget, context.spec).budgets:
        if budget.target >= budget.prices.dense:
            raise ConfigError(
                f"the budget of {budget.target:,.8g} {budget.prices.unit} is no less than what the"
                f" dense model takes, {budget.prices.dense:,.8g}; ask for less"
            )


def _source(images: Images) -> Source:
    source = open_images(images)
    if len(source) < LEAST:
        raise DataError(
            f"there are {len(source)} images, at least {LEAST} are needed; some hundreds of the"
            " kind that the model is for are best"
        )
    return source


def _judging(source: Source) -> np.ndarray[Any, Any]:
    """Which images only say how near the smaller model is: a fifth, spread evenly."""
    count = max(min(JUDGING, len(source) // 5), 1)
    return np.linspace(0, len(source) - 1, count + 2)[1:-1].round().astype(int)


def _check_judging(source: Source) -> None:
    """Raises DataError where no image can be decoded; a compressed model must not wait for that."""
    problems = []
    for number in range(len(source)):
        try:
            source[number]["image"].full()
        except DataError as error:
            problems.append(error)
        else:
            return
    raise DataError(
        f"none of the {len(source)} images that are to say how near the smaller model is can be"
        f" decoded: {problems[0]}"
    )


def _data(model: Classifier, images: Images) -> schema.Data:
    """How images are prepared: as the model was trained with them, as far as that is known."""
    normalise = normalise_of(model)
    where = os.fspath(images) if isinstance(images, str | os.PathLike) else "images in memory"
    return schema.Data(
        source=f"folder:{where}",
        mean=normalise.mean,
        std=normalise.std,
        crop_ratio=crop_ratio_of(model),
        augment="plain",
        on_error="skip",
        eval_batch_size=32,
    )


def _axes(model: Classifier, axes: Sequence[str]) -> tuple[str, ...]:
    """All that the model can lose unless it is said: a Swin's windows need their tokens."""
    if isinstance(axes, str):
        raise SpaceError(f"axes must be a tuple of names, such as ('heads', 'ffn'), got {axes!r}")
    tokens = () if isinstance(model.spec, SwinSpec) else ("tokens",)
    return tuple(axes) or ("op", "heads", "dims", *tokens, "ffn")


def _folder(workdir: str | os.PathLike[str] | None) -> str | None:
    """Where everything is kept, ~ being the user's folder; None: nowhere.

    Raises:
      ConfigError: an empty name, which would be the folder one happens to be in.
    """
    if workdir is not None and not os.fspath(workdir):
        raise ConfigError("workdir is empty; give a folder, '.' for this one, or None for none")
    return None if workdir is None else os.path.expanduser(os.fspath(workdir))


@contextlib.contextmanager
def _opened(
    config: Config,
    model: Classifier,
    source: Source,
    workdir: str | os.PathLike[str] | None,
    progress: bool,
) -> Iterator[Context]:
    """The context of a call, in its folder or in one that is gone afterwards."""
    config = from_config_dict(dataclasses.asdict(config))  # refuses what cannot be
    judging = _judging(source)
    rest = np.setdiff1d(np.arange(len(source)), judging)
    _check_judging(Some(source, judging))
    inputs = Inputs(Some(source, rest), Some(source, judging), model)
    with contextlib.ExitStack() as stack:
        if (workdir := _folder(workdir)) is None:
            workdir = stack.enter_context(tempfile.TemporaryDirectory(prefix="spvit_"))
        console = Console(silent=not progress)
        files = stack.enter_context(claimed(config, workdir, console))
        stack.enter_context(jax.default_device(host()))
        yield open_context(config, files, console, lambda: False, inputs=inputs)
