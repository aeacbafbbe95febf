"""Checkpoint files as named arrays. Nothing in a file is ever executed."""

import argparse
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from spvit_jax.convert.contents import EXPECTED, TORCH, describe
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.fetch import INDEX, fetch, shards_of
from spvit_jax.remote import raise_transient

State = dict[str, np.ndarray]

WRAPPERS = (  # the first that is there
    "model",
    "state_dict",
    "model_ema",
    "state_dict_ema",
    "module",
    "teacher",
    "student",
    "ema",
    "ema_state_dict",
)


def read_state(address: str, notes: list[str] | None = None) -> State:
    """Names and arrays of a checkpoint; half precision becomes float32.

    Args:
      address: a path, ``https://…``, ``hf-hub:ORG/NAME`` or ``gs://…``; see ``fetch``. Of an
        index, all its shards are read.
      notes: gets a sentence where a file holds the weights twice, as averages too.

    Raises:
      CheckpointError: not a readable file of weights, or shards are missing.
      OSError: a fault of the disk that may pass.
    """
    path = fetch(address)
    notes = [] if notes is None else notes
    if path.name.endswith(INDEX):
        return _read_shards(path, notes)
    return _read_file(path, notes)


def _read_file(path: Path, notes: list[str]) -> State:
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty; {EXPECTED}")
    if path.suffix == ".safetensors":
        return {name: _wide(value) for name, value in read_safetensors(path).items()}
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in TORCH:
        return _read_torch(path, notes)
    raise CheckpointError(f"{path} is {describe(path)}; {EXPECTED}")


def read_safetensors(path: Path) -> State:
    """The arrays of a safetensors file, as they are.

    Raises:
      CheckpointError: it is none of floating-point numbers that NumPy has, or not whole.
    """
    try:
        # Opened here too: safetensors says of any file that does not open that there is none.
        with path.open("rb"), safetensors.safe_open(path, "np") as file:
            for name in sorted(file.keys()):
                kind = file.get_slice(name).get_dtype()
                if re.fullmatch(r"F[468](_\w+)?", kind):
                    raise _too_short(path, name, kind)
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, AttributeError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file of floating-point weights: {error}; it looks"
            f" like {describe(path)}, {path.stat().st_size:,} bytes; download or save it again"
        ) from error


def _read_shards(index: Path, notes: list[str]) -> State:
    """The arrays of all files that an index names."""
    shards = shards_of(index)
    missing = [name for name in shards if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(shards)} files, of which {len(missing)} are not beside it:"
            f" {', '.join(missing)}; download them too"
        )
    state: State = {}
    for name in shards:
        shard = _read_file(index.parent / name, notes)
        twice = state.keys() & shard.keys()
        if twice:
            raise CheckpointError(f"{index}: two of its files have {', '.join(sorted(twice))}")
        state |= shard
    return state


def _read_npz(path: Path) -> State:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise_transient(error)
        raise CheckpointError(
            f"{path} is not a whole .npz file of nothing but arrays; it looks like"
            f" {describe(path)}, {path.stat().st_size:,} bytes. Nothing in it was executed. NumPy"
            f" says: {error}"
        ) from error
    for name, value in arrays.items():
        if value.dtype == np.dtype("V1"):  # how an .npz keeps 8 bits
            raise _too_short(path, name, "of 8 bits")
    return {name: _wide(value) for name, value in arrays.items()}


def _read_torch(path: Path, notes: list[str]) -> State:
    try:
        import torch
    except ImportError:
        raise CheckpointError(
            f'{path} needs PyTorch to be read: pip install "torch>=2.6"'
            " (or give a .safetensors file, which does not)"
        ) from None
    try:
        # Arguments that training scripts leave in their checkpoints; a plain bag of attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign or hostile file makes it fail in any way whatever
        raise_transient(error)
        unsafe = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if unsafe:
            raise CheckpointError(
                f"{path} holds a {unsafe[1]}, which is not read, since it could execute anything."
                ' Save the weights alone: torch.save(checkpoint["model"], FILE), of a whole model'
                " torch.save(model.state_dict(), FILE), or as .safetensors"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} is not a torch file of nothing but weights, or not a whole one; it looks like"
            f" {describe(path)}, {path.stat().st_size:,} bytes. Nothing in it was executed."
            f" torch says: {reason}"
        ) from error
    _check_sums(path)
    tensors = _unwrap(content, path, notes)
    return {name: _from_torch(name, value, path) for name, value in tensors.items()}


def _check_sums(path: Path) -> None:
    """Raises ``CheckpointError`` where a zip archive is not as it was written; torch does not."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.CRC:  # torch can be told to leave them out
                    with archive.open(entry) as file:
                        while file.read(1 << 20):
                            pass
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} is damaged: {error}; download or save it again") from error


def _unwrap(content: Any, path: Path, notes: list[str]) -> dict[str, Any]:
    """The names and tensors inside a training script's checkpoint."""
    if isinstance(content, dict):
        inner = {key: value for key, value in content.items() if isinstance(value, dict)}
        taken = next((key for key in WRAPPERS if key in inner), None)
        if taken is not None:
            content = inner.pop(taken)
            again = [k for k, v in inner.items() if k in WRAPPERS or v.keys() & content.keys()]
            if again:
                others = ", ".join(map(repr, again))
                notes.append(f"took the weights under {taken!r}; the file also holds {others}")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, expected named tensors, bare or under"
            f" {', '.join(repr(key) for key in WRAPPERS)}"
        )
    if all(str(name).startswith("module.") for name in content):  # DistributedDataParallel's
        content = {str(name).removeprefix("module."): value for name, value in content.items()}
    return content


def _from_torch(name: Any, value: Any, path: Path) -> np.ndarray:
    if not isinstance(name, str) or not hasattr(value, "detach"):
        raise CheckpointError(
            f"{path}: {name!r} is a {type(value).__name__}, expected a tensor; expected named"
            f" tensors, bare or under {', '.join(repr(key) for key in WRAPPERS)}"
        )
    try:
        value = value.detach()
        if value.is_floating_point() and value.element_size() < 2:
            raise _too_short(path, name, str(value.dtype).removeprefix("torch."))
        half = value.is_floating_point() and value.element_size() < 4
        return (value.float() if half else value).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: {name} is no dense tensor: {error}") from error


def _too_short(path: Path, name: str, kind: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {name} is {kind}, and floating-point numbers of 8 bits and less are not"
        " supported: their scales are elsewhere; take the file of float32, float16 or bfloat16 that"
        " it was made from"
    )


def _wide(value: np.ndarray) -> np.ndarray:
    """Half precision as float32; bfloat16 is of kind V, NumPy having no such type of its own."""
    if value.dtype == np.dtype("V2"):  # how an .npz keeps it
        value = value.view(np.dtype(jnp.bfloat16))
    half = value.dtype.kind in "fV" and value.dtype.itemsize < 4
    return value.astype(np.float32) if half else value
