import json

import numpy as np
import pytest
import safetensors.numpy

from spvit_jax.convert import CheckpointError, fetch, read_state


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
