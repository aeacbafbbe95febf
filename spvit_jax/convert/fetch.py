"""Addresses of checkpoints, and the cache folder their downloads are kept in."""

import hashlib
import http.client
import json
import logging
import os
import re
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

import fsspec

from spvit_jax import models
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.remote import reading

HUGGING_FACE = "https://huggingface.co"
PACKAGED = Path(models.__file__).parent / "packaged"
HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # torch hub's: name-<first digits of sha256>.pth
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
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

log = logging.getLogger(__name__)


def fetch(address: str | os.PathLike[str]) -> Path:
    """The local file of a path, or of an ``https://``, ``hf-hub:ORG/NAME`` or ``gs://`` address.

    ``packaged:NAME`` is a model that ships with this package.
    Of a folder, the file of weights in it, see ``WEIGHTS``, or the index of several; of
    ``hf-hub:`` likewise, with all that it names and the files of ``BESIDE`` in the same folder.
    Downloads are kept in ``$SPVIT_CACHE``, by default ``~/.cache/spvit_jax``.

    Raises:
      CheckpointError: no such file, no such address, or a download that failed.
    """
    address = os.fspath(address)
    if address.startswith("packaged:"):
        return _in_package(address.removeprefix("packaged:"))
    if address.startswith("hf-hub:"):
        return _from_hub(address)
    if address.startswith("https://"):
        return download(address)
    if address.startswith("gs://"):
        return _from_bucket(address)
    if re.match(r"[a-z][a-z0-9+.-]+:", address):
        raise CheckpointError(
            f"cannot read {address}: weights come from a path, https://…, hf-hub:ORG/NAME or gs://…"
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
    except (OSError, ValueError) as error:
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


def cache_folder() -> Path:
    """Where downloads are kept."""
    folder = os.environ.get("SPVIT_CACHE") or Path.home() / ".cache" / "spvit_jax"
    return Path(folder).expanduser()


def _from_bucket(address: str) -> Path:
    """The file in the cache, as it is in the bucket now."""
    try:
        with reading(address, CheckpointError):
            store, path = fsspec.core.url_to_fs(address)
            return download(address, version=str(store.checksum(path)))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no file at {address}; gcloud storage ls says what is there"
        ) from error


def download(url: str, version: str = "", of: str = "") -> Path:
    """The file of ``url`` in the cache, downloaded whole or not at all, once for each ``version``.

    A hash in its name (torch hub's convention) has to match; otherwise nothing is kept. Files of
    the same ``of``, by default each file's ``url``, are in the same folder.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name:
        raise CheckpointError(f"{url} names no file; give the address of the weights themselves")
    key = hashlib.sha256(((of or url) + version).encode()).hexdigest()
    target = cache_folder() / key[:16] / name
    if target.is_file():
        log.info("%s is already at %s", url, target)
        return target
    log.info("downloading %s to %s", url, target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download_to(target, url)
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(
            f"could not download {url} to {target}: {error}; try again, or fetch it yourself and"
            " give its path instead"
        ) from error
    return target


def _download_to(target: Path, url: str) -> None:
    with tempfile.NamedTemporaryFile(dir=target.parent, suffix=".part", delete=False) as part:
        try:
            digest = _receive(url, part)
            _verify(target.name, digest, url)
            part.close()
            os.replace(part.name, target)
        finally:
            Path(part.name).unlink(missing_ok=True)


def _receive(url: str, part: IO[bytes]) -> str:
    """Writes what ``url`` sends to ``part``; returns its sha256."""
    digest = hashlib.sha256()
    response, size = _open(url)
    with response:
        received = told = 0
        while chunk := response.read(CHUNK):
            part.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            if size and received * 10 // size > told:
                told = received * 10 // size
                log.info("%3d %% of %.1f MB", 10 * told, size / 1e6)
    if received < size:
        raise OSError(f"the connection closed after {received:,} of {size:,} bytes")
    return digest.hexdigest()


def _open(url: str) -> tuple[IO[bytes], int]:
    """What is at ``url``, to be read, and how many bytes that is; 0: nobody says."""
    if url.startswith("gs://"):
        store, path = fsspec.core.url_to_fs(url)
        file = store.open(path, "rb")
        return file, file.size
    response = urllib.request.urlopen(url, timeout=TIMEOUT)
    return response, int(response.headers.get("Content-Length") or 0)


def _verify(name: str, digest: str, url: str) -> None:
    promised = HASH.search(name)
    if promised and not digest.startswith(promised[1]):
        raise CheckpointError(
            f"{url} should have a sha256 that starts with {promised[1]}, as its name says; what"
            f" came has {digest[: len(promised[1])]}; nothing was kept, try again or another source"
        )


def _from_hub(address: str) -> Path:
    """The weights of a repository, in one folder with what describes them."""
    repository = address.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise CheckpointError(f"expected hf-hub:ORG/NAME, got {address}")
    root = f"{HUGGING_FACE}/{repository}/resolve/main/"
    of = root + WEIGHTS[0]
    path = next((p for name in WEIGHTS if (p := _if_there(root + name, of))), None)
    if path is None:
        for name in WEIGHTS:  # they may be there tomorrow
            _absent(root + name, of).unlink()
        raise CheckpointError(
            f"{HUGGING_FACE}/{repository} has no {', '.join(WEIGHTS)}; download its weights"
            " yourself and give their path"
        )
    if path.name.endswith(INDEX):
        for name in shards_of(path):
            download(root + name, of=of)
    for name in BESIDE:
        _if_there(root + name, of)
    return path


def _if_there(url: str, of: str) -> Path | None:
    """``download``, once; None where there is no such file, which is remembered too."""
    absent = _absent(url, of)
    if absent.exists():
        return None
    try:
        return download(url, of=of)
    except CheckpointError as error:
        reason = error.__cause__
        if not isinstance(reason, urllib.error.HTTPError) or reason.code != 404:
            raise
    absent.touch()
    return None


def _absent(url: str, of: str) -> Path:
    """What is in the cache instead of a file that is not there."""
    folder = cache_folder() / hashlib.sha256(of.encode()).hexdigest()[:16]
    return folder / f"{url.rpartition('/')[2]}.absent"
