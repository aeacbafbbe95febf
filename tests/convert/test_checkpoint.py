import argparse
import collections
import os
import pathlib
import pickle
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.convert import CheckpointError, read_state

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def check(state):
    assert state.keys() == WEIGHTS.keys()
    np.testing.assert_array_equal(state["a.weight"], WEIGHTS["a.weight"].numpy())
    assert state["b"] == 3


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".tar", ".ckpt"])
@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        {"model": WEIGHTS},
        {"state_dict": collections.OrderedDict(WEIGHTS), "epoch": 3},
        {"model_ema": WEIGHTS},
        {"model": WEIGHTS, "model_ema": {"other": torch.zeros(1)}, "optimizer": {"lr": 1.0}},
        {"model": {f"module.{name}": value for name, value in WEIGHTS.items()}},
        {"model": WEIGHTS, "args": argparse.Namespace(lr=1e-3, name="x", steps=[1, 2])},
        {name: torch.nn.Parameter(v) if v.ndim else v for name, v in WEIGHTS.items()},
    ],
)
def test_torch_files(tmp_path, suffix, content):
    torch.save(content, tmp_path / f"m{suffix}")
    check(read_state(str(tmp_path / f"m{suffix}")))


def test_legacy_torch_file(tmp_path):
    torch.save(WEIGHTS, tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    check(read_state(str(tmp_path / "m.pth")))


def test_safetensors(tmp_path):
    safetensors_torch.save_file(WEIGHTS, tmp_path / "m.safetensors")
    check(read_state(str(tmp_path / "m.safetensors")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(tmp_path, dtype):
    state = {"a": torch.tensor([1.5, -2.25]).to(dtype)}
    torch.save(state, tmp_path / "m.pth")
    safetensors_torch.save_file(state, tmp_path / "m.safetensors")
    for name in ("m.pth", "m.safetensors"):
        value = read_state(str(tmp_path / name))["a"]
        assert value.dtype == np.float32
        assert value.tolist() == [1.5, -2.25]


def test_eight_bits_are_named_and_refused(tmp_path):
    state = {"a": torch.zeros(2).to(torch.float8_e4m3fn), "b": torch.zeros(2)}
    torch.save(state, tmp_path / "m.pth")
    safetensors_torch.save_file(state, tmp_path / "m.safetensors")
    np.savez(tmp_path / "m.npz", a=np.zeros(2, jnp.float8_e4m3fn), b=np.zeros(2, np.float32))
    for name, kind in (("pth", "float8_e4m3fn"), ("safetensors", "F8_E4M3"), ("npz", "of 8 bits")):
        with pytest.raises(CheckpointError, match=f"m.{name}: a is {kind}, and .* not supported"):
            read_state(str(tmp_path / f"m.{name}"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: argparse.Namespace(x=x)])
@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path, wrap, save):
    marker, path = tmp_path / "marker", tmp_path / "m.pth"
    save({"model": WEIGHTS, "args": wrap(Touch(marker))}, path)
    with pytest.raises(CheckpointError, match="Nothing in it was executed"):
        read_state(str(path))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists(), "the attack itself does not work, so the test shows nothing"


def test_truncated_files(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "m.pth")
    safetensors_torch.save_file({"a": torch.zeros(1000)}, tmp_path / "m.safetensors")
    for name in ("m.pth", "m.safetensors"):
        path = tmp_path / name
        whole = path.read_bytes()
        for length in (3, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=f"{length:,} bytes"):
                read_state(str(path))
        path.write_bytes(b"")
        with pytest.raises(CheckpointError, match="empty"):
            read_state(str(path))


@pytest.mark.parametrize("sums", [True, False])
def test_a_byte_that_changed_is_seen_where_there_are_checksums(tmp_path, sums):
    config = pytest.importorskip("torch.utils.serialization").config
    path = tmp_path / "m.pth"
    with config.patch("save.compute_crc32", sums):
        torch.save({"a": torch.arange(1000.0)}, path)
    assert read_state(str(path))["a"][500] == 500
    whole = path.read_bytes()
    place = whole.index(np.float32(500).tobytes())
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    if not sums:
        assert read_state(str(path))["a"][500] != 500
        return
    with pytest.raises(CheckpointError, match=r"m.pth is damaged: Bad CRC-32 for .*; download"):
        read_state(str(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.pth", b"<!DOCTYPE html><html>", "a web page"),
        ("m.safetensors", b"<!DOCTYPE html><html>", "a web page"),
        ("m.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git-lfs"),
        ("m.safetensors", b"PK\x03\x04 and so on", "a zip archive"),
        ("m.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file.*expected weights in .safetensors"),
        ("m", b"hello, world", "starts with b'hello, world'"),
    ],
)
def test_foreign_files_are_called_by_their_name(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        read_state(str(tmp_path / name))


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), {}, {"model": {"a": "text"}}, {3: 4}])
def test_torch_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="expected named tensors"):
        read_state(str(tmp_path / "m.pth"))


def test_without_torch_the_error_says_what_to_install(tmp_path, monkeypatch):
    torch.save(WEIGHTS, tmp_path / "m.pth")
    safetensors_torch.save_file(WEIGHTS, tmp_path / "m.safetensors")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r'pip install "torch>=2\.6"'):
        read_state(str(tmp_path / "m.pth"))
    check(read_state(str(tmp_path / "m.safetensors")))


def test_npz_files_are_read_and_halves_widened(tmp_path):
    bfloat = np.array([1.5, -2.0], np.dtype(jnp.bfloat16)).view("V2")
    np.savez(tmp_path / "m.npz", **{"a/b": np.ones(2, np.float16), "c": bfloat})
    state = read_state(str(tmp_path / "m.npz"))
    assert {name: value.dtype for name, value in state.items()} == {"a/b": "f4", "c": "f4"}
    assert state["c"].tolist() == [1.5, -2.0]


@pytest.mark.parametrize("damage", ["objects", "short", "text", "array"])
def test_damaged_npz_files_execute_nothing(tmp_path, damage):
    path = tmp_path / "m.npz"
    if damage == "objects":
        np.savez(path, a=np.array([{}], object))
    elif damage == "short":
        np.savez(path, a=np.ones(999))
        path.write_bytes(path.read_bytes()[:500])
    elif damage == "text":
        path.write_text("hello")
    else:
        with path.open("wb") as file:
            np.save(file, np.ones(3))
    with pytest.raises(CheckpointError, match="Nothing in it was executed"):
        read_state(str(path))


@pytest.mark.parametrize(
    ("taken", "more"),
    [
        ("state_dict", "state_dict_ema"),
        ("state_dict", "ema_state_dict"),
        ("model", "ema"),
        ("model", "net_average"),  # by its names
    ],
)
def test_of_two_averages_one_is_taken_and_said(tmp_path, taken, more):
    other = {name: value * 2 for name, value in WEIGHTS.items()}
    torch.save({taken: WEIGHTS, "optimizer": {"state": {}}, more: other}, tmp_path / "m.pth")
    notes = []
    check(read_state(str(tmp_path / "m.pth"), notes))
    assert notes == [f"took the weights under {taken!r}; the file also holds {more!r}"]
    torch.save({more: WEIGHTS} if "ema" in more else WEIGHTS, tmp_path / "m.pth")
    check(read_state(str(tmp_path / "m.pth"), []))
    torch.save({"state_dict": WEIGHTS}, tmp_path / "m.pth")
    check(read_state(str(tmp_path / "m.pth"), notes))
    assert len(notes) == 1


@pytest.mark.parametrize("content", [torch.nn.Linear(2, 2), {"model": torch.nn.Linear(2, 2)}])
def test_a_whole_model_is_named_with_the_way_out(tmp_path, content):
    torch.save(content, tmp_path / "m.pth")
    said = r"holds a torch\S+Linear, which .*torch.save\(model.state_dict\(\), FILE\)"
    with pytest.raises(CheckpointError, match=said):
        read_state(str(tmp_path / "m.pth"))


@pytest.mark.parametrize("kept", [pathlib.PurePosixPath("x"), np.float64(1.0)])
def test_an_unsafe_type_is_named_with_the_way_out(tmp_path, kept):
    torch.save({"model": WEIGHTS, "more": kept}, tmp_path / "m.pth")
    with pytest.raises(
        CheckpointError, match=r"holds a (pathlib|numpy)\.\S+.*checkpoint\[.model.\]"
    ):
        read_state(str(tmp_path / "m.pth"))
