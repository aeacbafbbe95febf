"""A model's features of images, as a file that NumPy reads: what a backbone is asked for."""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from spvit_jax.convert.files import write_whole

Batch = tuple[list[str], np.ndarray, list[str]]  # files that were read, their pixels, errors


def write_features(
    path: Path, model: Any, normalise: Callable[[jax.Array], jax.Array], batches: Iterable[Batch]
) -> Iterator[str]:
    """Writes ``files`` ``[n]``, ``features`` ``[n, D]`` and, where these are read, ``patches``.

    Features are what the head sees, or would see; patches ``[n, patches, D]``, row by row, are
    behind the last norm, unmerged. Gives what was wrong with images that could not be read, as it
    goes; the file is written at the end, whole or not at all.

    Args:
      path: conventionally ``….npz``.
      model: of any form.
      normalise: makes uint8 images what it expects.
      batches: a batch has as many rows always; of its pixels those of the files count.
    """
    graph, state = nnx.split(model)
    read = not model.spec.blocks[-1].class_only

    @jax.jit
    def run(state: nnx.State, images: jax.Array) -> tuple[jax.Array, ...]:
        network = nnx.merge(graph, state, copy=True)
        tokens = network.stream(normalise(images))[-1]
        seen = network.features(tokens)[:, 0]
        return (seen, network.patch_features(tokens)) if read else (seen,)

    files: list[str] = []
    rows: list[list[np.ndarray]] = []
    for paths, images, errors in batches:
        yield from errors
        if paths:
            files += paths
            rows.append([np.asarray(x)[: len(paths)] for x in run(state, jnp.asarray(images))])
    if not files:
        return
    names = ("features", "patches")
    columns = (np.concatenate(column) for column in zip(*rows, strict=True))
    arrays: dict[str, Any] = dict(zip(names, columns, strict=False))
    data = io.BytesIO()
    np.savez(data, files=np.array(files), **arrays)
    write_whole(path, data.getvalue())
