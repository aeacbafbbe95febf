import hashlib
import json
import os
import time

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from huggingface_hub import constants

from spvit_jax.convert import CheckpointError, fetch, read_state
from spvit_jax.convert.errors import Unreachable

from .servers import COMMIT, certificate, keep_repository, serving


def weights(**arrays):
    return safetensors.numpy.save({n: np.full(2, v, np.float16) for n, v in arrays.items()})


WEIGHTS = weights(a=1)
LINKED = {  # what the hub says of a file that another server sends
    "X-Linked-Etag": hashlib.sha256(WEIGHTS).hexdigest(),
    "X-Linked-Size": str(len(WEIGHTS)),
}
INDEX = {"metadata": {}, "weight_map": {"a": "one-1.safetensors", "b": "two-2.safetensors"}}
SHARDS = {
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "one-1.safetensors": WEIGHTS,
    "two-2.safetensors": weights(b=2),
    "config.json": b"{}",
    "README.md": b"no weights",
}


def at(monkeypatch, url):
    """What HF_ENDPOINT would do if it were not read when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    rest = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + rest)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    with serving() as server:
        at(monkeypatch, server.url)
        yield server
    huggingface_hub.close_session()


def kept(tmp_path):
    return sorted(p.name for p in (tmp_path / "hub").rglob("snapshots/*/*"))


def test_weights_come_with_what_describes_them_and_are_kept(hub, tmp_path):
    files = {"model.safetensors": WEIGHTS, **dict.fromkeys(fetch.BESIDE, b"{}"), "x.txt": b"x"}
    keep_repository(hub, "org/name", files)
    path = fetch.fetch("hf-hub:org/name")
    assert path.name == "model.safetensors" and path.read_bytes() == WEIGHTS
    assert path.parent.name == COMMIT and path.is_relative_to(tmp_path / "hub")
    assert kept(tmp_path) == sorted({*files} - {"x.txt"})
    hub.asked.clear()
    assert fetch.fetch("hf-hub:org/name") == path
    assert [line.partition("?")[0] for line in hub.asked] == ["GET /api/models/org/name"]
    with pytest.raises(CheckpointError, match="ORG/NAME"):
        fetch.fetch("hf-hub:deit_tiny")


def test_an_index_comes_with_its_shards(hub, tmp_path):
    keep_repository(hub, "org/sharded", SHARDS)
    assert fetch.fetch("hf-hub:org/sharded").name == "model.safetensors.index.json"
    assert kept(tmp_path) == sorted({*SHARDS} - {"README.md"})
    state = read_state("hf-hub:org/sharded")
    assert state["a"].tolist() == [1, 1] and state["b"].tolist() == [2, 2]
    assert state["a"].dtype == np.float32


def test_an_index_without_all_of_its_shards_is_named(hub):
    some = {name: body for name, body in SHARDS.items() if name != "two-2.safetensors"}
    keep_repository(hub, "org/sharded", some)
    with pytest.raises(CheckpointError, match="hf-hub:org/sharded has no two-2.safetensors"):
        fetch.fetch("hf-hub:org/sharded")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "open_clip_model.safetensors"])
def test_weights_of_other_names(hub, name):
    keep_repository(hub, "org/name", {name: WEIGHTS if "safe" in name else b"\x80old"})
    assert fetch.fetch("hf-hub:org/name").name == name


def test_a_repository_without_weights_may_have_them_tomorrow(hub):
    keep_repository(hub, "org/name", {"tokenizer.json": b"{}"})
    with pytest.raises(CheckpointError, match="hf-hub:org/name has no model.safetensors, "):
        fetch.fetch("hf-hub:org/name")
    keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS})
    assert fetch.fetch("hf-hub:org/name").read_bytes() == WEIGHTS


def test_a_repository_of_today_is_not_taken_for_that_of_yesterday(hub):
    keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS})
    old = fetch.fetch("hf-hub:org/name")
    other = weights(a=3)
    keep_repository(hub, "org/name", {"model.safetensors": other}, "d" * 40)
    new = fetch.fetch("hf-hub:org/name")
    assert new.read_bytes() == other and old.read_bytes() == WEIGHTS


@pytest.mark.parametrize("body", [weights(a=9), b"<html></html>"], ids=["other", "page"])
def test_what_is_not_what_the_hub_says_is_not_kept(hub, tmp_path, body):
    keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS})
    path = "/org/name/resolve/main/model.safetensors"
    hub.headers = {"ETag": hashlib.sha256(WEIGHTS).hexdigest()}
    hub.files[path] = body
    with pytest.raises(CheckpointError, match="model.safetensors is damaged: .*nothing was kept"):
        fetch.fetch("hf-hub:org/name")
    assert not kept(tmp_path) and not list((tmp_path / "hub").rglob("blobs/*"))
    hub.files[path] = WEIGHTS
    assert fetch.fetch("hf-hub:org/name").read_bytes() == WEIGHTS


def test_the_sums_of_small_files_are_gits(hub, monkeypatch):
    config = b'{"a": 1}'
    git = hashlib.sha1(b"blob 8\0" + config).hexdigest()
    keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS, "config.json": config})
    about = json.loads(hub.files["/api/models/org/name"])
    about["siblings"][1] = {"rfilename": "config.json", "blobId": git}
    hub.files["/api/models/org/name"] = json.dumps(about).encode()
    fetch.fetch("hf-hub:org/name")
    about["sha"] = hub.commit = "e" * 40
    about["siblings"][1]["blobId"] = "0" * 40
    hub.files["/api/models/org/name"] = json.dumps(about).encode()
    with pytest.raises(CheckpointError, match=f"config.json is damaged: expected.*got {git}"):
        fetch.fetch("hf-hub:org/name")


def test_what_was_killed_a_day_ago_is_removed(hub, tmp_path):
    keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS})
    blobs = fetch.fetch("hf-hub:org/name").parents[2] / "blobs"
    old, new = blobs / "a.1.incomplete", blobs / "b.2.incomplete"
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    fetch.fetch("hf-hub:org/name")
    assert not old.exists() and new.exists()


def test_the_cache_does_where_the_hub_is_not_to_be_reached(hub, monkeypatch, caplog):
    keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS, "config.json": b"{}"})
    path = fetch.fetch("hf-hub:org/name")
    hub.asked.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch.fetch("hf-hub:org/name") == path and not hub.asked
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set, .*org/other"):
        fetch.fetch("hf-hub:org/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    at(monkeypatch, "http://127.0.0.1:1")
    assert fetch.fetch("hf-hub:org/name") == path
    assert "took what is in the cache" in caplog.text
    with pytest.raises(Unreachable, match="could not download hf-hub:org/other"):
        fetch.fetch("hf-hub:org/other")


@pytest.mark.parametrize(
    ("code", "headers", "said"),
    [
        (404, {}, "the hub shows no hf-hub:org/name; check the name or.*HF_TOKEN"),
        (401, {}, "the hub shows no hf-hub:org/name"),
        (403, {"X-Error-Code": "GatedRepo"}, "hf-hub:org/name is gated; accept its terms"),
        (503, {}, "could not download hf-hub:org/name: .*503"),
    ],
)
def test_refusals_are_one_line(hub, code, headers, said):
    hub.codes["/api/models/org/name"], hub.headers = code, headers
    with pytest.raises(CheckpointError, match=said) as error:
        fetch.fetch("hf-hub:org/name")
    assert str(error.value).isprintable()
    assert isinstance(error.value, Unreachable) == (code == 503)


def test_a_page_instead_of_the_hub_is_one_line(hub):
    hub.files["/api/models/org/name"] = b"<html>Please log in</html>"
    with pytest.raises(CheckpointError, match="could not download hf-hub:org/name") as error:
        fetch.fetch("hf-hub:org/name")
    assert str(error.value).isprintable()


def test_who_the_user_is_is_told_to_the_hub_alone(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS})
    with serving() as other:
        path = "/org/name/resolve/main/model.safetensors"
        other.files[path] = WEIGHTS
        hub.moved[path] = f"{other.url}{path}?key=secret"
        hub.headers = LINKED
        fetch.fetch("hf-hub:org/name")
        assert all(one["authorization"] == "Bearer hf_secret" for one in hub.seen)
        assert other.asked and not any("authorization" in one for one in other.seen)
        other.codes[path], hub.headers = 403, LINKED | {"X-Linked-Etag": "0" * 64}
        keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS + b" "}, "f" * 40)
        with pytest.raises(CheckpointError, match="could not download hf-hub") as error:
            fetch.fetch("hf-hub:org/name")
        assert "secret" not in str(error.value)


def test_tls_is_never_left(hub, tmp_path, monkeypatch):
    context, file = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with serving(context) as secure:
        at(monkeypatch, secure.url)
        keep_repository(secure, "org/name", {"model.safetensors": WEIGHTS})
        keep_repository(hub, "org/name", {"model.safetensors": WEIGHTS})
        path = "/org/name/resolve/main/model.safetensors"
        secure.moved[path] = f"{hub.url}{path}?key=secret"
        secure.headers = LINKED
        with pytest.raises(CheckpointError, match="leads on to http://.*expected https") as error:
            fetch.fetch("hf-hub:org/name")
        assert "secret" not in str(error.value) and not hub.asked
        del secure.moved[path]
        assert fetch.fetch("hf-hub:org/name").read_bytes() == WEIGHTS
