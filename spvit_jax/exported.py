"""Files of a run's pruned model that run elsewhere, beside ``pruned.safetensors``."""

import shutil
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np

from spvit_jax import hosts
from spvit_jax.config import FORMATS
from spvit_jax.context import USER_ERRORS, Context
from spvit_jax.data.pipeline import eval_batches
from spvit_jax.data.sources import Some
from spvit_jax.export import CheckFailed, ExportError, export
from spvit_jax.export.images import LEAST, MOST, as_seen
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.models import Classifier


def write_files(context: Context, folded: Classifier) -> None:
    """Writes ``pruned.…`` in each of ``export.formats``, by process 0, and says what they are.

    What cannot be written is said, a file that does not compute what the model does is left as
    ``….failed``, and the run goes on: it has its model.
    """
    formats = context.config.export.formats
    if not formats:
        return
    context.announce("export", ", ".join(formats))
    with hosts.together(*USER_ERRORS):
        if jax.process_index() == 0:
            images = _images(context, folded) if "int8.onnx" in formats else None
            for name in formats:
                _write(context, folded, f"pruned{FORMATS[name]}", images)
    hosts.from_first(None)  # no process takes the time while process 0 writes


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


def _write(context: Context, folded: Classifier, name: str, images: np.ndarray | None) -> None:
    config, console, notes = context.config.export, context.console, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = export(
                folded,
                Path(folder, name),
                about=context.about,
                pixels=config.pixels,
                layout=config.layout,
                opset=config.opset,
                images=images,
                source="a run of spvit_jax",
                notes=notes,
            )
            console.say(f"{name}: {done.size / 1e6:,.1f} MB, {', '.join(done.facts)}")
        except (CheckFailed, ExportError) as error:
            console.say(f"export: {error}".replace(folder, str(context.workdir.path)))
        for note in notes:
            console.say(f"  {note}")
        for file in sorted(Path(folder).iterdir()):
            context.workdir.write(file.name, partial(shutil.copy, file))
