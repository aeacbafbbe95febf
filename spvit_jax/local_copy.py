"""``LocalCopy``: a local folder for files that grow, of a folder that may be remote."""

import shutil
import tempfile
from pathlib import Path

from etils import epath

from spvit_jax.remote import is_remote, publish


class LocalCopy:
    """A local folder for files that grow: the run's own, or one beside a remote one.

    Object stores cannot append, so what is written there reaches a remote folder whole, at each
    ``push``.
    """

    def __init__(self, folder: epath.Path):
        self._folder, self._remote = folder, is_remote(folder)
        self.path = Path(tempfile.mkdtemp(prefix="spvit_")) if self._remote else Path(folder)
        self.path.mkdir(parents=True, exist_ok=True)

    def fetch(self, name: str) -> None:
        """Has the remote's file ``name``, if it has one, in the local folder as well."""
        if self._remote and (self._folder / name).exists():
            (self.path / name).write_bytes((self._folder / name).read_bytes())

    def push(self) -> None:
        """Brings the remote up to date."""
        for file in self.path.rglob("*") if self._remote else ():
            if file.is_file():
                publish(file, self._folder / file.relative_to(self.path))

    def close(self) -> None:
        """Removes the local files of a remote folder."""
        if self._remote:
            shutil.rmtree(self.path)
