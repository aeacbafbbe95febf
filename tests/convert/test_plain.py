"""Models as users train them with timm, made plain and converted.

``data/*.npz``: tiny models of timm 1.0.31 with random parameters (gammas around 1), their
``state/...``, NCHW ``images`` and the ``logits`` that timm computes from them in float64. State
and images are exact in float16. Constructor arguments beside depth 2 and the sizes in ``SPECS``:

  vit_layer_scale                 VisionTransformer(init_values=1e-5)
  vit_layer_scale_no_embed_class  VisionTransformer(init_values=1e-5, no_embed_class=True)
  vit_average_norm                VisionTransformer(class_token=False, global_pool="avg")
  vit_norm_average                ... and fc_norm=False
  vit_token_average_norm          VisionTransformer(global_pool="avg")
  vit_token_norm_average          ... and fc_norm=False
  vit_no_biases                   VisionTransformer(qkv_bias=False, proj_bias=False)
  vit_distilled_layer_scale       VisionTransformerDistilled(init_values=1e-5)
  beit_absolute                   Beit(init_values=1e-5)
  vit_oblong                      VisionTransformer(img_size=(8, 20))
  vit_oblong_no_embed_class       VisionTransformer(img_size=(20, 12), reg_tokens=2,
                                  no_embed_class=True)
  swin_*                          SwinTransformer(), in swin_clipped_window with qkv_bias=False; in
                                  swin_oblong img_size=(24, 48), in swin_oblong_clipped (16, 32)

``data/unsupported.json``: names and shapes of models that are none of ours.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spvit_jax.convert import CheckpointError, dense_from_state, forms, released_from_state
from spvit_jax.convert.facts import Facts
from spvit_jax.convert.plain import CONVERTS, plain
from spvit_jax.models import SwinSpec, ViTSpec
from spvit_jax.single_path.prune import form

from . import recordings

DATA = Path(__file__).parent / "data"
TOLERANCES = {"float32": 1e-5, "float64": 1e-6}  # of the largest logit
VIT = ViTSpec(width=16, depth=2, heads=2, hidden=32, patch_size=4, image_size=16, classes=5)
NO_TOKEN = replace(VIT, class_token=False, pool="average_norm")
SWIN = SwinSpec(
    width=8, depths=(2, 2), heads=(2, 4), hidden=(16, 48), window=4, patch_size=3, image_size=48,
    classes=5,
)  # fmt: skip
SPECS = {
    "vit_layer_scale": VIT,
    "vit_layer_scale_no_embed_class": replace(VIT, hidden=80, patch_size=2, image_size=6),
    "vit_average_norm": NO_TOKEN,
    "vit_norm_average": replace(NO_TOKEN, pool="norm_average"),
    "vit_token_average_norm": replace(VIT, pool="average_norm"),
    "vit_token_norm_average": replace(VIT, pool="norm_average"),
    "vit_no_biases": replace(VIT, depth=3, heads=4, hidden=16, patch_size=8),
    "vit_distilled_layer_scale": replace(VIT, heads=4, distilled=True),
    "beit_absolute": replace(VIT, pool="average_norm"),
    "vit_oblong": replace(VIT, image_size=(8, 20)),
    "vit_oblong_no_embed_class": replace(VIT, image_size=(20, 12), registers=2),
    "swin_3_stages": replace(
        SWIN, width=4, depths=(1, 2, 2), heads=(2, 1, 4), hidden=(16, 32, 64), window=3,
        patch_size=2, image_size=24,
    ),
    "swin_large_map": SWIN,
    "swin_clipped_window": replace(SWIN, hidden=(32, 64), window=8, patch_size=2, image_size=16),
    "swin_oblong": replace(
        SWIN, width=4, depths=(1, 2, 2), heads=(2, 1, 4), hidden=(8, 16, 32), window=3,
        patch_size=2, image_size=(24, 48),
    ),
    "swin_oblong_clipped": replace(  # the last map's windows have 4x8 tokens
        SWIN, hidden=(16, 32), window=8, patch_size=2, image_size=(16, 32)
    ),
}  # fmt: skip
NOT_IN_NAMES = {  # where the arrays do not tell all, and what they are taken for
    "vit_token_norm_average": VIT,  # the arrays of a model that pools by its class token
    "swin_large_map": replace(SWIN, image_size=24),  # windows fit any multiple of the smallest
}
UNSUPPORTED = {  # the features of each model, by a name and what the error has to call it
    "scale_norms": {
        "a norm inside the FFN": "blocks.0.mlp.norm.weight",
        "a norm inside attention": "blocks.0.attn.norm.weight",
    },
    "rms_norm": {"norms without bias": "blocks.0.norm1.bias"},
    "parallel_scaling": {"parallel attention and FFN": "blocks.0.in_norm.weight"},
    "parallel_things": {"parallel attention and FFN": "blocks.0.attns.0.norm.weight"},
    "oblong_patches": {"no squares": "patch_embed.proj.weight [16, 3, 4, 2]"},
    "embed_norm": {"norm after the patch embedding": "patch_embed.norm.weight"},
    "vit_rel_bias": {"relative positions": "blocks.0.attn.rel_pos.relative_position_bias_table"},
    "vit_rel_mlp": {"relative positions": "blocks.0.attn.rel_pos.mlp.fc1.weight"},
    "beit_rel_bias": {"relative positions": "blocks.0.attn.relative_position_bias_table"},
    "rope_mixed": {"learned frequencies": "rope.freqs"},
    "swin_v2": {
        "cosine attention (Swin V2)": "layers.0.blocks.0.attn.logit_scale",
        "relative positions by an MLP": "layers.0.blocks.0.attn.cpb_mlp.0.weight",
    },
    "cait": {
        "talking heads": "blocks.0.attn.proj_l.weight",
        "class attention": "blocks_token_only.0.gamma_1",
    },
}
ADDED = {  # a name that, added to a plain model, gives away a feature
    "vit_norm_average": {
        "pre_logits.fc.weight": "pre-logits",
        "patch_embed.backbone.stem.conv.weight": "hybrid stem",
        "patch_embed.proj.0.weight": "several convolutions",
        "patch_embed.conv1.weight": "several convolutions",
        "blocks.1.attn.lambda_q1": "differential attention",
        "rel_pos_bias.relative_position_bias_table": "relative positions",
        "pixel_embed.proj.weight": "TNT",
    },
    "swin_large_map": {
        "absolute_pos_embed": "absolute position embedding",
        "layers.1.blocks.0.attn.meta_mlp.fc1.weight": "Swin V2",
    },
}


def recorded(name):
    state, arrays = recordings.read(DATA / f"{name}.npz")
    return state, arrays["images"].transpose(0, 2, 3, 1).astype(np.float32), arrays["logits"]


def unsupported(name):
    shapes = json.loads((DATA / "unsupported.json").read_text())[name]
    return {key: np.zeros(shape, np.float32) for key, shape in shapes.items()}


def error_of(state):
    with pytest.raises(CheckpointError) as caught:
        plain(state)
    return str(caught.value)


def same(left, right):
    return list(left) == list(right) and all(left[name] is right[name] for name in left)


@pytest.fixture(params=TOLERANCES)
def tolerance(request):
    with jax.enable_x64(request.param == "float64"), jax.default_matmul_precision("highest"):
        yield TOLERANCES[request.param]


@pytest.mark.parametrize("name", SPECS)
def test_timm_models_give_timm_logits(name, run, tolerance):
    state, images, logits = recorded(name)
    notes = []
    model = dense_from_state(state, SPECS[name], notes)
    assert not notes
    ours = np.asarray(run(model, jnp.asarray(images, float)))
    np.testing.assert_allclose(ours, logits, rtol=0, atol=tolerance * np.abs(logits).max())


@pytest.mark.parametrize("name", SPECS)
def test_timm_models_are_recognised_by_their_shapes(name):
    state, *_ = recorded(name)
    spec = SPECS[name]
    heads = spec.heads if isinstance(spec, ViTSpec) else 0
    size = spec.image_size if isinstance(spec.image_size, tuple) else 0
    found, _ = released_from_state(state, Facts.of(heads, image_size=size))
    assert form(found) == "dense"
    assert found.spec == NOT_IN_NAMES.get(name, spec)
    arrays = forms.variables(found)  # with the spec, they make the logits
    expected = forms.variables(dense_from_state(state, spec, []))
    assert arrays.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(arrays[key], value)


def test_every_recorded_model_is_tested():
    assert {path.stem for path in DATA.glob("*.npz")} == set(SPECS)
    assert set(json.loads((DATA / "unsupported.json").read_text())) == set(UNSUPPORTED)


@pytest.mark.parametrize(
    ("name", "scales"),
    [
        ("vit_layer_scale", {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}),
        ("beit_absolute", {"attn.proj": "gamma_1", "mlp.fc2": "gamma_2"}),
    ],
)
def test_layer_scale_is_folded_into_the_layer_before_it(name, scales):
    state, *_ = recorded(name)
    before = dict(state)
    result = plain(state)
    assert same(state, before)
    assert not any("gamma" in key for key in result)
    for block in ("blocks.0", "blocks.1"):
        for layer, scale in scales.items():
            gamma = state[f"{block}.{scale}"].astype(np.float64)
            weight, bias = (f"{block}.{layer}.{part}" for part in ("weight", "bias"))
            exact = {weight: gamma[:, None] * state[weight], bias: gamma * state[bias]}
            for key, value in exact.items():
                assert result[key].dtype == np.float32
                np.testing.assert_array_equal(result[key], value.astype(np.float32))
    untouched = "blocks.0.mlp.fc1.weight"
    assert result[untouched] is state[untouched]


def test_layer_scale_keeps_double_precision():
    state, *_ = recorded("vit_layer_scale")
    state = {name: value.astype(np.float64) * (1 + 1e-12) for name, value in state.items()}
    key = "blocks.1.attn.proj.weight"
    expected = state["blocks.1.ls1.gamma"][:, None] * state[key]
    np.testing.assert_array_equal(plain(state)[key], expected)


def test_layer_scale_of_some_blocks_only_is_left_to_be_reported():
    state, *_ = recorded("vit_layer_scale")
    del state["blocks.1.ls2.gamma"]
    result = plain(state)
    assert [name for name in result if "gamma" in name] == ["blocks.0.ls2.gamma"]
    assert result["blocks.0.mlp.fc2.weight"] is state["blocks.0.mlp.fc2.weight"]


def test_biases_that_no_block_has_become_zeros():
    state, *_ = recorded("vit_no_biases")
    added = {name: value for name, value in plain(state).items() if name not in state}
    shapes = {"attn.qkv": 48, "attn.proj": 16, "mlp.fc1": 16, "mlp.fc2": 16}
    expected = {f"blocks.{i}.{k}.bias": (n,) for i in range(3) for k, n in shapes.items()}
    assert {name: value.shape for name, value in added.items()} == expected
    assert all(not value.any() and value.dtype == np.float32 for value in added.values())


def test_a_bias_that_one_block_lacks_is_left_to_be_reported():
    state, *_ = recorded("vit_norm_average")
    del state["blocks.1.attn.qkv.bias"], state["blocks.1.norm2.bias"]
    assert same(plain(state), state)


def test_biases_of_queries_and_values_are_joined():
    state, *_ = recorded("beit_absolute")
    result = plain(state)
    q, v = (state[f"blocks.1.attn.{part}_bias"] for part in "qv")
    joined = np.concatenate([q, np.zeros(16, np.float32), v])
    np.testing.assert_array_equal(result["blocks.1.attn.qkv.bias"], joined)
    assert not any(name.endswith("_bias") for name in result)


@pytest.mark.parametrize(
    ("tokens", "positions"), [(1, 9), (2, 9), (1, 10), (2, 11), (0, 9), (1, 7)]
)
def test_class_tokens_without_positions_get_zeros(tokens, positions):
    names = ("cls_token", "dist_token")[:tokens]
    state = {name: np.ones((1, 1, 4), np.float32) for name in names}
    state["pos_embed"] = np.ones((1, positions, 4), np.float32)
    result = plain(state)
    added = tokens if positions == 9 else 0
    expected = np.concatenate([np.zeros((added, 4)), np.ones((positions, 4))])[None]
    np.testing.assert_array_equal(result["pos_embed"], expected)
    assert result["pos_embed"].dtype == np.float32
    assert added or result["pos_embed"] is state["pos_embed"]


@pytest.mark.parametrize(
    "stem",
    ["vit_dense_a", "vit_distilled_a", "deit_a_search", "deit_a_finetune", "deit_a_folded"],
)
def test_plain_and_single_path_states_are_unchanged(released, stem):
    state = released(stem)
    assert same(plain(state), state)


@pytest.mark.parametrize("name", ["vit_average_norm", "vit_token_norm_average", "swin_3_stages"])
def test_plain_timm_states_are_unchanged(name):
    state, *_ = recorded(name)
    assert same(plain(state), state)


def test_other_families_are_unchanged():
    names = ("stem.conv.weight", "s1.b1.conv1.conv.weight", "s1.b1.se.fc1.bias", "norm.weight")
    state = {name: np.zeros((2, 2), np.float32) for name in names}
    assert same(plain(state), state)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_no_model_has_is_named(name):
    message = error_of(unsupported(name))
    for feature, example in UNSUPPORTED[name].items():
        (line,) = (line for line in message.splitlines() if feature in line)
        assert example in line
    assert message.endswith(CONVERTS)


@pytest.mark.parametrize(
    ("model", "name", "feature"),
    [(model, name, feature) for model, names in ADDED.items() for name, feature in names.items()],
)
def test_a_foreign_name_is_named(model, name, feature):
    state, *_ = recorded(model)
    state[name] = np.zeros(1, np.float32)
    lines = error_of(state).removesuffix(CONVERTS).splitlines()[1:]
    assert len(lines) == 1
    assert feature in lines[0] and name in lines[0]


def test_a_swin_without_patch_norm_is_named():
    state, *_ = recorded("swin_large_map")
    del state["patch_embed.norm.weight"], state["patch_embed.norm.bias"]
    assert "no norm after the patch embedding: patch_embed.norm.weight" in error_of(state)


def test_a_swin_with_larger_windows_in_a_later_stage_is_named():
    state, *_ = recorded("swin_large_map")
    for i in range(2):
        name = f"layers.1.blocks.{i}.attn.relative_position_bias_table"
        state[name] = np.zeros((13**2, 4), np.float32)
    assert "windows that grow from stage to stage: [4, 7] tokens a side" in error_of(state)
