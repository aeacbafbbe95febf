"""Addresses of checkpoints, and the local files that they lead to."""

import json
import os
import re
from pathlib import Path

import fsspec

from spvit_jax import models
from spvit_jax.convert import hub
from spvit_jax.convert.download import Answer, download
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.remote import public, raise_transient, reading

PACKAGED = Path(models.__file__).parent / "packaged"
INDEX = ".index.json"  # the end of the name of what says which arrays are in which file
WEIGHTS = (  # in a folder, the first that is there
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
    "open_clip_pytorch_model.bin",
)
BESIDE = (  # what the arrays do not say
    "config.json",
    "preprocessor_config.json",
    "open_clip_config.json",
)
TOKENIZER = r"tokenizer|vocab|merges|spiece|sentencepiece|special_tokens"


def fetch(address: str | os.PathLike[str]) -> Path:
    """The local file of a path, or of an ``https://``, ``hf-hub:ORG/NAME`` or ``gs://`` address.

    ``packaged:NAME`` is a model that ships with this package.
    Of a folder, the file of weights in it, see ``WEIGHTS``, or the index of several; of
    ``hf-hub:`` likewise, with all that it names and the files of ``BESIDE`` in the same folder.
    That one is in Hugging Face's own cache, ``$HF_HOME``; other downloads are kept in
    ``$SPVIT_CACHE``, by default ``~/.cache/spvit_jax``.

    Raises:
      CheckpointError: no such file, no such address, or a download that failed.
      Unreachable: a download that may succeed at another time.
    """
    address = os.fspath(address)
    if address.startswith("packaged:"):
        return _in_package(address.removeprefix("packaged:"))
    if address.startswith("hf-hub:"):
        return _from_hub(address)
    if re.match("https://", address, re.IGNORECASE):
        return download(address)
    if address.startswith("gs://"):
        return _from_bucket(address)
    if re.match(r"[a-z][a-z0-9+.-]+:", address, re.IGNORECASE):
        raise CheckpointError(
            f"cannot read {public(address)}: weights come from a path, https://…, hf-hub:ORG/NAME"
            " or gs://…"
        )
    path = Path(address).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if not path.is_file():
        raise CheckpointError(
            f"no file at {path}; give the path of a .safetensors or .pth file, an https:// or gs://"
            " address, or hf-hub:ORG/NAME"
        )
    return path


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index says the arrays are in, in order, each once.

    Raises:
      CheckpointError: it is no such index, or names files elsewhere.
    """
    try:
        content = json.loads(index.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise_transient(error)
        raise CheckpointError(f"{index} is not whole JSON: {error}; download it again") from error
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise CheckpointError(
            f'{index} says of no array which file it is in; expected "weight_map", with a file for'
            " each name"
        )
    for name in names.values():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*", name):
            raise CheckpointError(
                f"{index} puts arrays into {name!r}; expected names of files beside it"
            )
    return sorted(set(names.values()))


def _in_package(name: str) -> Path:
    """The weights that ship with this package under a name."""
    names = sorted(folder.name for folder in PACKAGED.iterdir())
    if name not in names:
        raise CheckpointError(f"no packaged model {name!r}; there are {', '.join(names)}")
    return PACKAGED / name / WEIGHTS[0]


def _in_folder(folder: Path) -> Path:
    """The weights in a folder."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.iterdir())
    what = f"it has {', '.join(there[:8])}" if there else "it is empty"
    if any(re.match(TOKENIZER, name) for name in there):
        what = f"this is a tokenizer's folder, which has {', '.join(there[:8])}"
    raise CheckpointError(
        f"no weights in {folder}: {what}; expected {', '.join(WEIGHTS)}, or give the path of a file"
    )


def _from_bucket(address: str) -> Path:
    """The file in the cache, as it is in the bucket now."""
    try:
        with reading(address, CheckpointError):
            store, path = fsspec.core.url_to_fs(address)
            version, md5 = str(store.checksum(path)), store.info(path).get("md5Hash", "")
            return download(address, version, md5, in_bucket)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no file at {address}; gcloud storage ls says what is there"
        ) from error


def in_bucket(address: str, start: int) -> Answer:
    """Opens what is in a bucket from the byte ``start`` on; see ``download``."""
    store, path = fsspec.core.url_to_fs(address)
    file = store.open(path, "rb")
    file.seek(start)
    return Answer(file, start, file.size, str(store.checksum(path)))


def _from_hub(address: str) -> Path:
    """The weights of a repository, in one folder with what describes them."""
    repository = address.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise CheckpointError(f"expected hf-hub:ORG/NAME, got {public(address)}")
    with hub.opened(repository) as files:
        path = files.first(WEIGHTS)
        if path is None:
            raise files.lacks(WEIGHTS)
        for name in shards_of(path) if path.name.endswith(INDEX) else ():
            if files.first((name,)) is None:
                raise files.lacks((name,))
        for name in BESIDE:
            files.first((name,))
    return path
