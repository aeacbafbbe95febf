import dataclasses
import re
import sys

import numpy as np
import pytest
import safetensors.numpy

from spvit_jax.convert import (
    CheckpointError,
    files,
    forms,
    load,
    read_state,
    released_from_state,
    save_torch,
    state_for_torch,
)
from spvit_jax.convert.facts import Facts
from spvit_jax.convert.families import ignored
from spvit_jax.models import RegNetSpec, SwinSpec, ViTSpec
from spvit_jax.models.swin import relative_position_index, shift_mask
from spvit_jax.single_path.architecture import Architecture
from spvit_jax.single_path.ops import OPS as EVERY_OP
from spvit_jax.single_path.ops.skip import Skip
from spvit_jax.single_path.prune import fold
from spvit_jax.single_path.prune import form as form_of

torch = pytest.importorskip("torch")

from .torch_models import build  # noqa: E402

VIT = ViTSpec(width=24, depth=5, heads=3, hidden=96, patch_size=4, image_size=16, classes=7)
SWIN = SwinSpec(
    width=16,
    depths=(2, 4),
    heads=(2, 4),
    hidden=(64, 128),
    window=4,
    patch_size=2,
    image_size=32,
    classes=7,
)
REGNET = RegNetSpec((16, 24), (1, 2), 8, classes=7)
OBLONG = dataclasses.replace(VIT, image_size=(8, 24))
OBLONG_SWIN = dataclasses.replace(SWIN, image_size=(16, 48))  # the second stage's windows shift
# to the right alone
OPS = {
    OBLONG: ("skip", "conv1x1", "conv3x3", "msa", "norm_skip"),
    SWIN: ("conv3x3", "msa", "skip", "conv1x1", "norm_skip", "msa"),
    OBLONG_SWIN: ("conv3x3", "msa", "skip", "conv1x1", "norm_skip", "msa"),
}
ARCHITECTURES = {s: Architecture(ops, tuple(range(3, 3 + len(ops)))) for s, ops in OPS.items()}
ARCHITECTURES[VIT] = ARCHITECTURES[OBLONG]
DENSE = [
    VIT,
    dataclasses.replace(VIT, distilled=True),
    dataclasses.replace(VIT, class_token=False, pool="norm_average"),
    dataclasses.replace(VIT, class_token=False, pool="average_norm"),
    dataclasses.replace(VIT, pool="average_norm"),
    dataclasses.replace(SWIN, image_size=16),  # the last map is one window, as far as it tells
    dataclasses.replace(SWIN, image_size=16, window=8),  # the last window is clipped
    OBLONG,
    OBLONG_SWIN,
    dataclasses.replace(SWIN, image_size=(16, 32), window=8),  # the last are clipped to 4x8
    REGNET,
]
PRUNED = [(spec, form) for spec in OPS for form in ("shared", "folded")]


@pytest.mark.parametrize(
    ("spec", "form"),
    [(spec, "dense") for spec in DENSE] + PRUNED,
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_round_trips_are_exact(random_model, assert_same, spec, form):
    architecture = None if form == "dense" else ARCHITECTURES[spec]
    model = random_model(spec, form, architecture)
    state = state_for_torch(model)
    heads, size = 3 if isinstance(spec, ViTSpec) else 0, spec.image_size
    facts = Facts.of(heads, image_size=0 if isinstance(size, int) else size)
    found, logits = released_from_state(state, facts)
    assert (form_of(found), found.spec, logits) == (form, spec, None)
    assert found.architecture == model.architecture == architecture
    assert_same(forms.variables(found), forms.variables(model))
    assert_same(state_for_torch(found), state)


@pytest.mark.parametrize(
    "stem",
    [
        "vit_dense_a",
        "vit_distilled_a",
        "swin_timm_a",
        "regnety_a",
        "deit_a_finetune",
        "deit_a_folded",
        "swin_a_finetune",
    ],
)
def test_released_checkpoints_come_back_bit_for_bit(released, assert_same, stem):
    state = released(stem)
    found, _ = released_from_state(state, Facts.of(3 if "vit_" in stem else 0))
    written = state_for_torch(found)
    added = written.keys() - state.keys()
    assert not state.keys() - written.keys()
    assert all(map(ignored, added))
    weights = {name: value for name, value in state.items() if not ignored(name)}
    assert_same({name: written[name] for name in weights}, weights)
    assert all(written[name].shape == state[name].shape for name in state)


@pytest.mark.parametrize("family", ["deit", "swin"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_shared_is_folded_is_to_torch_and_back(released, images, run, family, batch_norm):
    shared, _ = released_from_state(released(f"{family}_a_finetune"))
    model = fold(shared, batch_norm=batch_norm)
    back, _ = released_from_state(state_for_torch(model))
    assert form_of(back) == "folded"
    assert back.architecture == shared.architecture
    inputs = images(model.spec)
    expected = run(shared, inputs)
    for found in (model, back):
        np.testing.assert_allclose(run(found, inputs), expected, atol=3e-5 * np.abs(expected).max())
    if batch_norm:
        ours, theirs = forms.variables(fold(back, batch_norm=True)), forms.variables(model)
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("form", ["folded", "deploy"])
@pytest.mark.parametrize("spec", OPS, ids=lambda spec: type(spec).__name__)
def test_pytorch_loads_it_strictly_and_computes_the_same(random_model, images, run, spec, form):
    architecture = ARCHITECTURES[spec]
    model = random_model(spec, form, architecture)
    network = build(spec, architecture).eval()
    state = state_for_torch(model)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    assert {n: t.dtype for n, t in tensors.items()} == {
        n: t.dtype for n, t in network.state_dict().items()
    }
    network.load_state_dict(tensors, strict=True)
    inputs = images(spec)
    with torch.no_grad():
        expected = network(torch.from_numpy(np.array(inputs)).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(run(model, inputs), expected, atol=1e-5 * np.abs(expected).max())


def test_identity_batch_norms_change_no_bit(random_model):
    model = random_model(VIT, "deploy", ARCHITECTURES[VIT])
    state = state_for_torch(model)
    norm = torch.nn.BatchNorm2d(8).eval()
    mine = {
        n.rpartition(".")[2]: v for n, v in state.items() if n.startswith("blocks.1.attn.bconv.1")
    }
    norm.load_state_dict({name: torch.from_numpy(np.array(v)) for name, v in mine.items()})
    x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(x), x)


@pytest.mark.parametrize("form", ["shared", "folded", "deploy"])
def test_what_strict_loading_needs(random_model, form):
    architecture = ARCHITECTURES[SWIN]
    state = state_for_torch(random_model(SWIN, form, architecture))
    names = [f"layers.0.blocks.{i}" for i in (0, 1)] + [f"layers.1.blocks.{i}" for i in range(4)]
    for name, op, block in zip(names, architecture.ops, SWIN.blocks, strict=True):
        index = state.get(f"{name}.attn.relative_position_index")
        assert (index is not None) == (op == "msa")
        if index is not None:
            assert index.dtype == np.int64
            np.testing.assert_array_equal(index, relative_position_index((4, 4)))
        mask = state.get(f"{name}.attn_mask")
        assert (mask is not None) == (name[-1] in "13")  # every second one, whatever its op
        if mask is not None:
            assert mask.dtype == np.float32
            np.testing.assert_array_equal(mask, shift_mask(block))
        counted = [n for n in state if n.startswith(name) and n.endswith("num_batches_tracked")]
        assert len(counted) == op.startswith("conv")
        assert all(state[n].dtype == np.int64 and state[n].shape == () for n in counted)
        if op == "skip":
            assert not state[f"{name}.norm1.weight"].any() and not state[f"{name}.norm1.bias"].any()


def test_dense_models_have_timms_names_and_no_buffers(random_model, released):
    for spec, stem in ((SWIN, "swin_timm_a"), (VIT, "vit_dense_a"), (REGNET, "regnety_a")):
        kinds = {
            re.sub(r"\d+", "#", name)
            for state in (state_for_torch(random_model(spec, "dense")),)
            for name in state
        }
        assert kinds == {re.sub(r"\d+", "#", name) for name in released(stem)}
    merging = {n for n in state_for_torch(random_model(SWIN, "dense")) if "downs" in n}
    assert all(name.startswith("layers.1.") for name in merging) and len(merging) == 3


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "tar"])
def test_files(random_model, assert_same, tmp_path, suffix):
    architecture = ARCHITECTURES[SWIN]
    model, path = random_model(SWIN, "folded", architecture), tmp_path / f"m.{suffix}"
    save_torch(model, path)
    assert [*tmp_path.iterdir()] == [path]
    assert_same(read_state(str(path)), state_for_torch(model))
    assert_same(forms.variables(load(str(path))), forms.variables(model))
    if suffix != "safetensors":
        content = torch.load(path, weights_only=True)
        assert content.keys() == {"model"}


def test_a_dense_file_is_a_checkpoint(random_model, assert_same, tmp_path):
    for spec in (VIT, SWIN, REGNET):
        model = random_model(spec, "dense")
        save_torch(model, tmp_path / "m.safetensors")
        notes = []
        again = load(str(tmp_path / "m.safetensors"), spec, notes=notes)
        assert notes == []
        assert_same(forms.variables(again), forms.variables(model))


class Toy(Skip):
    """An operation that the released code never had."""

    name = "toy"
    label = "toy"

    def names(self, form):
        return None


def test_what_is_not_written(random_model, tmp_path, monkeypatch):
    path = tmp_path / "m.pth"
    path.write_text("before")
    with pytest.raises(CheckpointError, match=r"a supernet is not written.*prune it first"):
        save_torch(random_model(VIT, "supernet"), path)
    for spec, heads, said in (
        (VIT, (0, 0, 0, 2, 0), "block 3 keeps 2 of 3 heads"),
        (SWIN, (0, (0, 1), 0, 0, 0, (1, 3)), "block 5 keeps 2 of 4 heads"),
    ):
        fewer = dataclasses.replace(ARCHITECTURES[spec], heads=heads)
        for form in ("shared", "folded", "deploy"):
            with pytest.raises(CheckpointError, match=f"{said}.*no attention with fewer"):
                save_torch(random_model(spec, form, fewer), path)
    monkeypatch.setitem(EVERY_OP, "toy", Toy())
    toy = Architecture(("toy", *ARCHITECTURES[VIT].ops[1:]), ARCHITECTURES[VIT].ffn)
    with pytest.raises(CheckpointError, match=r"released PyTorch code has no toy; keep the model"):
        save_torch(random_model(VIT, "folded", toy), path)
    with pytest.raises(CheckpointError, match=r"end its name in \.safetensors or \.pth"):
        save_torch(random_model(VIT, "dense"), tmp_path / "m.npz")
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


def test_every_head_written_out_is_every_head(random_model, assert_same):
    model = random_model(VIT, "folded", ARCHITECTURES[VIT])
    every = dataclasses.replace(ARCHITECTURES[VIT], heads=(0, 0, 0, 3, 0))
    assert_same(state_for_torch(random_model(VIT, "folded", every)), state_for_torch(model))


def test_without_torch(random_model, tmp_path, monkeypatch):
    model = random_model(VIT, "dense")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(CheckpointError, match=r'pip install "torch>=2\.6"'):
        save_torch(model, tmp_path / "m.pth")
    assert not [*tmp_path.iterdir()]
    save_torch(model, tmp_path / "m.safetensors")
    assert safetensors.numpy.load_file(tmp_path / "m.safetensors")


def test_a_failed_write_leaves_what_was_there(random_model, tmp_path, monkeypatch):
    path = tmp_path / "m.pth"
    path.write_text("before")

    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_torch(random_model(VIT, "dense"), path)
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]
