"""The image sets that ship with the project, and the script that makes them.

``python -m spvit_jax.data.package IDX_DIR OUT`` writes the two files from the four original
Fashion-MNIST idx files and shows the SHA-256 of each, to be entered in ``PACKAGED``.
"""

import argparse
import dataclasses
import hashlib
import io
from pathlib import Path

import numpy as np

from spvit_jax.data import idx
from spvit_jax.data.errors import DataError
from spvit_jax.remote import raise_transient

FOLDER = Path(__file__).parent / "packaged"


@dataclasses.dataclass(frozen=True)
class Packaged:
    """A packaged set; ``mean`` and ``std`` are RGB, of the pixels of its train file in 0..1."""

    class_names: tuple[str, ...]
    per_class: dict[str, int]  # split → images of each class
    sha256: dict[str, str]  # split → hash of its file
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


PACKAGED = {
    "fashion_mnist": Packaged(
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        per_class={"train": 1000, "test": 200},
        sha256={
            "train": "9058808c5e6030336c3aef7c1f7fb3b950b536bd31100cca247c8d9e8817810d",
            "test": "ff166a6459bf42bd5a03724b050c07bc1aa8c00bdb74637f9fb55cc125e3029a",
        },
        mean=(0.2867, 0.2867, 0.2867),
        std=(0.354, 0.354, 0.354),
    ),
}


def select(labels: np.ndarray, per_class: int, classes: int) -> np.ndarray:
    """Which images are packaged: the first ``per_class`` of each class, classes taking turns.

    The k-th image of class 0, then of class 1, and so on, before the (k+1)-th of any: every
    sub-split cut at a multiple of ``classes`` is class-balanced too.

    Args:
      labels: integers [n], in the original file's order.

    Returns:
      Indices into ``labels``, [per_class * classes].

    Raises:
      DataError: a class has too few images.
    """
    members = [np.flatnonzero(labels == label)[:per_class] for label in range(classes)]
    for label, indices in enumerate(members):
        if len(indices) < per_class:
            raise DataError(f"class {label} has {len(indices)} images, {per_class} are needed")
    return np.stack(members, axis=1).ravel()


def path_of(name: str, split: str, folder: Path = FOLDER) -> Path:
    """Where the file of one split lies."""
    return folder / f"{name}_{split}.npz"


def write(name: str, idx_folder: Path, out: Path) -> dict[str, str]:
    """Writes the files of ``PACKAGED[name]`` from original idx files; returns split → SHA-256."""
    out.mkdir(parents=True, exist_ok=True)
    kind = PACKAGED[name]
    hashes = {}
    for split, per_class in kind.per_class.items():
        images, labels = idx.read_split(idx_folder, split)
        keep = select(labels, per_class, len(kind.class_names))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images[keep], labels=labels[keep])
        path_of(name, split, out).write_bytes(buffer.getvalue())
        hashes[split] = hashlib.sha256(buffer.getvalue()).hexdigest()
    return hashes


def read(name: str, split: str, folder: Path = FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, h, w] and labels uint8 [n] of a packaged split, its hash verified.

    Raises:
      DataError: the file is missing or is not the one that was packaged.
    """
    path = path_of(name, split, folder)
    expected = PACKAGED[name].sha256[split]
    restore = f"reinstall spvit_jax, or in a checkout run: git checkout -- {path}"
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise_transient(error)
        raise DataError(f"cannot read the packaged file {path}: {error}; {restore}") from error
    digest = hashlib.sha256(raw).hexdigest()
    if digest != expected:
        raise DataError(
            f"the packaged file {path} is damaged: expected SHA-256 {expected},"
            f" found {digest} ({len(raw)} bytes); {restore}"
        )
    with np.load(io.BytesIO(raw), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]


def main() -> None:
    """Command line: packages Fashion-MNIST."""
    parser = argparse.ArgumentParser(description="Package Fashion-MNIST from its idx files.")
    parser.add_argument("idx_dir", type=Path, help="folder of the four original idx files")
    parser.add_argument("out", type=Path, help="folder to write the two .npz files to")
    arguments = parser.parse_args()
    for split, digest in write("fashion_mnist", arguments.idx_dir, arguments.out).items():
        print(f"{digest}  {path_of('fashion_mnist', split, arguments.out)}")


if __name__ == "__main__":
    main()
