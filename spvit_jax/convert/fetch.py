"""Addresses of checkpoints, and the cache folder their downloads are kept in."""

import hashlib
import http.client
import logging
import os
import re
import tempfile
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

import fsspec

from spvit_jax.convert.errors import CheckpointError
from spvit_jax.remote import reading

HUGGING_FACE = "https://huggingface.co"
HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # torch hub's: name-<first digits of sha256>.pth
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte

log = logging.getLogger(__name__)


def fetch(address: str | os.PathLike[str]) -> Path:
    """The local file of a path, or of an ``https://``, ``hf-hub:ORG/NAME`` or ``gs://`` address.

    Downloads are kept in ``$SPVIT_CACHE``, by default ``~/.cache/spvit_jax``.

    Raises:
      CheckpointError: no such file, no such address, or a download that failed.
    """
    address = os.fspath(address)
    if address.startswith("hf-hub:"):
        return download(_hub_url(address))
    if address.startswith("https://"):
        return download(address)
    if address.startswith("gs://"):
        return _from_bucket(address)
    if re.match(r"[a-z][a-z0-9+.-]+:", address):
        raise CheckpointError(
            f"cannot read {address}: weights come from a path, https://…, hf-hub:ORG/NAME or gs://…"
        )
    path = Path(address).expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"no file at {path}; give the path of a .safetensors or .pth file, an https:// or gs://"
            " address, or hf-hub:ORG/NAME"
        )
    return path


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


def download(url: str, version: str = "") -> Path:
    """The file of ``url`` in the cache, downloaded whole or not at all, once for each ``version``.

    A hash in its name (torch hub's convention) has to match; otherwise nothing is kept.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name
    if not name:
        raise CheckpointError(f"{url} names no file; give the address of the weights themselves")
    key = hashlib.sha256((url + version).encode()).hexdigest()
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


def _hub_url(address: str) -> str:
    repository = address.removeprefix("hf-hub:")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise CheckpointError(f"expected hf-hub:ORG/NAME, got {address}")
    return f"{HUGGING_FACE}/{repository}/resolve/main/model.safetensors"
