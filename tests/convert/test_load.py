import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch

from spvit_jax.convert import (
    CheckpointError,
    dense_from_state,
    forms,
    load_dense,
    load_released,
    released_from_state,
    save_model,
)
from spvit_jax.convert.load import resize_grid
from spvit_jax.models import ViTSpec
from spvit_jax.single_path.prune import prune

SPEC = ViTSpec(width=24, depth=3, heads=3, hidden=96, patch_size=4, image_size=32, classes=7)


def images(spec, batch=2):
    return jax.random.normal(jax.random.key(0), (batch, spec.image_size, spec.image_size, 3))


def test_dense_model_that_fits_has_no_notes(released):
    model, notes = dense_from_state(released("vit_dense_a"), SPEC, dropout=0.25, drop_path=0.5)
    assert notes == []
    assert (model.dropout, model.blocks[-1].drop_path) == (0.25, 0.5)
    same, _ = dense_from_state(released("vit_dense_a"), SPEC, dtype=jnp.bfloat16)
    assert model.head.kernel.dtype == same.head.kernel.dtype == jnp.float32
    np.testing.assert_allclose(model(images(SPEC)), same(images(SPEC)), atol=0.05)


@pytest.mark.parametrize(("stem", "prefix"), [("vit_dense_a", 1), ("vit_distilled_a", 2)])
@pytest.mark.parametrize("size", [16, 48])
def test_position_embeddings_are_interpolated_and_said(released, stem, prefix, size):
    state = released(stem)
    spec = dataclasses.replace(SPEC, image_size=size, distilled=prefix == 2)
    model, notes = dense_from_state(state, spec)
    assert len(notes) == 1
    assert f"from 8x8 patches to {size // 4}x{size // 4}" in notes[0]
    embedding = np.asarray(model.pos_embed[...])
    np.testing.assert_array_equal(embedding[:prefix], state["pos_embed"][0, :prefix])
    patches = torch.from_numpy(state["pos_embed"][:, prefix:]).reshape(1, 8, 8, 24)
    expected = torch.nn.functional.interpolate(
        patches.permute(0, 3, 1, 2), (size // 4,) * 2, mode="bicubic", antialias=True
    )
    expected = expected.permute(0, 2, 3, 1).reshape(-1, 24).numpy()
    np.testing.assert_allclose(embedding[prefix:], expected, atol=1e-6)
    assert model(images(spec)).shape == (2, 7)


def test_resizing_to_the_same_side_changes_nothing():
    grid = np.random.default_rng(0).standard_normal((5, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(resize_grid(grid, 5), grid, atol=1e-6)


@pytest.mark.parametrize("stem", ["vit_dense_a", "vit_distilled_a"])
def test_another_class_count_gets_a_fresh_head_and_says_so(released, stem):
    spec = dataclasses.replace(SPEC, classes=100, distilled="distilled" in stem)
    model, notes = dense_from_state(released(stem), spec)
    again, _ = dense_from_state(released(stem), spec)
    heads = [model.head, model.head_dist] if spec.distilled else [model.head]
    assert len(notes) == len(heads)
    assert all("7 classes, the model 100" in note for note in notes)
    for head in heads:
        assert not head.bias[...].any()
        assert 0.015 < head.kernel[...].std() < 0.025
    np.testing.assert_array_equal(model.head.kernel[...], again.head.kernel[...])
    np.testing.assert_array_equal(
        model.patch_embed.bias[...], released(stem)["patch_embed.proj.bias"]
    )


def test_one_or_two_class_tokens_must_agree(released):
    with pytest.raises(CheckpointError, match=r"has one class token.*the model two"):
        dense_from_state(released("vit_dense_a"), dataclasses.replace(SPEC, distilled=True))
    with pytest.raises(CheckpointError, match=r"has two class token.*the model one"):
        dense_from_state(released("vit_distilled_a"), SPEC)


def test_single_path_checkpoint_is_no_dense_model(released):
    with pytest.raises(CheckpointError, match=r"single-path one.*load_released"):
        dense_from_state(released("deit_a_search"), SPEC)


def test_what_does_not_fit_is_listed_with_both_shapes(released, tmp_path):
    state = released("vit_dense_a")
    del state["blocks.1.attn.qkv.bias"]
    state["blocks.2.mlp.fc1.weight"] = np.zeros((90, 24), np.float32)
    state["fc_norm.weight"] = np.zeros(24, np.float32)
    path = tmp_path / "m.safetensors"
    safetensors.numpy.save_file(state, path)
    with pytest.raises(CheckpointError) as error:
        load_dense(str(path), SPEC)
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
        dense_from_state(released("vit_dense_a"), dataclasses.replace(SPEC, depth=2))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_from_files(released, tmp_path, suffix):
    state = released("vit_dense_a")
    path = tmp_path / f"m.{suffix}"
    if suffix == "pth":
        torch.save({"model": {k: torch.from_numpy(v) for k, v in state.items()}}, path)
    else:
        safetensors.numpy.save_file(state, path)
    expected = dense_from_state(state, SPEC)[0](images(SPEC))
    np.testing.assert_array_equal(load_dense(str(path), SPEC)[0](images(SPEC)), expected)
    loaded = load_released(str(path), heads=3)
    assert (loaded.form, loaded.architecture, loaded.gate_logits) == ("dense", None, None)
    np.testing.assert_array_equal(loaded.model(images(SPEC)), expected)


def test_our_own_dense_file_is_a_checkpoint_too(released, tmp_path):
    model, _ = dense_from_state(released("vit_dense_a"), SPEC)
    path = str(tmp_path / "own.safetensors")
    save_model(path, model, "dense")
    spec = dataclasses.replace(SPEC, image_size=16, classes=3)
    again, notes = load_dense(path, spec)
    assert len(notes) == 2
    expected, _ = dense_from_state(released("vit_dense_a"), spec)
    for name, value in forms.variables(expected).items():
        np.testing.assert_array_equal(forms.variables(again)[name], value)
    assert load_released(path).form == "dense"


def test_a_pruned_file_of_ours_is_no_dense_model(released, tmp_path):
    found = released_from_state(released("deit_a_finetune"))
    path = str(tmp_path / "own.safetensors")
    save_model(path, found.model, found.form, found.architecture)
    with pytest.raises(CheckpointError, match="expected a dense model, this one is of shared form"):
        load_dense(path, SPEC)


def test_released_search_checkpoint_holds_gate_logits_and_their_decision(released):
    state = released("deit_a_search")
    found = released_from_state(state)
    assert found.form == "supernet"
    for i, gates in enumerate(found.gate_logits):
        np.testing.assert_array_equal(gates.kernel, state[f"blocks.{i}.attn.kernel_thresholds"])
        np.testing.assert_array_equal(gates.ffn, state[f"blocks.{i}.mlp.ffn_thresholds"])
    kept = np.flatnonzero(state["blocks.2.mlp.ffn_thresholds"] > 0)
    assert found.architecture.ffn[2] == tuple(kept)
    assert prune(found.model, found.architecture)(images(found.model.spec)).shape == (2, 7)


def test_released_heads_come_from_the_checkpoint_or_must_fit_it(released):
    for stem in ("deit_a_search", "deit_a_finetune", "deit_a_folded"):
        assert released_from_state(released(stem)).model.spec.heads == 3
    with pytest.raises(CheckpointError, match=r"wrong shape blocks\.1\.attn\.head_probs"):
        released_from_state(released("deit_a_finetune"), heads=4)


def test_released_checkpoint_with_names_missing(released):
    state = released("deit_a_finetune")
    for name in ("head.weight", "blocks.1.mlp.fc1.weight", "blocks.1.attn.head_probs"):
        del state[name]
    with pytest.raises(CheckpointError) as error:
        released_from_state(state, heads=3)
    for name in ("head.weight", "blocks.1.mlp.fc1.weight", "blocks.1.attn.head_probs"):
        assert f"missing {name} [" in str(error.value)
