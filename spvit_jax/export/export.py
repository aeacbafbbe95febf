"""``export``: a model as a file of another kind, written aside, checked, and put in its place."""

import contextlib
import dataclasses
import importlib.util
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from spvit_jax.config import LIBRARIES
from spvit_jax.convert import About, save
from spvit_jax.convert.files import naming
from spvit_jax.convert.forms import check_numbers, variables
from spvit_jax.export.check import check
from spvit_jax.export.errors import CheckFailed, ExportError
from spvit_jax.export.images import LEAST, halves
from spvit_jax.export.near import BATCH, COSINE, SAME, Near, Run, batched, near, runner
from spvit_jax.export.preprocess import Preprocess
from spvit_jax.export.runtimes import arranged, run_onnx
from spvit_jax.models import Classifier, check_model
from spvit_jax.remote import followed, is_loop, is_remote, is_special, is_utf8, public
from spvit_jax.single_path.prune import fold, form

PIXELS = ("float32", "uint8")
LAYOUTS = ("NCHW", "NHWC")
TORCH = "spvit_torch.py"
INT8 = ".int8.onnx"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be written: ``export``'s arguments, filled in."""

    model: Classifier
    about: About
    preprocess: Preprocess
    pixels: str
    layout: str
    opset: int
    beside: bool
    batch: int
    images: np.ndarray | None
    metadata: dict[str, Any]
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
      files: all of them, the one that was asked for first.
      size: their bytes together, without the preprocessing's.
      facts: what there is to say of it, in words.
    """

    files: tuple[Path, ...]
    size: int
    facts: tuple[str, ...]


def export(
    model: Classifier,
    path: str | os.PathLike[str],
    *,
    about: About | None = None,
    pixels: str = "float32",
    layout: str = "",
    opset: int = 17,
    beside: bool = False,
    batch: int = 1,
    images: np.ndarray | None = None,
    source: str = "",
    notes: list[str] | None = None,
) -> Exported:
    """Writes ``model`` to ``path``, in the format that its suffix says, see ``SUFFIXES``.

    Args:
      model: dense or pruned, which is folded for it.
      path: in a folder that there is.
      about: what it was trained on: its mean, std, crop ratio and class names; None:
        ``model.about``.
      pixels: what goes in: "float32", normalised, or "uint8", as decoded.
      layout: of what goes in: "NCHW" or "NHWC"; "": NCHW in ONNX, NHWC elsewhere.
      opset: of ONNX.
      beside: of StableHLO, whether weights lie beside the program.
      batch: of LiteRT, images at once; other files take any number.
      images: photographs of the kind the model is for, uint8 ``[n, height, width, channels]``, 64
        or more: half of them calibrate int8, the others judge it.
      source: where the model came from, to be said in the file.
      notes: gets a sentence for what had to be assumed, and what of int8 stays float; None: they
        are warnings.

    Returns:
      The files and what is to be said of them.

    Raises:
      ExportError: no such suffix or option, or a model that cannot be exported.
      CheckFailed: the file does not compute what the model does; it stays as ``….failed``.
      CheckpointError: its weights hold numbers that are not finite.
      OSError: it cannot be written; what was there is untouched.
    """
    check_model(model)
    check_numbers(variables(model))
    if is_remote(path):
        raise ExportError(
            f"{public(path)} is no file of this machine; write to a disk, and copy it"
        )
    path, noted = Path(os.path.expanduser(path)), [] if notes is None else notes
    suffix = suffix_of(path)
    _check_options(pixels, layout, beside, suffix)
    needs(suffix, images is not None)
    if not path.absolute().parent.is_dir():
        raise ExportError(f"{path}: there is no such folder; make it first")
    if path.is_dir() or is_special(path) or is_loop(path):
        raise ExportError(
            f"{path} is a folder, a pipe, a device, or a link that leads back to itself; give the"
            " name of a file"
        )
    model = exportable(model)
    about = about or model.about or About()
    preprocess = Preprocess.of(model, about, noted)
    usual = "NCHW" if suffix.endswith(".onnx") else "NHWC"
    metadata = {"source": source, "macs": macs(model)}
    layout = layout or usual
    job = Job(
        model, about, preprocess, pixels, layout, opset, beside, batch, images, metadata, noted
    )
    with _draft(path) as draft:
        facts = SUFFIXES[suffix](job, draft)
        size = sum(file.stat().st_size for file in draft.parent.iterdir())
        preprocess_beside(draft).write_text(preprocess.to_json(), encoding="utf-8")
        names = sorted(file.name for file in draft.parent.iterdir() if file != draft)
    for note in noted if notes is None else ():
        warnings.warn(note, stacklevel=2)
    return Exported((path, *(path.with_name(name) for name in names)), size, tuple(facts))


def preprocess_beside(path: Path) -> Path:
    """Names the file of an exported file's preprocessing."""
    return path.with_name(_stem(path) + ".preprocess.json")


def suffix_of(path: Path) -> str:
    """The suffix of ``SUFFIXES`` that a path ends in.

    Raises:
      ExportError: none, or its name is not UTF-8, which the libraries need that write it.
    """
    if not is_utf8(path):
        raise ExportError(f"the name of {public(path)} is not UTF-8; choose another")
    suffixes = [suffix for suffix in SUFFIXES if path.name.endswith(suffix)]
    if not suffixes or not _stem(path):
        raise ExportError(
            f"{path}: what to write is said by the suffix, one of {', '.join(SUFFIXES)}"
        )
    return max(suffixes, key=len)


def needs(suffix: str, images: bool) -> None:
    """Raises ExportError where a library, or images, are missing that this format takes."""
    if suffix == INT8 and not images:
        raise ExportError(
            f"{suffix} is calibrated on photographs of the kind the model is for: give them by"
            " --images FOLDER (in Python images=, uint8 [n, height, width, channels]), or write"
            " .dynamic.onnx, which needs none"
        )
    extra, libraries = LIBRARIES.get(suffix.rpartition(".")[2], ("", ()))
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{suffix} needs {', '.join(missing)}: pip install 'spvit_jax[{extra}]'")


def exportable(model: Classifier) -> Classifier:
    """The model as it is exported: dense, or folded with its batch norms.

    Raises:
      ExportError: it is a supernet.
    """
    if form(model) == "supernet":
        raise ExportError(
            "a search's supernet holds every choice, and is no model to run; export what it decided"
            " on, the run's pruned.safetensors"
        )
    return model if form(model) == "dense" else fold(model, batch_norm=True)


def _check_options(pixels: str, layout: str, beside: bool, suffix: str) -> None:
    if pixels not in PIXELS:
        raise ExportError(f"pixels must be one of {', '.join(PIXELS)}; got {pixels!r}")
    if layout not in ("", *LAYOUTS):
        raise ExportError(f"layout must be one of {', '.join(LAYOUTS)}; got {layout!r}")
    if beside and suffix != ".stablehlo":
        raise ExportError(f"weights lie beside the program of a .stablehlo; {suffix} has no such")


def _stem(path: Path) -> str:
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix)
    return path.stem


def macs(model: Classifier) -> int:
    """Counts multiply-accumulates per image; of a RegNetY not counted, 0."""
    from spvit_jax.single_path import prices

    if model.architecture is not None:
        return model.architecture.macs(model.spec)
    return prices.macs(model.spec).dense if hasattr(model.spec, "blocks") else 0


@contextlib.contextmanager
def _draft(path: Path) -> Iterator[Path]:
    """A place to write ``path`` at first; all files there are moved to its folder in the end.

    A file that fails its check is moved as ``….failed``.
    """
    with naming(path):
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.absolute().parent))
    try:
        with naming(path):
            yield folder / path.name
            _move(folder, path)
    except CheckFailed as error:
        _move(folder, path, ".failed")
        raise CheckFailed(f"{path}: {error}; the file is kept as {path}.failed") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(folder: Path, path: Path, suffix: str = "") -> None:
    """Moves all files of a folder next to ``path``, itself the last."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
        target = followed(path.with_name(file.name + suffix))
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            shutil.move(file, part)  # a link may lead to another disk
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def _emitted(job: Job, dtype: Any = np.float32) -> Any:
    """The model as ONNX has it.

    Raises:
      ExportError: no such opset.
    """
    from spvit_jax.export.onnx import OPSETS, onnx_model

    if job.opset not in OPSETS:
        raise ExportError(
            f"opset must be one of {', '.join(map(str, OPSETS))}; got {job.opset}."
            " LayerNormalization came with 17, Gelu with 20, Attention with 23"
        )
    return onnx_model(
        job.model,
        job.preprocess,
        opset=job.opset,
        pixels=job.pixels,
        layout=job.layout,
        dtype=dtype,
        metadata=job.metadata,
    )


def _onnx(job: Job, path: Path, *, half: bool = False) -> tuple[str, ...]:
    from spvit_jax.export.onnx import save_onnx

    made = _emitted(job, np.float16 if half else np.float32)
    save_onnx(made, path)
    run = run_onnx(path, job.preprocess)
    checked = check(job.model, job.preprocess, run, tolerance=3e-2 if half else 1e-4)
    return f"opset {job.opset}", f"{len(made.graph.node)} nodes", checked.summary()


def _half(job: Job, path: Path) -> tuple[str, ...]:
    return _onnx(job, path, half=True)


def _int8(job: Job, path: Path) -> tuple[str, ...]:
    from spvit_jax.export.int8 import static

    assert job.images is not None
    calibrating, judging = halves(job.images, job.preprocess)
    judge = _judge(job, judging)
    inputs = (
        arranged(calibrating[i : i + BATCH], job.preprocess, job.pixels == "uint8", job.layout)
        for i in range(0, len(calibrating), BATCH)
    )
    amount, floats = static(_emitted(job), inputs, judge, path)
    job.notes.extend(floats)
    return f"opset {job.opset}", amount, _enough(judge(path))


def _dynamic(job: Job, path: Path) -> tuple[str, ...]:
    from spvit_jax.export.int8 import dynamic

    dynamic(_emitted(job), path)
    return f"opset {job.opset}", _enough(_judge(job, _judging(job))(path))


def _judging(job: Job) -> np.ndarray:
    """The images that judge what needs none to be calibrated: the user's, or noise."""
    if job.images is not None:
        return halves(job.images, job.preprocess)[1]
    shape = (LEAST, *job.preprocess.crop, job.preprocess.channels)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def _judge(
    job: Job, pixels: np.ndarray, load: Callable[[Path, Preprocess], Run] = run_onnx
) -> Callable[[Path], Near]:
    """Says of a file how near it comes to the model on these images."""
    wanted = batched(runner(job.model, job.preprocess), pixels)
    return lambda path: near(batched(load(path, job.preprocess), pixels), wanted)


def _enough(nearness: Near) -> str:
    if not nearness.enough:
        raise CheckFailed(
            f"outputs are not near enough to the model's: {nearness.summary()}; expected cosine"
            f" {COSINE} and the same class in {SAME:.0%}"
        )
    return nearness.summary()


def _stablehlo(job: Job, path: Path) -> tuple[str, ...]:
    from spvit_jax.export.runtimes import run_stablehlo
    from spvit_jax.export.stablehlo import PLATFORMS, save_stablehlo

    save_stablehlo(
        job.model,
        job.preprocess,
        path,
        pixels=job.pixels,
        layout=job.layout,
        beside=job.beside,
    )
    run = run_stablehlo(path, job.preprocess)
    checked = check(job.model, job.preprocess, run, tolerance=1e-4)
    return ", ".join(PLATFORMS), checked.summary()


def _litert(job: Job, path: Path) -> tuple[str, ...]:
    from spvit_jax.export.litert import run_litert

    _save_litert(job, path, int8=False)
    checked = check(job.model, job.preprocess, run_litert(path, job.preprocess), tolerance=1e-4)
    return f"batch {job.batch}", checked.summary()


def _litert_int8(job: Job, path: Path) -> tuple[str, ...]:
    from spvit_jax.export.litert import run_litert

    _save_litert(job, path, int8=True)
    judge = _judge(job, _judging(job), run_litert)
    return f"batch {job.batch}", _enough(judge(path))


def _save_litert(job: Job, path: Path, int8: bool) -> None:
    from spvit_jax.export.litert import save_litert

    options: dict[str, Any] = {"pixels": job.pixels, "layout": job.layout, "batch": job.batch}
    save_litert(job.model, job.preprocess, path, int8=int8, **options)


def _torch(job: Job, path: Path) -> tuple[str, ...]:
    save(job.model, path, about=job.about)
    shutil.copy(Path(__file__).with_name(TORCH), path.with_name(TORCH))
    return (f"for PyTorch: import spvit_torch; spvit_torch.load({path.name!r})",)


SUFFIXES: dict[str, Callable[[Job, Path], Sequence[str]]] = {
    ".onnx": _onnx,
    ".fp16.onnx": _half,
    INT8: _int8,
    ".dynamic.onnx": _dynamic,
    ".stablehlo": _stablehlo,
    ".tflite": _litert,
    ".int8.tflite": _litert_int8,
    ".safetensors": _torch,
}
