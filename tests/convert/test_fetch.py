import hashlib
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from spvit_jax.convert import CheckpointError, fetch

BODY = bytes(range(256)) * 40
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        if "missing" in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY) + (100 if "short" in self.path else 0)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path / "cache"))
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def kept():
    return [path for path in fetch.cache_folder().rglob("*") if path.is_file()]


@pytest.mark.parametrize("digits", [8, 16, 64])
def test_download_is_kept_and_its_hash_verified(server, digits, caplog):
    url = f"{server.url}/a/model-{DIGEST[:digits]}.pth"
    with caplog.at_level(logging.INFO):
        path = fetch.download(url)
    assert path.read_bytes() == BODY
    assert kept() == [path]
    assert "100 %" in caplog.text
    assert fetch.download(url) == path
    assert len(server.asked) == 1


def test_wrong_hash_is_an_error_and_keeps_nothing(server):
    with pytest.raises(CheckpointError, match=f"deadbeef.*{DIGEST[:8]}"):
        fetch.download(f"{server.url}/model-deadbeef.pth")
    assert not kept()


def test_names_without_a_hash_are_not_verified(server):
    assert fetch.download(f"{server.url}/deit-small-224.pth").read_bytes() == BODY


@pytest.mark.parametrize("name", ["missing", "short"])
def test_failed_download_is_an_error_and_keeps_nothing(server, name):
    with pytest.raises(CheckpointError, match="fetch it yourself"):
        fetch.download(f"{server.url}/{name}.pth")
    assert not kept()


def test_equal_names_of_different_addresses_do_not_collide(server):
    assert fetch.download(f"{server.url}/a/m.bin") != fetch.download(f"{server.url}/b/m.bin")


def test_unusable_cache_is_an_error(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match="could not download"):
        fetch.download(f"{server.url}/m.bin")


def test_hub_addresses(server, monkeypatch):
    monkeypatch.setattr(fetch, "HUGGING_FACE", server.url)
    path = fetch.fetch("hf-hub:timm/deit_tiny_patch16_224.fb_in1k")
    assert path.name == "model.safetensors"
    assert server.asked == ["/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/model.safetensors"]
    with pytest.raises(CheckpointError, match="ORG/NAME"):
        fetch.fetch("hf-hub:deit_tiny")


def test_only_paths_and_safe_addresses(tmp_path):
    path = tmp_path / "x.pth"
    path.write_text("x")
    assert fetch.fetch(str(path)) == path
    for address in ("http://example.org/x.pth", "ftp://example.org/x.pth", "file:///x.pth"):
        with pytest.raises(CheckpointError, match="a path, https://"):
            fetch.fetch(address)
    with pytest.raises(CheckpointError, match="no file at"):
        fetch.fetch(str(tmp_path / "y.pth"))
