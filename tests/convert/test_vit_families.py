"""What became of the ViT since DeiT, converted: DINOv2 and v3, CLIP, SigLIP, EVA-02.

``data/families/*.npz``: tiny models of timm 1.0.31 with random parameters, recorded as for
``test_plain``, with the normalised tokens behind the last block, ``features``, and the ``gradient``
of the sum of the squared logits with respect to the images, all in float64. Constructor arguments
beside those of ``SPEC``, depth 2:

  vit_registers            VisionTransformer(reg_tokens=3, no_embed_class=True, init_values=1e-5)
  vit_registers_positions  VisionTransformer(reg_tokens=2)
  vit_clip                 ... (pre_norm=True, act_layer=quick GELU, norms of epsilon 1e-5)
  vit_siglip               ... (class_token=False, global_pool="map", act_layer=GELU by tanh)
  vit_swiglu_packed        ... (mlp_ratio=4, mlp_layer=SwiGLUPacked, act_layer=SiLU)
  vit_qk_norm              ... (qk_norm=True)
  vit_headless             ... (num_classes=0, init_values=1e-5)
  eva02                    Eva(swiglu_mlp=True, ref_feat_shape=(3, 3), global_pool="token")
  eva_dinov3               Eva(rope_type="dinov3", rope_temperature=100, rope_rotate_half=True,
                           use_abs_pos_emb=False, num_reg_tokens=3, qkv_bias=False,
                           init_values=1e-5, use_fc_norm=False, norms of epsilon 1e-5)
  *_oblong                 ... (img_size=(8, 20)); of eva02_oblong the norms' epsilon is 1e-6

Angles timm computes in float32, in which those of eva_dinov3 on its map of 4x4 are exact.
"""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from spvit_jax.checkpoint_options import NAMES
from spvit_jax.convert import CheckpointError, dense_from_state, save, state_for_torch, vit
from spvit_jax.convert.facts import Facts, Rotary
from spvit_jax.convert.families import recognise
from spvit_jax.convert.fit import RESIZED
from spvit_jax.convert.native import load_model
from spvit_jax.models import ViTSpec
from spvit_jax.models.activations import ACTIVATIONS
from spvit_jax.models.rotary import KINDS

from . import recordings

DATA = Path(__file__).parent / "data" / "families"
SPEC = ViTSpec(width=16, depth=2, heads=2, hidden=32, patch_size=4, image_size=16, classes=5)
MODELS = {  # what they are, and what has to be known besides the arrays
    "vit_registers": (replace(SPEC, registers=3), Facts()),
    "vit_registers_positions": (replace(SPEC, registers=2), Facts()),
    "vit_clip": (
        replace(SPEC, norm_pre=True, activation="quick_gelu", epsilon=1e-5),
        Facts(activation="quick_gelu"),
    ),
    "vit_siglip": (
        replace(SPEC, class_token=False, pool="attention", activation="gelu_tanh"),
        Facts(activation="gelu_tanh"),
    ),
    "vit_swiglu_packed": (
        replace(SPEC, gated=True, activation="silu"),
        Facts(rotary=Rotary("none", 0.0)),
    ),
    "vit_qk_norm": (replace(SPEC, qk_norm=True), Facts()),
    "vit_headless": (replace(SPEC, classes=0), Facts()),
    "eva02": (
        replace(
            SPEC, gated=True, activation="silu", rotary="eva", rotary_grid=3, rotary_base=10_000.0
        ),
        Facts(rotary=Rotary("eva", 10_000.0, 3)),
    ),
    "eva_dinov3": (
        replace(SPEC, registers=3, positions=False, rotary="dinov3", epsilon=1e-5),
        Facts(rotary=Rotary("dinov3", 100.0), epsilon=1e-5, image_size=16),
    ),
}
for family in ("eva02", "eva_dinov3"):
    spec, facts = MODELS[family]
    size = (8, 20)
    MODELS[f"{family}_oblong"] = replace(spec, image_size=size), replace(facts, image_size=size)


EXACT = tuple(name for name in MODELS if "eva02" not in name and "oblong" not in name)


def recorded(name):
    state, arrays = recordings.read(DATA / f"{name}.npz")
    images = arrays["images"].transpose(0, 2, 3, 1)
    return state, images, arrays["logits"], arrays["features"], arrays["gradient"]


def spec_of(name, facts):
    return vit.spec_from_state(recognise(recorded(name)[0])[1], facts)


@pytest.mark.parametrize("name", MODELS)
def test_arrays_and_facts_say_what_it_is(name):
    spec, facts = MODELS[name]
    assert spec_of(name, replace(facts, heads=2)) == spec


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_logits_features_and_gradients_are_timms(name, wide):
    state, images, logits, features, gradient = recorded(name)
    spec = replace(MODELS[name][0], patches=True)
    with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
        images = jnp.asarray(images, float)
        model = dense_from_state(state, spec, [])
        if wide:
            nnx.update(model, jax.tree.map(lambda x: x.astype(float), nnx.state(model)))
        graph, weights = nnx.split(model)

        @jax.jit
        def run(images):
            model = nnx.merge(graph, weights)
            tokens = model.stream(images)[-1]
            whole = jnp.concatenate(
                [model.norm(tokens.x[:, : spec.prefix]), model.patch_features(tokens)], 1
            )
            return model(images), whole

        def power(images):
            return jnp.square(run(images)[0]).sum()

        found = (*run(images), jax.grad(power)(images).transpose(0, 3, 1, 2))
        found = [np.asarray(x, np.float64) for x in found]
    for mine, theirs in zip(found, (logits, features, gradient), strict=True):
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        assert error < ((1e-12 if name in EXACT else 1e-7) if wide else 1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_last_patches_are_computed_where_they_are_read(name):
    """With a class token to look at, the last block computes it alone: the same logits."""
    state, images, logits, *_ = recorded(name)
    model = dense_from_state(state, MODELS[name][0], [])
    tokens = model.stream(jnp.asarray(images, float))[-1]
    alone = MODELS[name][0].pool == "token"
    assert tokens.x.shape[1] == (1 if alone else 16)
    np.testing.assert_allclose(model.classify(tokens)[0], logits, atol=2e-5 * np.abs(logits).max())
    if alone:
        with pytest.raises(ValueError, match="patches do not leave the last block"):
            model.patch_features(tokens)


@pytest.mark.parametrize("name", MODELS)
def test_files_of_ours_and_timms_names_bring_it_back(name, tmp_path):
    state, *_ = recorded(name)
    spec, facts = MODELS[name]
    model = dense_from_state(state, spec, [])
    save(model, tmp_path / "model.safetensors")
    ours = load_model(tmp_path / "model.safetensors")
    back = state_for_torch(model)
    theirs = dense_from_state(back, spec, [])
    assert ours.spec == spec
    assert vit.spec_from_state(recognise(back)[1], replace(facts, heads=2)) == spec
    for again in (ours, theirs):
        for a, b in zip(*(jax.tree.leaves(nnx.state(m)) for m in (model, again)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "facts", "option"),
    [
        ("vit_clip", Facts(heads=2), "--activation"),
        ("vit_siglip", Facts(heads=2), "--activation"),
        ("eva_dinov3", Facts(heads=2), "--rotary"),
        ("eva02", Facts(heads=2), "--rotary"),
        ("vit_registers", Facts(), "--heads"),
    ],
)
def test_what_nobody_says_is_asked_for(name, facts, option):
    with pytest.raises(CheckpointError, match=option):
        spec_of(name, facts)


def test_command_lines_know_all_names():
    known = {"activation": set(ACTIVATIONS), "rotary": {*KINDS, "none"}, "positions": set(RESIZED)}
    assert {name: set(values) for name, values in NAMES.items()} == known


def test_a_head_may_be_left_out_or_made_anew():
    state, _, _, _, _ = recorded("vit_registers")
    notes = []
    model = dense_from_state(state, replace(MODELS["vit_registers"][0], classes=0), notes)
    assert not hasattr(model, "head") and "the features are wanted" in notes[0]
    notes = []
    state, *_ = recorded("vit_headless")
    model = dense_from_state(state, SPEC, notes)
    assert model.head.kernel.shape == (16, 5) and "has no head" in notes[0]


def test_a_model_with_other_registers_is_refused():
    state, *_ = recorded("vit_registers")
    with pytest.raises(CheckpointError, match="one class token.s. and 3 registers, the model one"):
        dense_from_state(state, replace(SPEC, registers=2), [])
