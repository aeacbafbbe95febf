import builtins
import dataclasses
import errno
import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from spvit_jax.convert import (
    About,
    CheckpointError,
    dense_from_state,
    forms,
    load,
    read_spec,
    released_from_state,
    save,
    save_torch,
)
from spvit_jax.convert.facts import Facts, Rotary
from spvit_jax.convert.fit import resize_grid
from spvit_jax.models import SwinSpec, ViT, ViTSpec
from spvit_jax.remote import is_transient
from spvit_jax.single_path.architecture import ArchitectureError
from spvit_jax.single_path.prune import fold, form, prune
from spvit_jax.sizes import sides

from . import recordings

SWIN = SwinSpec(width=16, depths=(2, 2), heads=(2, 4), hidden=(64, 128), image_size=56, classes=7)
SPEC = ViTSpec(width=24, depth=3, heads=3, hidden=96, patch_size=4, image_size=32, classes=7)


def dense(state, spec, **options):
    """``dense_from_state``, and its notes."""
    notes = []
    return dense_from_state(state, spec, notes, **options), notes


def test_dense_model_that_fits_has_no_notes(released, images):
    model, notes = dense(released("vit_dense_a"), SPEC, dropout=0.25, drop_path=0.5)
    assert notes == []
    assert (model.dropout, model.blocks[-1].drop_path) == (0.25, 0.5)
    same, _ = dense(released("vit_dense_a"), SPEC, dtype=jnp.bfloat16)
    assert model.head.kernel.dtype == same.head.kernel.dtype == jnp.float32
    np.testing.assert_allclose(model(images(SPEC)), same(images(SPEC)), atol=0.05)


@pytest.mark.parametrize(("stem", "prefix"), [("vit_dense_a", 1), ("vit_distilled_a", 2)])
@pytest.mark.parametrize("size", [16, 48, (16, 40), (48, 16)])
def test_position_embeddings_are_interpolated_and_said(released, stem, prefix, size, images):
    torch = pytest.importorskip("torch")
    state = released(stem)
    spec = dataclasses.replace(SPEC, image_size=size, distilled=prefix == 2)
    model, notes = dense(state, spec)
    assert len(notes) == 1
    wanted = tuple(side // 4 for side in sides(size))
    assert f"from 8x8 patches to {wanted[0]}x{wanted[1]}" in notes[0]
    embedding = np.asarray(model.pos_embed[...])
    np.testing.assert_array_equal(embedding[:prefix], state["pos_embed"][0, :prefix])
    patches = torch.from_numpy(state["pos_embed"][:, prefix:]).reshape(1, 8, 8, 24)
    expected = torch.nn.functional.interpolate(
        patches.permute(0, 3, 1, 2), wanted, mode="bicubic", antialias=True
    )
    expected = expected.permute(0, 2, 3, 1).reshape(-1, 24).numpy()
    np.testing.assert_allclose(embedding[prefix:], expected, atol=1e-6)
    assert model(images(spec)).shape == (2, 7)


def test_resizing_to_the_same_side_changes_nothing():
    grid = np.random.default_rng(0).standard_normal((5, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(resize_grid(grid, (5, 5)), grid, atol=1e-6)
    np.testing.assert_allclose(resize_grid(grid, (5, 5), "bicubic"), grid, atol=1e-6)


@pytest.mark.parametrize("wanted", [(3, 3), (16, 16), (37, 31), (41, 41), (16, 41), (41, 3)])
def test_plain_bicubic_is_pytorchs(wanted):
    torch = pytest.importorskip("torch")
    grid = np.random.default_rng(0).standard_normal((37, 31, 3))
    expected = torch.nn.functional.interpolate(
        torch.tensor(grid).permute(2, 0, 1)[None], size=wanted, mode="bicubic"
    )
    found = resize_grid(grid, wanted, "bicubic")
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), atol=1e-12)


@pytest.mark.parametrize("stem", ["vit_dense_a", "vit_distilled_a"])
def test_another_class_count_gets_a_fresh_head_and_says_so(released, stem):
    spec = dataclasses.replace(SPEC, classes=100, distilled="distilled" in stem)
    model, notes = dense(released(stem), spec)
    again, _ = dense(released(stem), spec)
    heads = [model.head, model.head_dist] if spec.distilled else [model.head]
    assert len(notes) == len(heads)
    for note, name in zip(notes, ("head", "head_dist"), strict=False):
        assert f"7 classes with its {name}, the model 100" in note
    for head in heads:
        assert not head.bias[...].any()
        assert 0.015 < head.kernel[...].std() < 0.025
    np.testing.assert_array_equal(model.head.kernel[...], again.head.kernel[...])
    np.testing.assert_array_equal(
        model.patch_embed.bias[...], released(stem)["patch_embed.proj.bias"]
    )


def test_one_or_two_class_tokens_must_agree(released):
    with pytest.raises(CheckpointError, match=r"has one class token.*the model two"):
        dense(released("vit_dense_a"), dataclasses.replace(SPEC, distilled=True))
    with pytest.raises(CheckpointError, match=r"has two class token.*the model one"):
        dense(released("vit_distilled_a"), SPEC)


def test_single_path_checkpoint_is_no_dense_model(released):
    with pytest.raises(CheckpointError, match=r"expected a dense.*is of supernet form.*load\("):
        dense(released("deit_a_search"), SPEC)


def test_what_does_not_fit_is_listed_with_both_shapes(released, tmp_path):
    state = released("vit_dense_a")
    del state["blocks.1.attn.qkv.bias"]
    state["blocks.2.mlp.fc1.weight"] = np.zeros((90, 24), np.float32)
    state["fc_norm.weight"] = np.zeros(24, np.float32)
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(state, path)
    with pytest.raises(CheckpointError) as error:
        load(str(path), SPEC)
    for part in (
        str(path),
        "in 3 places",
        "missing blocks.1.attn.qkv.bias [72]",
        "unexpected fc_norm.weight [24]",
        "blocks.2.mlp.fc1.weight: the checkpoint has [90, 24], the model needs [96, 24]",
    ):
        assert part in str(error.value)


def test_a_deeper_checkpoint_does_not_fit_silently(released):
    with pytest.raises(CheckpointError, match=r"unexpected blocks\.2\.norm1\.weight"):
        dense(released("vit_dense_a"), dataclasses.replace(SPEC, depth=2))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_from_files(released, tmp_path, suffix, images):
    state = released("vit_dense_a")
    path = tmp_path / f"m.{suffix}"
    if suffix == "pth":
        torch = pytest.importorskip("torch")
        torch.save({"model": {k: torch.from_numpy(v) for k, v in state.items()}}, path)
    else:
        safetensors.numpy.save_file(state, path)
    expected = dense(state, SPEC)[0](images(SPEC))
    np.testing.assert_array_equal(load(str(path), SPEC)(images(SPEC)), expected)
    loaded = load(str(path), facts=Facts(heads=3))
    assert (form(loaded), loaded.architecture) == ("dense", None)
    np.testing.assert_array_equal(loaded(images(SPEC)), expected)


def test_our_own_dense_file_is_a_checkpoint_too(released, tmp_path):
    model, _ = dense(released("vit_dense_a"), SPEC)
    path = str(tmp_path / "own.safetensors")
    save(model, path)
    spec, notes = dataclasses.replace(SPEC, image_size=16, classes=3), []
    again = load(path, spec, notes=notes)
    assert len(notes) == 2
    expected, _ = dense(released("vit_dense_a"), spec)
    for name, value in forms.variables(expected).items():
        np.testing.assert_array_equal(forms.variables(again)[name], value)
    assert form(load(path)) == "dense"


def test_a_pruned_file_of_ours_is_no_dense_model(released, tmp_path):
    path = str(tmp_path / "own.safetensors")
    save(released_from_state(released("deit_a_finetune"))[0], path)
    said = rf"{path}: expected a dense model, this one is of shared form"
    with pytest.raises(CheckpointError, match=said):
        load(path, SPEC)


def test_released_search_checkpoint_holds_gate_logits_and_their_decision(released, images):
    state = released("deit_a_search")
    found, logits = released_from_state(state)
    assert form(found) == "supernet"
    for i, gates in enumerate(logits):
        assert gates.keys() == {"op", "ffn"}
        np.testing.assert_array_equal(gates["op"], state[f"blocks.{i}.attn.kernel_thresholds"])
        np.testing.assert_array_equal(gates["ffn"], state[f"blocks.{i}.mlp.ffn_thresholds"])
    kept = np.flatnonzero(state["blocks.2.mlp.ffn_thresholds"] > 0)
    assert found.architecture.ffn[2] == tuple(kept)
    assert prune(found, found.architecture)(images(found.spec)).shape == (2, 7)


def test_released_gate_logits_that_are_none_decide_nothing(released):
    state = released("deit_a_search")
    name = "blocks.1.mlp.ffn_thresholds"
    state[name] = np.where(np.arange(len(state[name])) == 3, np.nan, state[name])
    with pytest.raises(CheckpointError, match=r"1 arrays hold .* NaN, .*: gates\.1\.ffn"):
        released_from_state(state)


def test_released_heads_come_from_the_checkpoint_or_must_fit_it(released):
    for stem in ("deit_a_search", "deit_a_finetune", "deit_a_folded"):
        assert released_from_state(released(stem))[0].spec.heads == 3
    with pytest.raises(CheckpointError, match=r"wrong shape blocks\.1\.attn\.head_probs"):
        released_from_state(released("deit_a_finetune"), Facts(heads=4))


def test_released_checkpoint_with_names_missing(released):
    state = released("deit_a_finetune")
    for name in ("head.weight", "blocks.1.mlp.fc1.weight", "blocks.1.attn.head_probs"):
        del state[name]
    with pytest.raises(CheckpointError) as error:
        released_from_state(state, Facts(heads=3))
    for name in ("head.weight", "blocks.1.mlp.fc1.weight", "blocks.1.attn.head_probs"):
        assert f"missing {name} [" in str(error.value)


@pytest.mark.parametrize(
    ("stem", "head"),
    [
        ("vit_dense_a", "head"),
        ("swin_dense_a", "head"),
        ("swin_timm_a", "head.fc"),
        ("regnety_a", "head.fc"),
    ],
)
def test_a_head_of_which_only_the_bias_is_there_is_of_so_many_classes(released, stem, head):
    state = released(stem)
    del state[f"{head}.weight"]
    with pytest.raises(CheckpointError, match=rf"in 1 places:\s+missing {head}.weight \[7, \d+\]$"):
        released_from_state(state, Facts(heads=3 if stem == "vit_dense_a" else None))


@pytest.mark.parametrize("bad", ["safetensors", "own", "pth", "npz", "config.json", "index.json"])
def test_a_disk_that_fails_is_said_to_be_one(released, tmp_path, monkeypatch, bad):
    state = released("vit_dense_a")
    path = tmp_path / ("m.safetensors" if bad in ("own", "config.json") else f"m.{bad}")
    if bad == "pth":
        pytest.importorskip("torch")
        save_torch(released_from_state(state, Facts(heads=3))[0], path)
    elif bad == "own":
        save(released_from_state(state, Facts(heads=3))[0], path)
    elif bad == "npz":
        np.savez(path, **state)
    elif bad == "index.json":
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": dict.fromkeys(state, "m.safetensors")}))
        safetensors.numpy.save_file(state, tmp_path / "m.safetensors")
    else:
        safetensors.numpy.save_file(state, path)
    (tmp_path / "config.json").write_text("{}")
    assert load(str(path), facts=Facts(heads=3)).spec.heads == 3

    def fail(file, *arguments, opened=open, **options):
        if str(file).endswith(bad) or (bad == "own" and str(file) == str(path)):
            raise OSError(errno.EIO, "Input/output error", str(file))
        return opened(file, *arguments, **options)

    monkeypatch.setattr(io, "open", fail)
    monkeypatch.setattr(builtins, "open", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        load(str(path), facts=Facts(heads=3))
    assert is_transient(error.value)


def test_a_head_without_bias_is_noted(released):
    state = {name: value for name, value in released("vit_dense_a").items() if name != "head.bias"}
    model, notes = dense(state, SPEC)
    assert not model.head.bias[...].any()
    assert [note.partition(";")[0] for note in notes] == [
        "the checkpoint's head has no bias: zeros are taken"
    ]


def test_images_that_are_prepared_otherwise_than_the_files_say_are_noted(released, tmp_path):
    safetensors.numpy.save_file(released("vit_dense_a"), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch4", "interpolation": "lanczos", "crop_mode": "squash"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    notes = []
    load(tmp_path, facts=Facts(heads=3), notes=notes)
    assert "interpolation=lanczos, images are prepared with interpolation=bicubic" in notes[0]
    assert "crop_mode=squash, images are prepared with crop_mode=center here" in notes[1]
    config |= {"interpolation": "bicubic", "crop_mode": "center"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    load(tmp_path, facts=Facts(heads=3), notes=notes)
    assert len(notes) == 2


@pytest.mark.parametrize("stem", ["swin_dense_a", "swin_timm_a"])
def test_a_swin_of_another_window_is_interpolated_and_said(released, images, run, stem):
    torch = pytest.importorskip("torch")
    state = released(stem)
    spec = dataclasses.replace(SWIN, window=5, image_size=40)
    model, notes = dense(state, spec)
    assert len(notes) == 1
    assert "from windows of 7x7 tokens to 5x5" in notes[0]
    for i, name in enumerate(name for name in state if name.endswith("bias_table")):
        table = torch.from_numpy(state[name]).T.reshape(1, -1, 13, 13)
        expected = torch.nn.functional.interpolate(table, (9, 9), mode="bicubic", antialias=True)
        found = model.blocks[i].mixer.position_bias[...]
        np.testing.assert_allclose(found, expected.reshape(-1, 81).T.numpy(), atol=1e-6)
    assert run(model, images(spec)).shape == (2, 7)
    assert state[name].shape == (169, 4), "the caller's state has changed"


def test_a_swin_of_another_image_size_needs_no_change(released, images, run):
    spec = dataclasses.replace(SWIN, image_size=112)
    model, notes = dense(released("swin_timm_a"), spec)
    assert notes == []
    assert run(model, images(spec)).shape == (2, 7)
    clipped = dataclasses.replace(SWIN, window=14)  # the last map has 7 tokens a side
    _, notes = dense(released("swin_timm_a"), clipped)
    assert notes == ["relative position biases interpolated from windows of 7x7 tokens to 14x14"]


@pytest.mark.parametrize(
    ("stem", "head"),
    [("swin_dense_a", "head"), ("swin_timm_a", "head.fc"), ("vit_dense_a", "head")],
)
@pytest.mark.parametrize("classes", [7, 100])
def test_backbones_without_a_head_get_one_and_say_so(released, stem, head, classes):
    spec = SPEC if stem.startswith("vit") else SWIN
    spec = dataclasses.replace(spec, classes=classes)
    state = released(stem)
    if classes == 100:
        model, notes = dense(state, spec)
        assert len(notes) == 1 and f"7 classes with its {head}, the model 100" in notes[0]
    del state[f"{head}.weight"], state[f"{head}.bias"]
    model, notes = dense(state, spec)
    assert len(notes) == 1 and "has no head" in notes[0]
    assert model.head.kernel.shape == (model.norm.scale.shape[0], classes)
    assert 0.015 < model.head.kernel[...].std() < 0.025
    state[f"{head}.bias"] = np.zeros(classes, np.float32)
    with pytest.raises(CheckpointError, match="missing head"):
        dense(state, spec)


def test_missing_and_misshapen_arrays_of_a_swin(released):
    state = released("swin_timm_a")
    del state["layers.1.downsample.norm.bias"], state["patch_embed.norm.bias"]
    state["layers.1.blocks.1.attn.proj.weight"] = np.zeros((16, 32), np.float32)
    with pytest.raises(CheckpointError) as error:
        dense(state, SWIN)
    for part in (
        "in 3 places",
        "missing layers.1.downsample.norm.bias [64]",
        "missing patch_embed.norm.bias [16]",
        "layers.1.blocks.1.attn.proj.weight: the checkpoint has [16, 32], the model needs [32, 32]",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("stem", ["deit_a_finetune", "swin_a_finetune", "deit_a_folded"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_released_checkpoint_is_loaded_and_folded(
    released, images, run, tmp_path, stem, batch_norm
):
    path = str(tmp_path / "m.safetensors")
    safetensors.numpy.save_file(released(stem), path)
    found = fold(load(path), batch_norm=batch_norm)
    assert form(found) == ("deploy" if batch_norm else "folded")
    source, _ = released_from_state(released(stem))
    assert found.architecture == source.architecture
    inputs = images(source.spec)
    expected = run(source, inputs)
    np.testing.assert_allclose(run(found, inputs), expected, atol=3e-5 * np.abs(expected).max())
    norms = {name for name in forms.variables(found) if ".mixer.norm." in name}
    assert bool(norms) != batch_norm
    save(found, tmp_path / "own.safetensors")
    assert form(fold(load(str(tmp_path / "own.safetensors")))) == form(found)


@pytest.mark.parametrize(
    ("stem", "said"), [("vit_dense_a", "dense form"), ("swin_a_search", "supernet form")]
)
def test_only_pruned_models_fold(released, tmp_path, stem, said):
    path = str(tmp_path / "m.safetensors")
    safetensors.numpy.save_file(released(stem), path)
    model = load(path, facts=Facts.of(3 if stem == "vit_dense_a" else 0))
    with pytest.raises(ArchitectureError, match=f"only a pruned model folds; this one.*{said}"):
        fold(model)


@pytest.mark.parametrize(
    "stem", ["vit_dense_a", "deit_a_search", "swin_timm_a", "swin_a_finetune", "regnety_a"]
)
def test_specs_are_read_without_building_the_model(released, tmp_path, stem, monkeypatch):
    facts = Facts.of(3 if stem == "vit_dense_a" else 0)
    found, _ = released_from_state(released(stem), facts)
    path, own = str(tmp_path / "m.safetensors"), str(tmp_path / "own.safetensors")
    safetensors.numpy.save_file(released(stem), path)
    save(found, own)
    monkeypatch.setattr(forms, "build", None)
    assert read_spec(path, facts) == read_spec(own) == found.spec


def test_read_spec_names_the_file(tmp_path):
    path = str(tmp_path / "m.safetensors")
    safetensors.numpy.save_file({"a": np.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"m\.safetensors: expected a checkpoint of one of"):
        read_spec(path)


def test_released_models_take_options(released, tmp_path):
    path, own = str(tmp_path / "m.safetensors"), str(tmp_path / "own.safetensors")
    safetensors.numpy.save_file(released("regnety_a"), path)
    model = load(path, dtype=jnp.bfloat16)
    assert model.dtype == jnp.bfloat16
    save(model, own)
    assert load(own, dtype=jnp.bfloat16).dtype == jnp.bfloat16
    assert load(own).dtype is None


def test_class_tokens_have_to_agree_where_there_are_none(released):
    spec = dataclasses.replace(SPEC, class_token=False, pool="norm_average")
    with pytest.raises(CheckpointError, match=r"has one class token.*the model no"):
        dense(released("vit_dense_a"), spec)


def test_gates_of_a_released_swin(released):
    state = released("swin_a_search")
    found, logits = released_from_state(state)
    assert form(found) == "supernet"
    names = [n.removesuffix(".norm2.bias") for n in state if n.endswith("norm2.bias")]
    for name, gates in zip(names, logits, strict=True):
        np.testing.assert_array_equal(gates["op"], state[f"{name}.attn.kernel_thresholds_full"])
        np.testing.assert_array_equal(gates["ffn"], state[f"{name}.mlp.ffn_thresholds"])
    assert found.architecture.ops == ("msa", "conv1x1", "skip", "msa", "conv1x1", "skip")


@pytest.fixture
def both(released, tmp_path):
    """``both(stem)``: a file of theirs, one of ours, of the same model; and heads to give."""

    def write(stem):
        theirs, ours = (str(tmp_path / f"{name}.safetensors") for name in ("theirs", "ours"))
        safetensors.numpy.save_file(released(stem), theirs)
        facts = Facts.of(3 if stem.startswith("vit") else 0)
        save(load(theirs, facts=facts), ours)
        return theirs, ours, facts

    return write


@pytest.mark.parametrize(
    ("stem", "size", "said"),
    [
        ("vit_dense_a", 16, ["from 8x8 patches to 4x4, for images of 16 pixels"]),
        ("vit_distilled_a", 48, ["from 8x8 patches to 12x12, for images of 48 pixels"]),
        ("vit_distilled_a", (16, 40), ["from 8x8 patches to 4x10, for images of 16x40 pixels"]),
        ("swin_dense_a", 112, []),
        ("swin_dense_a", (56, 112), []),
        ("swin_timm_a", 168, []),
        ("regnety_a", 96, []),
        ("regnety_a", (32, 96), []),
    ],
)
def test_any_dense_model_is_loaded_for_another_image_size(
    both, released, assert_same, stem, size, said
):
    theirs, ours, facts = both(stem)
    spec = dataclasses.replace(read_spec(theirs, facts), image_size=size)
    expected, told = dense(released(stem), spec)
    assert len(told) == len(said) and all(a in b for a, b in zip(said, told, strict=True))
    for path in (theirs, ours):
        notes = []
        found = load(path, facts=facts, image_size=size, notes=notes)
        assert (found.spec, notes) == (spec, told)
        assert_same(forms.variables(found), forms.variables(expected))
    same = load(ours, facts=facts, image_size=read_spec(ours).image_size)
    assert_same(forms.variables(same), forms.variables(load(theirs, facts=facts)))


OBLONG = ViTSpec(width=16, depth=2, heads=2, hidden=32, patch_size=4, image_size=(8, 20), classes=5)


@pytest.fixture
def oblong(tmp_path):
    """``oblong(name)``: a file of a recorded model for images of 8x20 pixels; see test_plain."""

    def write(name="vit_oblong"):
        path = str(tmp_path / "oblong.safetensors")
        state, _ = recordings.read(Path(__file__).parent / "data" / f"{name}.npz")
        safetensors.numpy.save_file(state, path)
        return path

    return write


@pytest.mark.parametrize(
    "config",
    [
        {
            "architecture": "vit_tiny_patch4_224",
            "model_args": {"img_size": [8, 20], "num_heads": 2},
        },
        {"architecture": "vit_x", "pretrained_cfg": {"input_size": [3, 8, 20]}},
        {"model_type": "vit", "image_size": {"height": 8, "width": 20}, "layer_norm_eps": 1e-6},
    ],
)
def test_a_map_that_is_no_square_is_told_by_the_config_beside_it(oblong, tmp_path, config):
    path, facts = oblong(), Facts.of(heads=2)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_spec(path, facts) == OBLONG
    notes = []
    assert load(path, facts=facts, image_size=[12, 12], notes=notes).spec.image_size == 12
    (note,) = notes
    assert "from 2x5 patches to 3x3, for images of 12 pixels" in note


def test_a_map_that_is_no_square_is_asked_for(oblong, tmp_path):
    path, heads = oblong(), Facts.of(heads=2)
    with pytest.raises(CheckpointError, match=r"has 10 patches, which is no square: say .*of\("):
        load(path, facts=heads)
    with pytest.raises(CheckpointError, match=r"no square; images of 8 pixels have 4: say"):
        load(path, facts=heads, image_size=8)
    told = Facts.of(heads=2, image_size=(8, 20))
    assert load(path, facts=told).spec == load(path, facts=heads, image_size=(8, 20)).spec == OBLONG
    assert load(path, OBLONG).spec == OBLONG
    notes = []
    ours = str(tmp_path / "ours.safetensors")
    save(load(path, facts=told, image_size=(20, 8), notes=notes), ours)
    assert len(notes) == 1 and "from 2x5 patches to 5x2" in notes[0]
    assert read_spec(ours).image_size == (20, 8)
    back = load(ours, image_size=(8, 20), notes=notes)
    assert back.spec == OBLONG and "from 5x2 patches to 2x5" in notes[1]


def test_zeros_are_put_before_the_positions_of_such_a_map_alone(oblong):
    path, wanted = oblong("vit_oblong_no_embed_class"), (20, 12)
    for told in ({"facts": Facts.of(2, image_size=wanted)}, {"image_size": wanted}):
        model = load(path, **({"facts": Facts.of(2)} | told))
        positions = np.asarray(model.pos_embed[...])
        assert positions.shape == (3 + 15, 16) and not positions[:3].any()
        assert np.abs(positions[3:]).min(1).max() > 0


@pytest.mark.parametrize(
    "stem", ["deit_a_search", "deit_a_finetune", "deit_a_folded", "swin_a_finetune"]
)
def test_a_pruned_model_stays_of_its_image_size(both, stem):
    theirs, ours, _ = both(stem)
    size = read_spec(ours).image_size
    for path in (theirs, ours):
        said = rf"{path}: a pruned model or supernet for images of {size} .* expected {2 * size}"
        with pytest.raises(CheckpointError, match=said):
            load(path, image_size=2 * size)
        assert load(path, image_size=size).spec.image_size == size


@pytest.mark.parametrize(
    ("stem", "size", "said"),
    [
        ("vit_dense_a", 30, "image_size=30: the patch size must divide"),
        ("vit_dense_a", (32, 30), "image_size=32x30: the patch size must divide"),
        ("vit_dense_a", (32, 32, 3), r"image_size: expected pixels, .* got \(32, 32, 3\)"),
        ("vit_dense_a", (32, 0), r"image_size: expected pixels, .* got \(32, 0\)"),
        ("vit_dense_a", 10_000_000, "image_size: expected at most 16,384 pixels a side, got 10000"),
        ("swin_timm_a", 60, "image_size=60: windows of 7x7"),
        ("swin_timm_a", (56, 60), "image_size=56x60: windows of 7x7 .* for their width"),
    ],
)
def test_an_image_size_that_cannot_be_is_named(both, stem, size, said):
    theirs, ours, facts = both(stem)
    for path in (theirs, ours):
        with pytest.raises(CheckpointError, match=rf"{path}: {said}"):
            load(path, facts=facts, image_size=size)


CONTRADICTIONS = {
    "width": 8,
    "depth": 4,
    "patch_size": 8,
    "pool": "map",
    "heads": 7,
    "activation": "silu",
    "epsilon": 1e-5,
    "rotary": Rotary("eva", 10_000.0),
    "image_size": 64,
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_what_is_said_of_a_model_and_is_not_so_is_refused(released, tmp_path, name):
    theirs, ours = str(tmp_path / "theirs.safetensors"), str(tmp_path / "ours.safetensors")
    model, _ = released_from_state(released("vit_dense_a"), Facts(heads=3))
    save_torch(model, theirs)
    save(model, ours)
    fields = {field: getattr(SPEC, field) for field in CONTRADICTIONS}
    so = Facts(**fields | {"rotary": Rotary("none", 0.0)})
    facts, field = dataclasses.replace(so, **{name: CONTRADICTIONS[name]}), name.replace("_", ".")
    for path in [ours] + [theirs] * (list(CONTRADICTIONS).index(name) < 5):
        assert load(path, facts=so).spec == read_spec(path, so) == SPEC
        for reads in (lambda path: load(path, facts=facts), lambda path: read_spec(path, facts)):
            with pytest.raises(CheckpointError, match=rf"s: what is said .*another(?s:.*){field}"):
                reads(path)


def test_what_is_said_of_a_swin_counts_its_stages(released, tmp_path):
    path = str(tmp_path / "swin.safetensors")
    save(dense(released("swin_dense_a"), SWIN)[0], path)
    assert load(path, facts=Facts(heads=2, depth=4, width=16, pool="avg")).spec == SWIN
    with pytest.raises(CheckpointError, match="depth 2, its file says 4\n.*heads 4, its file sa"):
        load(path, facts=Facts(heads=4, depth=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 2.0}, r"^dropout must be in \[0, 1\), got 2\.0"),
        ({"dropout": float("nan")}, r"^dropout must be in \[0, 1\), got nan"),
        ({"drop_path": -1}, r"^drop_path must be in \[0, 1\), got -1"),
        ({"dropout": "x"}, r"^dropout must be in \[0, 1\), got 'x'"),
        ({"drop_path": None}, r"^drop_path must be in \[0, 1\), got None"),
        ({"dropout": False}, r"^dropout must be in \[0, 1\), got False"),
        ({"dtype": "x"}, r"^dtype must be of floating-point numbers, such as bfloat16; got x"),
        ({"dtype": 3}, r"^dtype must be of floating-point numbers, such as bfloat16; got 3"),
        ({"dtype": "int8"}, r"^dtype must be of floating-point numbers, .* got int8"),
    ],
)
def test_options_that_no_model_has_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load("packaged:deit_fashion_mnist", **options)
    with pytest.raises(ValueError, match=message):
        ViT(SPEC, rngs=nnx.Rngs(0), **options)


SAID = {  # beside a model of 7 classes: what its file or config says, what is said of it
    "mean": ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5)),
    "std": ((0.4, 0.5, 0.6), (0.5, 0.5, 0.5)),
    "crop_ratio": (0.9, 0.8),
    "class_names": (tuple("abcdefg"), tuple("abcdefx")),
    "classes": (7, 8),
    "family": ("vit_tiny_patch4_32", "swin_tiny_patch4_window7_224"),
    "interpolation": ("bicubic", "bilinear"),
    "crop_mode": ("center", "squash"),
}
ALL = Facts(**{name: value for name, (value, _) in SAID.items()})


def _files(released, tmp_path):
    """One of ours and one of theirs, with a config.json beside it."""
    theirs, ours = tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors"
    state = released("vit_dense_a")
    safetensors.numpy.save_file(state, theirs)
    model, _ = released_from_state(state, Facts(heads=3))
    save(model, ours, about=About(ALL.class_names, ALL.mean, ALL.std, ALL.crop_ratio))
    config = {"architecture": ALL.family, "num_classes": 7, "label_names": list("abcdefg")}
    config |= {"mean": ALL.mean, "std": ALL.std, "crop_pct": ALL.crop_ratio}
    config |= {"interpolation": ALL.interpolation, "crop_mode": ALL.crop_mode}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return theirs, ours


@pytest.mark.parametrize("name", SAID)
@pytest.mark.parametrize("whose", [0, 1])
def test_what_is_said_against_what_is_known_is_refused(released, tmp_path, name, whose):
    path = _files(released, tmp_path)[whose]
    assert load(path, facts=dataclasses.replace(ALL, heads=3)).about.mean == ALL.mean
    wrong = dataclasses.replace(ALL, heads=3, **{name: SAID[name][1]})
    for reads in (load, read_spec):
        with pytest.raises(CheckpointError, match=rf"s: what is said of(?s:.*){name}(?s:.*)leave"):
            reads(path, facts=wrong)


def test_what_arrays_do_not_say_is_not_said_against_the_config(released, tmp_path):
    theirs, _ = _files(released, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"] = {"num_heads": 3}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(theirs).spec.heads == load(theirs, facts=Facts(heads=3)).spec.heads == 3
    with pytest.raises(CheckpointError, match="heads 1, the files beside it say 3"):
        load(theirs, facts=Facts(heads=1))


def test_what_nothing_else_says_is_taken(released, tmp_path):
    theirs, ours = _files(released, tmp_path)
    (tmp_path / "config.json").unlink()
    save(load(theirs, facts=Facts(heads=3)), ours)
    for path in (theirs, ours):
        about = load(path, facts=dataclasses.replace(ALL, heads=3)).about
        assert about == About(ALL.class_names, ALL.mean, ALL.std, ALL.crop_ratio)
        for wrong, said in (
            ({"mean": (123.0, 116.0, 103.0)}, "divide what is of pixels"),
            ({"class_names": tuple("abc")}, "3 classes"),
            ({"interpolation": "nearest"}, "interpolation 'nearest'"),
        ):
            with pytest.raises(CheckpointError, match=said):
                load(path, facts=dataclasses.replace(ALL, heads=3, **wrong))


def test_image_sizes_and_families_that_are_said_count(released, tmp_path):
    theirs, _ = _files(released, tmp_path)
    with pytest.raises(CheckpointError, match="images of 64 pixels, .* positions of 64 patches of"):
        load(theirs, facts=Facts(heads=3, image_size=64))
    swin = tmp_path / "other" / "swin.safetensors"
    swin.parent.mkdir()
    safetensors.numpy.save_file(released("swin_timm_a"), swin)
    assert load(swin, facts=Facts(image_size=112)).spec.image_size == 112


def test_facts_and_specs_of_other_types_are_named(released, tmp_path):
    theirs, _ = _files(released, tmp_path)
    with pytest.raises(CheckpointError, match=r"facts must be a Facts, .* got \{'heads': 3\}"):
        load(theirs, facts={"heads": 3})
    with pytest.raises(CheckpointError, match=r"spec must be a ViTSpec, .* got 'deit_tiny'"):
        load(theirs, "deit_tiny")


CONFIGS = [  # of a ViT, a Swin and a RegNet, which all are of 7 classes
    ("vit_dense_a", {"global_pool": "map"}, r"pool 'map', .* token or avg"),
    ("vit_dense_a", {"model_args": {"class_token": False}}, "class_token False, the arrays True"),
    ("vit_dense_a", {"model_args": {"in_chans": 1}}, "channels 1, the arrays 3"),
    ("vit_dense_a", {"pretrained_cfg": {"input_size": [1, 32, 32]}}, "channels 1, the arrays 3"),
    ("vit_dense_a", {"model_args": {"mlp_ratio": 3}}, "hidden units 72, the arrays 96"),
    ("vit_dense_a", {"pretrained_cfg": {"input_size": [3, 64, 64]}}, "images of 64 pixels"),
    ("vit_dense_a", {"model_args": {"reg_tokens": 4}}, "registers 4, the arrays 0"),
    (
        "vit_dense_a",
        {"architecture": "swin_tiny_patch4_window7_224"},
        "family swin_.* a V",
    ),
    ("vit_dense_a", {"architecture": "regnety_160"}, "family regnety_160, the arrays are a ViT"),
    ("vit_dense_a", {"num_features": 48}, "width 48, the arrays 24"),
    ("vit_dense_a", {"model_args": {"qkv_bias": False}}, "qkv_bias False, the arrays True"),
    ("swin_timm_a", {"model_args": {"window_size": 5}}, r"window 5, the arrays \d+ \(attn\.rel"),
    ("swin_timm_a", {"num_classes": 8}, "8 classes, the arrays have 7"),
    ("swin_timm_a", {"model_args": {"mlp_ratio": 3}}, "hidden units 48, the arrays 64"),
    ("regnety_a", {"num_classes": 8}, "8 classes, the arrays have 7"),
    ("regnety_a", {"label_names": ["a"]}, "names of 1 classes, the arrays have 7"),
    ("regnety_a", {"global_pool": "token"}, "pool 'token', .* for avg"),
    ("regnety_a", {"architecture": "vit_x"}, "family vit_x, the arrays are a RegNet"),
]


@pytest.mark.parametrize(("stem", "config", "said"), CONFIGS)
def test_a_config_beside_weights_of_another_model_is_refused(
    released, tmp_path, stem, config, said
):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(released(stem), path)
    right = {"vit": "vit_x", "swi": "swin_x", "reg": "regnety_x"}[stem[:3]]
    for added in ({}, config):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": right} | added))
        facts = Facts(heads=3) if stem.startswith("vit") else Facts()
        if not added:
            load(path, facts=facts)
            continue
        with pytest.raises(CheckpointError, match=rf"config\.json says {said}"):
            load(path, facts=facts)


@pytest.mark.parametrize(
    "said",
    [{"heads": 3}, {"epsilon": 1e-6}, {"activation": "silu"}, {"rotary": "eva"}, {"window": 7}],
)
def test_what_a_regnet_has_not_is_refused(released, tmp_path, said):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(released("regnety_a"), path)
    facts = Facts.of(**said) if "window" not in said else Facts(**said)
    (name,) = said
    with pytest.raises(CheckpointError, match=f"it is said to have {name} .* a RegNet has none"):
        load(path, facts=facts)
