import base64
import errno
import gzip
import hashlib
import logging
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from spvit_jax.convert import CheckpointError, download, fetch
from spvit_jax.convert.errors import Unreachable
from spvit_jax.remote import is_transient

from .servers import certificate, serving

BODY = safetensors.numpy.save({"a": np.arange(500, dtype=np.float32)})
OTHER = safetensors.numpy.save({"a": np.ones(500, np.float32)})
DIGEST = hashlib.sha256(BODY).hexdigest()
NAME = "/a/model.safetensors"


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0))
    with serving() as server:
        server.files[NAME] = BODY
        yield server


@pytest.fixture
def secure(tmp_path, monkeypatch):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "PAUSES", ())
    context, file = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with serving(context) as server:
        server.files[NAME] = BODY
        yield server


def kept():
    return [path for path in download.cache_folder().rglob("*") if path.is_file()]


def parts():
    return list(download.cache_folder().rglob("*.part"))


@pytest.mark.parametrize("digits", [8, 16, 64])
def test_download_is_kept_and_its_hash_verified(server, digits, caplog):
    name = f"/a/model-{DIGEST[:digits]}.safetensors"
    server.files[name] = BODY
    with caplog.at_level(logging.INFO):
        path = download.download(server.url + name)
    assert path.read_bytes() == BODY
    assert kept() == [path]
    assert "100 %" in caplog.text
    assert download.download(server.url + name) == path
    assert len(server.asked) == 1


def test_wrong_hash_is_an_error_and_keeps_nothing(server):
    server.files["/model-deadbeef.safetensors"] = BODY
    with pytest.raises(CheckpointError, match=f"deadbeef.*{DIGEST[:8]}"):
        download.download(f"{server.url}/model-deadbeef.safetensors")
    assert not kept()


def test_another_sum_is_an_error_and_keeps_nothing(server):
    md5 = base64.b64encode(hashlib.md5(OTHER).digest()).decode()
    with pytest.raises(CheckpointError, match="should have the MD5 .*nothing was kept"):
        download.download(server.url + NAME, md5=md5)
    assert not kept()
    server.files[NAME] = OTHER
    assert download.download(server.url + NAME, md5=md5).read_bytes() == OTHER


def test_equal_names_of_different_addresses_do_not_collide(server):
    server.files["/b/model.safetensors"] = BODY
    one, other = (download.download(f"{server.url}/{x}/model.safetensors") for x in "ab")
    assert one != other


def test_unusable_cache_is_an_error(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="cannot be written: .*SPVIT_CACHE"):
        download.download(server.url + NAME)


def test_a_full_disk_is_named_and_what_came_makes_room_again(server, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device; free some space"):
        download.download(server.url + NAME)
    assert not kept()


def test_a_missing_file_is_an_error_at_once(server):
    with pytest.raises(
        CheckpointError, match="answers 404 Not Found; .*fetch it yourself"
    ) as error:
        download.download(f"{server.url}/none.pth")
    assert not isinstance(error.value, Unreachable)
    assert len(server.asked) == 1 and not kept()


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_server_is_asked_again_and_then_named(server, code):
    server.codes[NAME] = code
    with pytest.raises(Unreachable, match=f"answers {code} ") as error:
        download.download(server.url + NAME)
    assert len(server.asked) == 3 and not kept()
    assert is_transient(error.value)


def test_a_download_that_breaks_off_goes_on_where_it_was(server):
    server.cuts = [700, 300]
    path = download.download(server.url + NAME)
    assert path.read_bytes() == BODY and kept() == [path]
    assert server.asked == [f"GET {NAME}", f"GET {NAME} 700", f"GET {NAME} 1000"]


def broken_off(server, *cuts):
    server.cuts = [*cuts, 0, 0]
    with pytest.raises(Unreachable, match="closed after 700 of 2,0.. bytes, which are kept"):
        download.download(server.url + NAME)
    assert [part.stat().st_size for part in parts()] == [700]
    server.asked.clear()
    server.cuts.clear()


def test_the_next_start_goes_on_and_leaves_nothing_behind(server):
    broken_off(server, 400, 300)
    path = download.download(server.url + NAME)
    assert path.read_bytes() == BODY and kept() == [path]
    assert server.asked == [f"GET {NAME} 700"]


def test_a_file_that_changed_meanwhile_begins_anew(server):
    broken_off(server, 700)
    server.files[NAME] = OTHER
    assert download.download(server.url + NAME).read_bytes() == OTHER
    assert server.asked == [f"GET {NAME} 700", f"GET {NAME}"] and len(kept()) == 1


def test_a_server_without_ranges_begins_anew(server):
    broken_off(server, 700)
    server.ranges = False
    assert download.download(server.url + NAME).read_bytes() == BODY
    assert len(server.asked) == 1 and len(kept()) == 1


def test_what_is_of_no_known_version_is_not_gone_on_with(server):
    server.headers = {"ETag": 'W/"1"'}
    server.cuts = [700, 700, 700]
    with pytest.raises(Unreachable, match="closed after 700 of .* bytes, and none are kept; try"):
        download.download(server.url + NAME)
    assert not kept()


def test_a_whole_part_of_a_killed_process_is_no_obstacle(server):
    broken_off(server, 700)
    (part,) = parts()
    part.write_bytes(BODY)
    assert download.download(server.url + NAME).read_bytes() == BODY and len(kept()) == 1


KILLED = """
import os, signal, sys
from spvit_jax.convert import download
copy = download.Partial.begin
def begin(part, version):
    copy(part, version)
    part.file.write(b"x" * 700)
    part.file.flush()
    print("begun", flush=True)
    signal.pause()
download.Partial.begin = begin
download.download(sys.argv[1])
"""


def test_a_killed_process_is_followed_and_one_at_work_is_not_disturbed(server):
    command = [sys.executable, "-c", KILLED, server.url + NAME]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        path = download.download(server.url + NAME)
        assert path.read_bytes() == BODY and len(parts()) == 1
        path.unlink()
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    server.asked.clear()
    part = parts()[0]
    part.write_bytes(BODY[:700])
    assert download.download(server.url + NAME).read_bytes() == BODY
    assert server.asked == [f"GET {NAME} 700"] and kept() == [path]


def test_what_nobody_wants_for_a_week_is_removed(server):
    old, new = (download.cache_folder() / f"{day}" / "x-1.part" for day in ("old", "new"))
    for path in (old, new):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 8 * 86400,) * 2)
    download.download(server.url + NAME)
    assert not old.parent.exists() and new.exists()


PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@pytest.mark.parametrize("end", [".safetensors", ".pth", ".npz", ".bin"])
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (PAGE, "web page"),
        (gzip.compress(BODY), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git-lfs"),
        (b"", "empty"),
        (b'{"error": "no"}', "starts with"),
    ],
)
def test_what_is_no_weights_is_not_kept(server, end, body, said):
    server.files[f"/model{end}"] = body
    with pytest.raises(CheckpointError, match=f"no weights: .*{said}.*nothing was kept"):
        download.download(f"{server.url}/model{end}")
    assert not kept()


def test_weights_without_their_end_are_not_kept_whatever_the_server_says(server):
    server.files[NAME] = BODY[:-100]
    with pytest.raises(CheckpointError, match="no whole .safetensors"):
        download.download(server.url + NAME)
    assert not kept()


def test_what_an_earlier_version_kept_by_mistake_is_downloaded_again(server):
    path = download.download(server.url + NAME)
    path.write_bytes(PAGE)
    assert download.download(server.url + NAME).read_bytes() == BODY


def test_what_a_disk_does_not_give_now_is_not_downloaded_again(server, monkeypatch):
    path = download.download(server.url + NAME)

    def not_now(self, *arguments):
        raise OSError(errno.EIO, "not now")

    monkeypatch.setattr("pathlib.Path.open", not_now)
    with pytest.raises(OSError, match="not now"):
        download.download(server.url + NAME)
    assert len(server.asked) == 1 and path.is_file()


@pytest.mark.parametrize("length", ["many", "-5", "", None])
def test_a_server_that_does_not_say_the_length_must_be_believed_by_the_hash(server, length):
    server.headers = {"Content-Length": length}
    with pytest.raises(CheckpointError, match="does not say how long it is"):
        download.download(server.url + NAME)
    server.files[name := f"/model-{DIGEST[:8]}.safetensors"] = BODY
    assert download.download(server.url + name).read_bytes() == BODY


def test_pieces_tell_their_end(server):
    server.headers = {"Content-Length": None, "Transfer-Encoding": "chunked"}
    server.files[NAME] = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
    assert download.download(server.url + NAME).read_bytes() == BODY
    server.files["/b.safetensors"], server.cuts = server.files[NAME], [700] * 9
    with pytest.raises(Unreachable, match="IncompleteRead"):
        download.download(f"{server.url}/b.safetensors")


def test_https_is_never_left(secure, server):
    assert fetch.fetch(secure.url + NAME).read_bytes() == BODY
    server.files["/model.pth"] = BODY
    secure.moved = {
        "/a/x.safetensors": f"{secure.url}{NAME}?key=1",
        "/b/x.safetensors": f"{server.url}/secret.safetensors?key=token",
        "/c/x.safetensors": "/b/x.safetensors",
    }
    assert fetch.fetch(f"{secure.url}/a/x.safetensors").read_bytes() == BODY
    for path in "bc":
        with pytest.raises(CheckpointError, match="leads on to http://.*expected https") as error:
            fetch.fetch(f"{secure.url}/{path}/x.safetensors")
        assert "token" not in str(error.value)
    assert not server.asked


def test_a_certificate_of_nobody_known_is_refused_for_good(secure, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(CheckpointError, match="CERTIFICATE_VERIFY_FAILED") as error:
        fetch.fetch(secure.url + NAME)
    assert not isinstance(error.value, Unreachable) and not secure.asked


@pytest.mark.parametrize(
    "address",
    [
        "https://[::1/x.pth",
        "https://[bad]/x.pth",
        "https://host:port/x.pth",
        "https://host:99999/x.pth",
        "https:///x.pth",
        "https://host",
        "https://host/",
        "https://host/..",
        "https://host/page.html",
        "https://host/x.pth\0",
        "https://host/%00",
        "https://host/a%0Ab.exe",
        "HTTPS://host/page.html",
    ],
)
def test_odd_addresses_are_one_line(tmp_path, monkeypatch, address):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="is no address of weights; expected https") as error:
        fetch.fetch(address)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("host", ["a..b", "ü" * 70, "host name", "127.0.0.1:1"])
def test_odd_hosts_are_one_line(tmp_path, monkeypatch, host):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "PAUSES", ())
    with pytest.raises(CheckpointError, match="could not download") as error:
        fetch.fetch(f"https://{host}/x.pth?token=secret")
    assert str(error.value).isprintable() and "secret" not in str(error.value)


def test_odd_names_are_sent_as_they_are_and_kept_under_tame_ones(server):
    server.files["/m%C3%B6del%00%0A%2F..%5Cx.safetensors"] = BODY
    path = download.download(f"{server.url}/mödel%00%0A%2F..%5Cx.safetensors")
    assert path.name == ".._x.safetensors" and kept() == [path]


@pytest.mark.parametrize(
    "address",
    [
        "https://user:secret@127.0.0.1:1/x.pth",
        "https://user:secret@[::1/x.pth",
        "https://user:sec/secret@host/x.pth",
        "https://127.0.0.1:1/x.pth?key=secret",
        "https://127.0.0.1:1/x.html#secret",
        "ftp://user:secret@host/x.pth",
        "http://user:secret@host/x.pth?secret",
    ],
)
def test_no_password_is_shown(tmp_path, monkeypatch, caplog, address):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path))
    monkeypatch.setattr(download, "PAUSES", (0.0,))
    with caplog.at_level(logging.DEBUG), pytest.raises(CheckpointError) as error:
        fetch.fetch(address)
    assert "secret" not in f"{error.value}{caplog.text}"


def test_what_is_forbidden_is_said(server):
    server.codes[NAME] = 403
    with pytest.raises(CheckpointError, match="answers 403 Forbidden;"):
        download.download(server.url + NAME)
