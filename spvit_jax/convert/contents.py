"""What a file of weights is by its first bytes, and whether it is whole; nothing is executed."""

import json
import tarfile
import zipfile
from pathlib import Path

import safetensors

from spvit_jax.remote import raise_transient

TORCH = (".pth", ".pt", ".bin", ".tar", ".ckpt")
READ = (".safetensors", ".npz", *TORCH)  # ends of the names of files of weights
EXPECTED = "expected weights in .safetensors, as NumPy's .npz, or as a torch file in " + ", ".join(
    TORCH
)
PICKLE = b"\x80"
KINDS = {  # by how they begin
    b"PK\x03\x04": "a zip archive, as torch and NumPy write",
    PICKLE: "a bare pickle, as torch wrote before 1.6",
    b"<": "a web page or XML, as from a failed download",
    b"version https://git-lfs": "a git-lfs pointer; fetch the file itself",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
}


def describe(path: Path) -> str:
    """What a file's first bytes say it is, for error messages."""
    start = _start(path)
    for magic, name in KINDS.items():
        if start.lstrip().startswith(magic):
            return name
    if start[8:9] == b"{":
        return "a safetensors file"
    return f"a file that starts with {start[:12]!r}"


def flaw(path: Path, name: str) -> str:
    """What speaks against a file's being whole and what its name says; "": nothing.

    Args:
      path: of the file, whatever it is called.
      name: what it is to be called; names of other ends than ``READ`` and .json say nothing.

    Raises:
      OSError: a fault of the disk that may pass.
    """
    end = Path(name).suffix
    if not path.stat().st_size:
        return "it is empty"
    if end == ".safetensors":
        try:
            with path.open("rb"), safetensors.safe_open(path, "numpy"):
                return ""
        except (safetensors.SafetensorError, OSError) as error:
            raise_transient(error)
            return f"it looks like {describe(path)}, and is no whole .safetensors: {error}"
    if end == ".json":
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            return f"it looks like {describe(path)}, and is no whole .json: {error}"
    if end in (".npz", *TORCH) and not zipfile.is_zipfile(path) and not _is_old(path, end):
        return f"it looks like {describe(path)}, and is no whole {end}"
    return ""


def _is_old(path: Path, end: str) -> bool:
    """Whether a file is as torch wrote them before 1.6; nothing tells whether it is whole."""
    return end in TORCH and (_start(path).startswith(PICKLE) or tarfile.is_tarfile(path))


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)
