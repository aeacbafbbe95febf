"""Files of a run's pruned model that run elsewhere, beside ``pruned.safetensors``."""

import dataclasses
import json
import shutil
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np

from spvit_jax import hosts
from spvit_jax.config import FORMATS
from spvit_jax.context import USER_ERRORS, Context
from spvit_jax.convert import Facts
from spvit_jax.data.pipeline import eval_batches
from spvit_jax.data.sources import Some
from spvit_jax.export import CheckFailed, ExportError, export
from spvit_jax.export.images import LEAST, MOST, as_seen
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.measure.comparison import Comparison, compare, cores
from spvit_jax.measure.contestants import FILES, of_model, open_contestants, runtimes
from spvit_jax.measure.errors import MeasureError
from spvit_jax.measure.shown import figure, table
from spvit_jax.measure.tested import judge
from spvit_jax.models import Classifier

TESTED = 2000  # test images that the files are compared on, at most


class _Unlabelled(Some):
    """Images without what is known of their classes."""

    class_names = ()


def write_files(context: Context, dense: Classifier, folded: Classifier) -> Comparison | None:
    """Writes ``pruned.…`` in each of ``export.formats``, by process 0, and says what they are.

    What cannot be written is said, a file that does not compute what the model does is left as
    ``….failed``, and the run goes on: it has its model. ``files.txt``, ``files.json`` and
    ``files.png`` compare the files with both models, and with the dense model in these formats.

    Args:
      context: of the run.
      dense: the model before.
      folded: the pruned one.

    Returns:
      That comparison, on process 0; None without a file that can be run here.
    """
    formats = context.config.export.formats
    if not formats:
        return None
    context.announce("export", ", ".join(formats))
    comparison = None
    with hosts.together(*USER_ERRORS):
        if jax.process_index() == 0:
            images = _images(context, folded) if "int8.onnx" in formats else None
            with tempfile.TemporaryDirectory() as place:
                for name in formats:
                    _write(context, folded, Path(place), f"pruned{FORMATS[name]}", images)
                for file in sorted(Path(place).iterdir()):
                    context.workdir.write(file.name, partial(shutil.copy, file))
                comparison = _compared(context, dense, folded, Path(place), images)
    hosts.from_first(None)  # no process takes the time while process 0 writes
    return comparison


def _images(context: Context, folded: Classifier) -> np.ndarray:
    """Training images, evenly spread and mixed, as evaluation sees them; labels are left behind."""
    count = min(MOST, len(context.train))
    spread = np.linspace(0, len(context.train) - 1, count).round().astype(int)
    batches = eval_batches(
        Some(context.train, np.random.default_rng(0).permutation(spread)),
        context.config.data,
        batch_size=LEAST,
        rows=np.arange(LEAST),
        image_size=context.spec.image_size,
    )
    images = np.concatenate([batch["image"][batch["mask"]] for batch in batches])
    return as_seen(images, Preprocess.of(folded, context.about, []))


def _write(
    context: Context,
    model: Classifier,
    folder: Path,
    name: str,
    images: np.ndarray | None,
    quiet: bool = False,
) -> None:
    """Writes one file, and says what it is, unless ``quiet``, or why it is not there."""
    config, console, notes = context.config.export, context.console, list[str]()
    try:
        done = export(
            model,
            folder / name,
            about=context.about,
            pixels=config.pixels,
            layout=config.layout,
            opset=config.opset,
            images=images,
            source="a run of spvit_jax",
            notes=notes,
        )
        lines = [f"{name}: {done.size / 1e6:,.1f} MB, {', '.join(done.facts)}"]
        lines += [f"  {note}" for note in notes]
    except (CheckFailed, ExportError) as error:
        text = str(error).partition("; the file is kept as")[0] if quiet else str(error)
        console.say(f"export: {text}".replace(str(folder), str(context.workdir.path)))
        lines = [f"  {note}" for note in notes]
    for line in () if quiet else lines:
        console.say(line)


def _compared(
    context: Context,
    dense: Classifier,
    folded: Classifier,
    folder: Path,
    images: np.ndarray | None,
) -> Comparison | None:
    """Sets the files of a folder beside the models and beside the dense model's files."""
    made = [FORMATS[name] for name in context.config.export.formats]
    made = [suffix for suffix in made if (folder / f"pruned{suffix}").is_file()]
    run = [suffix for suffix in made if suffix.endswith(tuple(FILES))]
    if not run:
        return None
    for suffix in run:
        if suffix != ".stablehlo":  # which is the model in JAX
            _write(context, dense, folder, f"dense{suffix}", images, quiet=True)
    context.announce("measure", "the files next to the models")
    try:
        comparison = _measured(context, dense, folded, folder, run)
    except MeasureError as error:
        context.console.say(f"the files are not compared: {error}")
        return None
    _keep(context, comparison)
    return comparison


def _measured(
    context: Context, dense: Classifier, folded: Classifier, folder: Path, run: list[str]
) -> Comparison:
    threads, config = cores(), context.config
    contestants = [of_model("dense", dense, context.about)]
    contestants.append(of_model("pruned", folded, context.about))
    for path in [folder / f"{name}{suffix}" for suffix in run for name in ("dense", "pruned")]:
        if path.is_file():
            found = open_contestants(str(path), runtimes(path.name, []), threads, Facts(), [])
            contestants += [dataclasses.replace(one, name=path.name) for one in found]
    count = min(TESTED, len(context.test))
    spread = np.linspace(0, len(context.test) - 1, count).round().astype(int)
    source = Some(context.test, spread) if context.labelled else _Unlabelled(context.test, spread)
    with context.console.bar(count, 0, "test") as bar:
        quality = judge(contestants, source, config.measure_batch, bar.update)
    return compare(
        contestants,
        batch_size=config.measure_batch,
        seconds=config.measure_seconds,
        threads=threads,
        tested=quality,
    )


def _keep(context: Context, comparison: Comparison) -> None:
    write, text = context.workdir.write, table(comparison)
    write("files.txt", lambda path: path.write_text(text + "\n", encoding="utf-8"))
    numbers = json.dumps(comparison.as_json(), indent=1, ensure_ascii=False) + "\n"
    write("files.json", lambda path: path.write_text(numbers, encoding="utf-8"))
    write("files.png", lambda path: figure(comparison, path))
    context.console.say(text)
