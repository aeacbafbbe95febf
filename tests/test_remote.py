import errno
import os
import socket

import pytest

from spvit_jax.remote import (
    absolute,
    followed,
    is_remote,
    is_transient,
    public,
    raise_transient,
    reading,
)


class Unreadable(Exception):
    pass


@pytest.mark.parametrize(
    ("raised", "path", "expected"),
    [
        (PermissionError("no"), "gs://bucket/x", Unreadable),
        (ImportError("no gcsfs"), "gs://bucket/x", Unreadable),
        (FileNotFoundError("x"), "gs://bucket/x", FileNotFoundError),
        (ConnectionResetError("gone"), "gs://bucket/x", ConnectionResetError),
        (PermissionError("no"), "/tmp/x", PermissionError),
        (Unreadable("mine"), "gs://bucket/x", Unreadable),
    ],
)
def test_only_errors_of_a_store_are_explained(raised, path, expected):
    with pytest.raises(expected) as found, reading(path, Unreadable):
        raise raised
    explained = expected is Unreadable and not isinstance(raised, Unreadable)
    assert explained or found.value is raised
    assert ("gcloud auth application-default login" in str(found.value)) == explained
    assert not explained or f"cannot read {path} ({type(raised).__name__}: " in str(found.value)


def wrapped(reason):
    """An error that was raised for another one."""
    try:
        raise ValueError("it cannot be read") from reason
    except ValueError as error:
        return error


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(errno.EIO, "not now"), True),
        (wrapped(OSError(errno.ESTALE, "not now")), True),
        (wrapped(RuntimeError(f"open() failed: {os.strerror(errno.EIO)}")), True),
        (wrapped(socket.gaierror(socket.EAI_NONAME, "Name or service not known")), True),
        (wrapped(OSError(errno.EACCES, "never")), False),
        (ValueError("damaged"), False),
    ],
)
def test_what_may_pass_is_raised_however_it_is_wrapped(error, passes):
    try:
        raise_transient(error)
    except OSError as raised:
        assert passes and is_transient(raised)
    else:
        assert not passes


def test_what_a_link_leads_to_is_the_file_and_a_pipe_is_none(tmp_path):
    real, link, pipe = (tmp_path / name for name in ("real", "link", "pipe"))
    link.symlink_to(real)
    os.mkfifo(pipe)
    assert followed(link) == followed(real) == real.resolve()
    assert followed(tmp_path) == tmp_path.resolve()
    with pytest.raises(FileExistsError, match="pipe is a pipe or a device, expected a file"):
        followed(pipe)
    for one, other in (("a", "b"), ("b", "a"), ("itself", "itself"), ("through", "a/file")):
        (tmp_path / one).symlink_to(tmp_path / other)
    for loop in ("a", "itself", "through", "a/file"):
        with pytest.raises(FileExistsError, match=f"{loop} is a link that leads back to itself"):
            followed(tmp_path / loop)


def test_local_paths_are_made_absolute_and_remote_ones_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(absolute("run")) == str(tmp_path / "run") and not is_remote("run")
    assert str(absolute("gs://bucket/run")) == "gs://bucket/run" and is_remote("gs://bucket/run")


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host:8443/x@v1-0.pth", "https://host:8443/x@v1-0.pth"),
        ("https://user:secret@host/x.pth?key=secret", "https://…@host/x.pth?…"),
        ("https://user:sec/ret@host/x.pth#secret", "https://…@host/x.pth?…"),
        ("gs://bucket/run", "gs://bucket/run"),
        ("hf-hub:timm/vit.a@b", "hf-hub:timm/vit.a@b"),
        ("/home/a@b/what?.pth", "/home/a@b/what?.pth"),
        ("C:\\a@b.pth", "C:\\a@b.pth"),
        ("a\nb\x1b.pth", "a%0Ab%1B.pth"),
        ("caf\udce9.pth", "caf%DCE9.pth"),
    ],
)
def test_addresses_are_shown_without_secrets_on_a_line(address, shown):
    assert public(address) == shown
