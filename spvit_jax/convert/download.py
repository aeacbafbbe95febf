"""Downloads: over TLS all the way, resumed where they broke off, checked before they are kept."""

import base64
import contextlib
import hashlib
import http
import http.client
import logging
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from spvit_jax.convert.contents import READ, flaw
from spvit_jax.convert.errors import CheckpointError, Unreachable
from spvit_jax.convert.partial import Partial, sweep
from spvit_jax.remote import public, raise_transient

HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # torch hub's: name-<first digits of sha256>.pth
CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
PAUSES = (1.0, 3.0, 9.0)  # seconds before another try, while nothing comes
BUSY = (408, 425, 429)  # answers below 500 that may be others at another time
ADVICE = "try again, or fetch it yourself and give its path instead"

log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """What a server sends of a file."""

    body: Any  # with ``read`` and ``close``
    start: int  # the byte of the file that it begins with
    size: int  # bytes of the whole file; -1: the server does not say
    version: str  # of the file; "": the server does not say
    framed: bool = False  # whether its end is told from a broken connection without the size


Ask = Callable[[str, int], Answer]  # an address, and the byte to begin with


def cache_folder() -> Path:
    """Where downloads are kept."""
    folder = os.environ.get("SPVIT_CACHE") or Path.home() / ".cache" / "spvit_jax"
    return Path(folder).expanduser()


def download(url: str, version: str = "", md5: str = "", ask: Ask | None = None) -> Path:
    """The file of ``url`` in the cache, downloaded whole or not at all, once for each ``version``.

    It is kept if its length is the one that the server says, a hash in its name (torch hub's
    convention) or ``md5`` matches, and its content is of the kind that its name ends in.

    Args:
      url: over HTTPS, unless ``ask`` knows better.
      version: of the file, where it is known beforehand.
      md5: of its content, in base 64; "": nobody says.
      ask: the server.

    Raises:
      CheckpointError: it cannot be had or kept.
      Unreachable: it may be had at another time, and what has come is not lost.
    """
    name = _name(url)
    folder = cache_folder() / hashlib.sha256((url + version).encode()).hexdigest()[:16]
    target = folder / name
    if target.is_file() and not flaw(target, name):
        log.info("%s is already at %s", public(url), target)
        return target
    log.info("downloading %s to %s", public(url), target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(cache_folder())
        with Partial(folder, keep=(Unreachable, KeyboardInterrupt)) as part:
            _receive(part, url, ask or over_https)
            part.file.flush()
            _verify(part.path, name, url, md5)
            part.become(target)
    except CheckpointError:
        raise
    except OSError as error:
        raise_transient(error)
        raise CheckpointError(
            f"could not download {public(url)}: {folder} cannot be written:"
            f" {error.strerror or error}; free some space, or say with"
            " SPVIT_CACHE=FOLDER where downloads are to be kept"
        ) from error
    return target


def over_https(url: str, start: int) -> Answer:
    """Asks a server for the bytes of a file from ``start`` on; see ``download``."""
    headers = {"User-Agent": "spvit_jax"} | ({"Range": f"bytes={start}-"} if start else {})
    with _explained(url):
        request = urllib.request.Request(_quoted(url), headers=headers)
        try:
            response = urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if not start or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            return over_https(url, 0)
    fields = response.headers
    first, size = 0, -1 if response.length is None else response.length
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        stretch = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", fields.get("Content-Range", ""))
        first, size = map(int, stretch.groups()) if stretch else (-1, -1)
    etag = fields.get("ETag", "")
    version = "" if etag.startswith("W/") else etag
    version = version or fields.get("Last-Modified", "")
    return Answer(response, first, size, version, framed=bool(response.chunked))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, from https to https alone."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https://") and not newurl.startswith("https://"):
            raise CheckpointError(
                f"{public(req.full_url)} leads on to {public(newurl)}, where anybody on the way"
                " could put other weights: expected https://; take another source"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _receive(part: Partial, url: str, ask: Ask) -> None:
    """Fills the part; another try follows each that fails, as long as some bring something."""
    pauses = iter(PAUSES)
    while True:
        before = part.size
        try:
            return _receive_once(part, url, ask)
        except Unreachable as error:
            if part.size > before:
                pauses = iter(PAUSES)
            pause = next(pauses, None)
            if pause is None:
                raise
            log.info("%s; once more in %g s", str(error).partition(";")[0], pause)
            time.sleep(pause)


def _receive_once(part: Partial, url: str, ask: Ask) -> None:
    start = part.size if part.version else 0
    answer = ask(url, start)
    if start and (answer.start != start or _key(answer) != part.version):
        start = 0  # of a file that is another now, or a server that always begins at the beginning
        if answer.start:
            answer.body.close()
            answer = ask(url, 0)
    if answer.start != start:
        answer.body.close()
        raise CheckpointError(
            f"could not download {public(url)}: the server sends another part of it than it was"
            f" asked for; {ADVICE}"
        )
    if not start:
        part.begin(_key(answer))
    with contextlib.closing(answer.body):
        _copy(answer, part, url)


def _copy(answer: Answer, part: Partial, url: str) -> None:
    received = part.size
    if not (answer.size >= 0 or answer.framed or HASH.search(_name(url))):
        raise CheckpointError(
            f"could not download {public(url)}: the server does not say how long it is, so that"
            f" nobody could tell whether all of it came; {ADVICE}"
        )
    tenths = received * 10 // answer.size if answer.size > 0 else 0
    while True:
        with _explained(url):
            chunk = answer.body.read(CHUNK)
        if not chunk:
            break
        part.file.write(chunk)
        received += len(chunk)
        if answer.size > 0 and received * 10 // answer.size > tenths:
            tenths = received * 10 // answer.size
            log.info("%3d %% of %.1f MB", 10 * tenths, answer.size / 1e6)
    if received < answer.size:
        kept = "which are kept" if part.version and received else "and none are kept"
        raise Unreachable(
            f"could not download {public(url)}: the connection closed after {received:,} of"
            f" {answer.size:,} bytes, {kept}; {ADVICE}"
        )


def _verify(part: Path, name: str, url: str, md5: str) -> None:
    """Raises CheckpointError unless the content is what was promised."""
    promised = HASH.search(name)
    digest = _digest(part, "sha256").hex() if promised else ""
    if promised and not digest.startswith(promised[1]):
        raise CheckpointError(
            f"{public(url)} should have a sha256 that starts with {promised[1]}, as its name"
            f" says; what came has {digest[: len(promised[1])]}; nothing was kept, try again or"
            " another source"
        )
    if md5 and base64.b64encode(_digest(part, "md5")).decode() != md5:
        raise CheckpointError(
            f"{public(url)} came damaged: it should have the MD5 {md5}; nothing was kept, try again"
        )
    reason = flaw(part, name)
    if reason:
        raise CheckpointError(
            f"what came of {public(url)} are no weights: {reason}; nothing was kept, check the"
            " address in a browser"
        )


def _digest(path: Path, kind: str) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).digest()


def _key(answer: Answer) -> str:
    """Says which version of a file is being sent; "": nobody knows."""
    text = f"{answer.version} {answer.size}"
    return hashlib.sha256(text.encode()).hexdigest()[:16] if answer.version else ""


def _name(url: str) -> str:
    """What a download is called in the cache.

    Raises:
      CheckpointError: it is no address of a file of weights.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        path, host, _ = parts.path, parts.hostname, parts.port
    except ValueError:  # whose words show all of the address
        path, host = "", ""
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise CheckpointError(
            f"{public(url)} has a user's name or password in it, and addresses are written down"
            " and shown; fetch it yourself and give its path instead"
        )
    name = re.sub(r"[^\w.-]", "_", urllib.parse.unquote(path).rpartition("/")[2])
    if not host or not name.endswith((*READ, ".json")):
        raise CheckpointError(
            f"{public(url)} is no address of weights; expected https://HOST/…/NAME with a NAME that"
            f" ends in {', '.join(READ)}"
        )
    return name


def _quoted(url: str) -> str:
    """An address as it is sent: spaces and letters beyond ASCII in hexadecimal."""
    parts = urllib.parse.urlsplit(url)
    safe = "/%:@!$&'()*+,;=~?"
    path, query = (urllib.parse.quote(part, safe) for part in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, query, ""))


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Says what a connection's error means, without the server's words."""
    try:
        yield
    except CheckpointError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        passes = error.code >= 500 or error.code in BUSY
        raise _failed(url, f"the server answers {_phrase(error.code)}", passes) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        passes = not isinstance(reason, ssl.SSLCertVerificationError | ValueError | str)
        if isinstance(reason, socket.gaierror):
            passes = reason.errno != socket.EAI_NONAME
        words = " ".join(str(reason).split()) or type(reason).__name__
        raise _failed(url, words[:200], passes) from error


def _failed(url: str, reason: str, passes: bool) -> CheckpointError:
    kind = Unreachable if passes else CheckpointError
    return kind(f"could not download {public(url)}: {reason}; {ADVICE}")


def _phrase(code: int) -> str:
    known = {status.value: status.phrase for status in http.HTTPStatus}
    return f"{code} {known.get(code, '')}".strip()
