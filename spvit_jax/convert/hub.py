"""Repositories of the Hugging Face hub, in the cache that its own tools keep.

``huggingface_hub`` knows the hub, its cache, who the user is, and the environment's HF_HOME,
HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. It compares lengths but not hashes, follows redirects to
http:// and leaves what killed processes have begun: these three are seen to here.
"""

import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from spvit_jax.convert.contents import flaw
from spvit_jax.convert.errors import CheckpointError, Unreachable
from spvit_jax.remote import is_transient, public

TIMEOUT = 10.0  # seconds until the hub says what a repository has
DAY = 24 * 3600.0
BUSY = (408, 425, 429)  # answers below 500 that may be others at another time
LOGIN = "say who you are with HF_TOKEN=…, or hf auth login"

log = logging.getLogger(__name__)


class Files:
    """The files of a repository as it is now; as the cache has it where that cannot be known."""

    def __init__(self, repository: str):
        import huggingface_hub

        self._repository = repository
        self._commit = ""
        self._hashes: dict[str, str] = {}  # by name
        self._failure: CheckpointError | None = None
        try:
            api = huggingface_hub.HfApi()
            info = api.model_info(repository, files_metadata=True, timeout=TIMEOUT)
            self._commit = str(info.sha)
            for one in info.siblings or ():
                sum_of_content = one.lfs.sha256 if one.lfs else one.blob_id
                self._hashes[one.rfilename] = str(sum_of_content or "")
        except Exception as error:  # of the library, and of the ones that it connects by
            self._failure = _explained(repository, error)

    def first(self, names: Sequence[str]) -> Path | None:
        """The first of the named files that is there, in the cache from now on; None: none is.

        Raises:
          CheckpointError: it cannot be had, or is not what the hub says.
          Unreachable: likewise, for now.
        """
        for name in names:
            path = self._cached(name)
            if path is None and name in self._hashes:
                path = self._downloaded(name)
            if path is not None:
                _sweep(path.parents[2] / "blobs")
                return path
        return None

    def lacks(self, names: Sequence[str]) -> CheckpointError:
        """The error where none of the named files is there."""
        return self._failure or CheckpointError(
            f"hf-hub:{self._repository} has no {', '.join(names)}; download its weights yourself"
            " and give their path"
        )

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self._repository, name)
        if not isinstance(path, str) or self._commit not in ("", Path(path).parent.name):
            return None
        if self._failure and name.endswith((".safetensors", ".bin")):
            log.warning("%s; took what is in the cache", str(self._failure).partition(";")[0])
        return Path(path)

    def _downloaded(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        log.info("downloading %s of hf-hub:%s", name, self._repository)
        try:
            path = Path(hf_hub_download(self._repository, name))
        except Exception as error:  # of the library, and of the ones that it connects by
            raise _explained(self._repository, error) from error
        if path.parent.name != self._commit:
            raise Unreachable(
                f"hf-hub:{self._repository} was changed while it was downloaded; try again"
            )
        damage = _damage(path, self._hashes[name]) or flaw(path, name)
        if damage:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise CheckpointError(
                f"hf-hub:{self._repository}: what came of {name} is damaged: {damage}; nothing was"
                " kept, try again"
            )
        return path


@contextlib.contextmanager
def opened(repository: str) -> Iterator[Files]:
    """The files of ``ORG/NAME``, which come over TLS all the way if the hub's address is https."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import logging as library

    session, verbosity = get_session(), library.get_verbosity()
    hooks = session.event_hooks
    if constants.ENDPOINT.startswith("https://"):
        session.event_hooks = {**hooks, "request": [*hooks["request"], _refuse_http]}
    library.set_verbosity_error()  # its warnings show addresses that nobody but the user may read
    try:
        yield Files(repository)
    finally:
        session.event_hooks = hooks
        library.set_verbosity(verbosity)


def _refuse_http(request: Any) -> None:
    if request.url.scheme != "https":
        raise CheckpointError(
            f"it leads on to {public(str(request.url))}, where anybody on the way could put other"
            " weights: expected https://"
        )


def _explained(repository: str, error: Exception) -> CheckpointError:
    """What an error of the library means."""
    from huggingface_hub import errors

    what, status = f"hf-hub:{repository}", getattr(error, "response", None)
    code = getattr(status, "status_code", 0)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return CheckpointError(
            f"HF_HUB_OFFLINE is set, and of {what} not all is in the cache; unset it"
        )
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(f"{what} is gated; accept its terms on its page, and {LOGIN}")
    if isinstance(error, errors.RepositoryNotFoundError) or code in (401, 404):
        return CheckpointError(f"the hub shows no {what}; check the name or, of a private, {LOGIN}")
    words = re.sub(r"https?://\S+", lambda url: public(url[0]), " ".join(str(error).split()))
    odd = isinstance(error.__cause__, errors.FileMetadataError) or isinstance(error, ValueError)
    known = odd or isinstance(error, CheckpointError) or "CERTIFICATE_VERIFY_FAILED" in words
    local = isinstance(error, OSError) and error.errno and not is_transient(error)
    passes = code >= 500 or code in BUSY if code else not (known or local)
    kind = Unreachable if passes else CheckpointError
    return kind(
        f"could not download {what}: {words[:300] or type(error).__name__}; try again, or fetch it"
        " yourself and give its path instead"
    )


def _damage(path: Path, expected: str) -> str:
    """Compares a file with the SHA-256 of its content, or the SHA-1 that git has of it."""
    digest = hashlib.sha256()
    if len(expected) == 40:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    elif len(expected) != 64:
        return ""
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    checksum = digest.hexdigest()
    return "" if checksum == expected else f"expected the sum {expected}, got {checksum}"


def _sweep(blobs: Path) -> None:
    """Removes what killed processes left; one at work writes more often than once per day."""
    for path in blobs.glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > DAY:
                path.unlink()
