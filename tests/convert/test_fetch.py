import hashlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import safetensors.numpy

from spvit_jax.convert import CheckpointError, fetch, read_state

BODY = bytes(range(256)) * 40
DIGEST = hashlib.sha256(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        files = self.server.files
        name = self.path.rpartition("/")[2]
        if "missing" in self.path or (files is not None and name not in files):
            self.send_error(404)
            return
        body = BODY if files is None else files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body) + (100 if "short" in self.path else 0)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("SPVIT_CACHE", str(tmp_path / "cache"))
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.files = None  # bytes by name; None: BODY, whatever is asked for
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
    root = "/timm/deit_tiny_patch16_224.fb_in1k/resolve/main/"
    names = "model.safetensors", *fetch.BESIDE
    assert server.asked == [root + name for name in names]
    assert {beside.name for beside in path.parent.iterdir()} == set(names)
    assert path == fetch.download(f"{server.url}{root}model.safetensors")  # as without a hub
    with pytest.raises(CheckpointError, match="ORG/NAME"):
        fetch.fetch("hf-hub:deit_tiny")


def index(**files):
    return json.dumps({"metadata": {}, "weight_map": files}).encode()


def shard(**arrays):
    return safetensors.numpy.save({n: np.full(2, v, np.float16) for n, v in arrays.items()})


SHARDS = {
    "model.safetensors.index.json": index(a="one-1.safetensors", b="two-2.safetensors"),
    "one-1.safetensors": shard(a=1),
    "two-2.safetensors": shard(b=2),
    "config.json": b"{}",
}


def test_a_hub_index_comes_with_its_shards_and_what_describes_them(server, monkeypatch):
    monkeypatch.setattr(fetch, "HUGGING_FACE", server.url)
    server.files = SHARDS
    path = fetch.fetch("hf-hub:org/sharded")
    assert path.name == "model.safetensors.index.json"
    assert {p.name for p in path.parent.iterdir()} - {"model.safetensors.absent"} == {
        *SHARDS, "preprocessor_config.json.absent", "open_clip_config.json.absent",
    }  # fmt: skip
    state = read_state("hf-hub:org/sharded")
    assert state["a"].tolist() == [1, 1] and state["b"].tolist() == [2, 2]
    assert state["a"].dtype == np.float32
    assert len(server.asked) == len(set(server.asked)) == 7  # what is not there is asked for once


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_model.safetensors"])
def test_hub_weights_of_other_names(server, monkeypatch, name):
    monkeypatch.setattr(fetch, "HUGGING_FACE", server.url)
    server.files = {name: BODY}
    assert fetch.fetch("hf-hub:org/name").name == name


def test_a_hub_repository_without_weights(server, monkeypatch):
    monkeypatch.setattr(fetch, "HUGGING_FACE", server.url)
    server.files = {"tokenizer.json": b"{}"}
    with pytest.raises(CheckpointError, match="org/name has no model.safetensors"):
        fetch.fetch("hf-hub:org/name")
    server.files["model.safetensors"] = BODY
    assert fetch.fetch("hf-hub:org/name").read_bytes() == BODY


def test_a_hub_that_fails_otherwise_is_no_repository_without_a_config(server, monkeypatch):
    monkeypatch.setattr(fetch, "HUGGING_FACE", server.url)
    monkeypatch.setattr(fetch, "BESIDE", ("short.json",))
    with pytest.raises(CheckpointError, match="could not download.*short.json"):
        fetch.fetch("hf-hub:org/name")


def test_a_folder_is_the_weights_in_it(tmp_path):
    for name in reversed(fetch.WEIGHTS):
        (tmp_path / name).write_bytes(b"x")
        assert fetch.fetch(tmp_path) == tmp_path / name


def test_folders_without_weights_say_what_they_are(tmp_path):
    with pytest.raises(CheckpointError, match="no weights in .*: it is empty; expected model.safe"):
        fetch.fetch(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="it has notes.txt"):
        fetch.fetch(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="a tokenizer's folder, which has notes.txt, tok"):
        fetch.fetch(tmp_path)


def test_the_shards_of_a_folder_are_joined_or_named(tmp_path):
    for name, content in SHARDS.items():
        (tmp_path / name).write_bytes(content)
    assert set(read_state(str(tmp_path))) == {"a", "b"}
    (tmp_path / "two-2.safetensors").write_bytes(shard(a=1))
    with pytest.raises(CheckpointError, match="two of its files have a$"):
        read_state(str(tmp_path))
    (tmp_path / "two-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="names 2 files, of which 1 .* two-2.safetensors"):
        read_state(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not whole JSON"),
        (b"\xff\xfe", "not whole JSON"),
        (b"[]", "weight_map"),
        (b'{"weight_map": {}}', "weight_map"),
        (index(a="../secret"), "'../secret'; expected names of files beside it"),
        (index(a=".."), "'..'; expected"),
        (b'{"weight_map": {"a": 3}}', "arrays into 3"),
    ],
)
def test_damaged_indices(tmp_path, content, said):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_state(str(path))


def test_only_paths_and_safe_addresses(tmp_path):
    path = tmp_path / "x.pth"
    path.write_text("x")
    assert fetch.fetch(str(path)) == path
    for address in ("http://example.org/x.pth", "ftp://example.org/x.pth", "file:///x.pth"):
        with pytest.raises(CheckpointError, match="a path, https://"):
            fetch.fetch(address)
    with pytest.raises(CheckpointError, match="no file at"):
        fetch.fetch(str(tmp_path / "y.pth"))
