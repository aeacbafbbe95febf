"""``Checksums``: what the files of a run's folder are, so that damage is not taken for them.

``checksums.json`` has the SHA-256 of every file that is written whole. It learns of a file's new
content before the file has it, and knows the one before as well: so a run that is killed between
the two leaves nothing that looks damaged.
"""

import dataclasses
import hashlib
import tempfile
from pathlib import Path

from etils import epath

from spvit_jax.remote import is_remote, publish
from spvit_jax.state import StateError, dumps, loads, typed

FILE = "checksums.json"
PARTIAL = ".writing-"  # what a folder of files begins with that are not whole yet


@dataclasses.dataclass(frozen=True)
class _Noted:
    """The content of ``checksums.json``."""

    files: dict[str, tuple[str, ...]]  # SHA-256 by name: of the content before, if any, and now
    checksum: str  # of ``files``


class Checksums:
    """Those of one folder, local or remote. One process writes."""

    def __init__(self, folder: epath.Path):
        self._folder = folder

    @property
    def files(self) -> set[str]:
        """Names of the files that are noted; see ``read``."""
        return set(self.read())

    def read(self) -> dict[str, tuple[str, ...]]:
        """What a file may be, by its name; {} where nothing is noted.

        Raises:
          StateError: ``checksums.json`` is damaged.
        """
        file = self._folder / FILE
        if not file.exists():
            return {}
        try:
            noted: _Noted = typed(_Noted, loads(content(file)))
            if noted.checksum != _sum(noted.files):
                raise ValueError("its own checksum is another")
        except ValueError as error:
            raise StateError(
                f"{file} is damaged ({error}); remove it, and the files of the run are taken as"
                " they are"
            ) from error
        return noted.files

    def note(self, name: str, digest: str | None) -> None:
        """Writes down that the file ``name`` is about to be of this digest; None: of none."""
        files = self.read()
        before = [known for known in files.get(name, ()) if known != digest][-1:]
        if digest is None:
            files.pop(name, None)
        else:
            files[name] = (*before, digest)
        own = None if is_remote(self._folder) else self._folder
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=own) as folder:
            local = Path(folder, FILE)
            local.write_text(dumps(_Noted(files, _sum(files))))
            publish(local, self._folder / FILE)

    def problem(self, name: str) -> str:
        """Says what is wrong with a file that is there; "" where nothing is, or is known."""
        known = self.read().get(name)
        if known is None or digest(self._folder / name) in known:
            return ""
        return "it is not what the run has written"


def content(file: epath.Path) -> bytes:
    """The bytes of a file.

    Raises:
      ValueError: it is a folder.
    """
    if file.is_dir():
        raise ValueError("it is a folder")
    return file.read_bytes()


def digest(file: epath.Path | Path) -> str:
    """The SHA-256 of a file; of a folder, which has none, ""."""
    if file.is_dir():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()  # type: ignore[arg-type]


def digest_of(text: str) -> str:
    """The SHA-256 of a file that has this text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _sum(files: dict[str, tuple[str, ...]]) -> str:
    return digest_of(dumps(files))
