"""What the files beside weights say: written by hand, by transformers, and as timm builds it."""

import errno
import json
from dataclasses import replace

import numpy as np
import pytest

from spvit_jax.convert import CheckpointError
from spvit_jax.convert.agreement import check
from spvit_jax.convert.architectures import (
    ACTIVATIONS,
    EPSILONS,
    HEADS,
    ROTARIES,
    Known,
    architecture,
)
from spvit_jax.convert.facts import DEFAULTS, Facts, Rotary, facts_beside

from . import stand_ins

TIMM = {
    "architecture": "vit_base_patch16_clip_quickgelu_224",
    "num_classes": 3,
    "num_features": 768,
    "global_pool": "token",
    "label_names": ["cat", "dog", "owl"],
    "pretrained_cfg": {
        "tag": "openai",
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "num_classes": 3,
    },
}
TIMM_FACTS = Facts(
    family="vit_base_patch16_clip_quickgelu_224", width=768, heads=12, epsilon=1e-5,
    activation="quick_gelu", image_size=224, built_for=224, channels=3, patch_size=16,
    mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28), crop_ratio=0.9, interpolation="bicubic",
    classes=3, class_names=("cat", "dog", "owl"), pool="token",
)  # fmt: skip
NAMES = {  # one for each row of the tables of architectures
    "vit_tiny_patch16_224": Known(3, 1e-6, "gelu", 16),
    "vit_xsmall_patch16_clip_224": Known(4, 1e-5, "gelu", 16),
    "vit_little_patch16_reg4_gap_256": Known(5, 1e-6, "gelu", 16),
    "vit_small_patch16_384": Known(6, 1e-6, "gelu", 16),
    "vit_medium_patch16_gap_256": Known(8, 1e-6, "gelu", 16),
    "vit_betwixt_patch16_reg4_gap_384": Known(10, 1e-6, "gelu", 16),
    "deit_base_distilled_patch16_224": Known(12, 1e-6, "gelu", 16),
    "vit_so150m2_patch16_reg1_gap_256": Known(13, 1e-6, "gelu", 16),
    "vit_so150m_patch16_reg4_map_256": Known(14, 1e-6, "gelu", 16),
    "vit_base_patch16_plus_clip_240": Known(14, 1e-5, "gelu", 16),
    "vit_base_patch16_gap_224": Known(16, 1e-6, "gelu", 16),
    "deit3_huge_patch14_224": Known(16, 1e-6, "gelu", 14),
    "flexivit_large": Known(16, 1e-6, "gelu"),
    "vit_base_patch16_siglip_224": Known(12, 1e-6, "gelu", 16),
    "vit_base_patch32_siglip_256": Known(12, 1e-6, "gelu_tanh", 32),
    "vit_large_patch16_siglip_gap_512": Known(16, 1e-6, "gelu_tanh", 16),
    "vit_so400m_patch14_siglip_384": Known(16, 1e-6, "gelu", 14),
    "vit_so400m_patch16_siglip_384": Known(16, 1e-6, "gelu_tanh", 16),
    "vit_large_patch14_clip_quickgelu_336": Known(16, 1e-5, "quick_gelu", 14),
    "vit_base_patch14_reg4_dinov2": Known(12, 1e-6, "gelu", 14),
    "vit_giant_patch14_reg4_dinov2": Known(24, 1e-6, "silu", 14),
    "vit_large_patch16_dinov3": Known(16, 1e-5, "gelu", 16, ("dinov3", 100.0, None)),
    "vit_huge_plus_patch16_dinov3": Known(20, 1e-5, "silu", 16, ("dinov3", 100.0, None)),
    "vit_7b_patch16_dinov3": Known(32, 1e-5, "silu", 16, ("dinov3", 100.0, None)),
    "eva02_large_patch14_448": Known(16, 1e-6, "silu", 14, ("eva", 10000.0, 16)),
    "eva02_enormous_patch14_clip_224": Known(16, 1e-6, "gelu", 14),
    "swin_tiny_patch4_window7_224": Known(3, 1e-5, "gelu", 4, staged=True),
    "swin_base_patch4_window7_224": Known(4, 1e-5, "gelu", 4, staged=True),
    "swin_large_patch4_window12_384": Known(6, 1e-5, "gelu", 4, staged=True),
    "swin_s3_small_224": Known(3, 1e-5, "gelu", staged=True),
    "vit_pe_core_base_patch16_224": Known(patch_size=16),
    "resnet50": Known(staged=True),
}


def beside(folder, config=None, preprocessor=None):
    for name, content in (("config", config), ("preprocessor_config", preprocessor)):
        if content is not None:
            (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "model.safetensors").touch()
    return facts_beside(folder / "model.safetensors")


def state(width=768, depth=12, patch=16, classes=3):
    zeros = {f"blocks.{i}.norm1.weight": (width,) for i in range(depth)}
    zeros |= {"patch_embed.proj.weight": (width, 3, patch, patch), "head.weight": (classes, width)}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in zeros.items()}


def test_nothing_beside_says_nothing(tmp_path):
    assert beside(tmp_path) == Facts()
    assert beside(tmp_path, {"learning_rate": 3}) == Facts()
    check(Facts(), state())


def test_timms_form(tmp_path):
    assert beside(tmp_path, TIMM) == TIMM_FACTS
    assert facts_beside(tmp_path) == TIMM_FACTS
    flat = {k: v for k, v in TIMM.items() if k != "pretrained_cfg"} | TIMM["pretrained_cfg"]
    assert beside(tmp_path, flat) == TIMM_FACTS


def test_timms_arguments_say_more_than_its_code(tmp_path):
    options = {
        "embed_dim": 96, "depth": 3, "num_heads": 4, "img_size": 64, "patch_size": 8,
        "act_layer": "gelu_tanh", "global_pool": "avg",
    }  # fmt: skip
    found = beside(tmp_path, TIMM | {"model_args": options})
    assert (found.width, found.depth, found.heads, found.image_size) == (96, 3, 4, 64)
    assert (found.patch_size, found.activation, found.pool) == (8, "gelu_tanh", "avg")
    rotary = {"architecture": "eva02_base_patch14_448", "model_args": {"rope_temperature": 50.0}}
    assert beside(tmp_path, rotary).rotary == Rotary("eva", 50.0, 16)
    swin = {
        "architecture": "swin_tiny_patch4_window7_224", "num_features": 768,
        "model_args": {"depths": [2, 3], "num_heads": [5, 6]},
    }  # fmt: skip
    found = beside(tmp_path, swin)
    assert (found.width, found.depth, found.heads, found.epsilon) == (None, 5, 5, 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_architectures(name):
    assert architecture(name) == NAMES[name]


@pytest.mark.parametrize("table", [HEADS, EPSILONS, ACTIVATIONS, ROTARIES], ids=len)
def test_every_row_of_the_architectures_is_tested(table):
    import re

    def first(name):
        return next((pattern for pattern, _ in table if re.search(pattern, name)), None)

    assert {pattern for pattern, _ in table} == {first(name) for name in NAMES} - {None}


def test_architectures_are_as_timm_builds_them():
    torch = pytest.importorskip("torch")
    with stand_ins.torchvision():
        timm = pytest.importorskip("timm")
        from timm.layers import activations

    names = [name for name in NAMES if name != "resnet50"]
    for name in names:
        known = architecture(name)
        with torch.device("meta"):
            model = timm.create_model(name)
        block = model.layers[0].blocks[0] if known.staged else model.blocks[0]
        assert known.heads in (None, block.attn.num_heads), name
        assert known.epsilon in (None, block.norm1.eps), name
        act = block.mlp.act
        built = {
            torch.nn.SiLU: "silu",
            activations.GELUTanh: "gelu_tanh",
            activations.QuickGELU: "quick_gelu",
        }.get(type(act), "gelu")
        assert known.activation in (None, built), name
        patches = model.patch_embed.patch_size[0]
        assert known.patch_size in (None, patches), name
        rope = type(getattr(model, "rope", None)).__name__
        kinds = {"RotaryEmbeddingDinoV3": "dinov3", "RotaryEmbeddingCat": "eva"}
        if known.rotary or name not in ("vit_pe_core_base_patch16_224",):
            assert kinds.get(rope) == (known.rotary and known.rotary[0]), name


VIT = {
    "model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 384, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "id2label": {"1": "dog", "0": "cat", "2": "owl"},
}  # fmt: skip


def test_transformers_form(tmp_path):
    expected = Facts(
        family="vit", width=768, depth=12, heads=12, epsilon=1e-12, activation="gelu",
        image_size=384, built_for=384, patch_size=16, class_names=("cat", "dog", "owl"),
        positions="bicubic",
    )  # fmt: skip
    assert beside(tmp_path, VIT) == expected
    labels = {"id2label": {str(i): f"LABEL_{i}" for i in range(2)}}
    assert beside(tmp_path, VIT | labels).class_names is None
    assert beside(tmp_path, {"model_type": "vit", "image_size": [64, 96]}).image_size == (64, 96)
    bare = {"model_type": "vit", "image_size": [64, 64]}
    assert beside(tmp_path, bare) == Facts(
        family="vit", epsilon=1e-12, activation="gelu", image_size=64, built_for=64,
        positions="bicubic",
    )  # fmt: skip


def test_towers_say_only_how_they_differ_from_transformers_defaults(tmp_path):
    clip = {"model_type": "clip", "vision_config": {"patch_size": 14}, "hidden_size": 512}
    assert beside(tmp_path, clip) == Facts(
        family="clip_vision_model", width=768, depth=12, heads=12, epsilon=1e-5,
        activation="quick_gelu", image_size=224, built_for=224, patch_size=14,
        positions="bicubic",
    )  # fmt: skip
    siglip = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}}
    found = beside(tmp_path, siglip)
    assert (found.activation, found.patch_size, found.epsilon) == ("gelu_tanh", 16, 1e-6)


def test_rotary_and_gated_models_of_transformers(tmp_path):
    dinov3 = {"model_type": "dinov3_vit", "hidden_act": "silu"}
    assert beside(tmp_path, dinov3).rotary == Rotary("dinov3", 100.0)
    assert beside(tmp_path, dinov3 | {"rope_theta": 50}).rotary == Rotary("dinov3", 50.0)
    nested = {"rope_parameters": {"rope_theta": 25.0}}
    assert beside(tmp_path, dinov3 | nested).rotary == Rotary("dinov3", 25.0)
    assert beside(tmp_path, dinov3).activation == "silu"
    gated = {"model_type": "dinov2", "hidden_act": "gelu", "use_swiglu_ffn": True}
    assert beside(tmp_path, gated).activation == "silu"
    swin = {"model_type": "swin", "embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6]}
    found = beside(tmp_path, swin)
    assert (found.width, found.depth, found.heads, found.epsilon) == (96, 12, 3, 1e-5)


def test_open_clips_form(tmp_path):
    images = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    images["resize_mode"] = "squash"
    tower = {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14}

    def read(vision, **model):
        said = {"model_cfg": {"vision_cfg": vision, **model}, "preprocess_cfg": images}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
        return facts_beside(tmp_path)

    shared = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bicubic"}
    shared["crop_mode"] = "squash"
    huge = Facts(
        family="open_clip", width=1280, depth=32, heads=16, epsilon=1e-5, activation="gelu",
        image_size=224, patch_size=14, **shared,
    )  # fmt: skip
    assert read(tower) == huge
    assert read(tower, quick_gelu=True) == replace(huge, activation="quick_gelu")
    assert read({}) == replace(huge, width=768, depth=12, heads=12, patch_size=16, image_size=None)
    for odd in ({"pool_type": "avg"}, {"act_kwargs": {"approximate": "tanh"}}):
        with pytest.raises(CheckpointError, match=next(iter(odd))):
            read(tower | odd)
    timm = {"timm_model_name": "vit_so400m_patch14_siglip_384", "timm_pool": "map"}
    assert read(timm | {"image_size": 384}) == Facts(
        family="vit_so400m_patch14_siglip_384", heads=16, epsilon=1e-6, activation="gelu",
        image_size=384, patch_size=14, pool="map", **shared,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(TIMM))
    assert facts_beside(tmp_path) == TIMM_FACTS


@pytest.mark.parametrize("family", DEFAULTS)
def test_what_transformers_itself_writes(family, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    classes = {
        "vit": "ViT", "deit": "DeiT", "dinov2": "Dinov2", "dinov3_vit": "DINOv3ViT",
        "dinov2_with_registers": "Dinov2WithRegisters", "clip_vision_model": "CLIPVision",
        "siglip_vision_model": "SiglipVision", "swin": "Swin",
    }  # fmt: skip
    config = getattr(transformers, f"{classes[family]}Config")()
    for name, value in DEFAULTS[family].items():
        assert getattr(config, name) == value, name
    config.save_pretrained(tmp_path)
    found = facts_beside(tmp_path)
    assert found.family == family
    swin = family == "swin"
    assert found.width == (96 if swin else config.hidden_size)
    assert found.depth == (12 if swin else config.num_hidden_layers)
    assert found.heads == (3 if swin else config.num_attention_heads)
    assert (found.image_size, found.patch_size) == (config.image_size, config.patch_size)
    assert found.epsilon == config.layer_norm_eps


@pytest.mark.parametrize(
    ("said", "facts"),
    [
        (
            {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": 256, "crop_size": 224},
            Facts(mean=(0.5,) * 3, std=(0.25,) * 3, crop_ratio=224 / 256),
        ),
        (
            {
                "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
                "do_center_crop": True, "resample": 3,
            },
            Facts(crop_ratio=0.875, interpolation="bicubic"),
        ),
        (
            {"size": {"height": 224, "width": 224}, "resample": 2, "do_normalize": False},
            Facts(
                mean=(0.0,) * 3, std=(1.0,) * 3, crop_ratio=1.0, interpolation="bilinear",
                crop_mode="squash",
            ),
        ),
        ({"size": 256, "crop_size": 224, "do_center_crop": False}, Facts(crop_ratio=1.0)),
        (
            {"size": {"height": 256, "width": 512}, "crop_size": {"height": 224, "width": 448}},
            Facts(crop_ratio=0.875, crop_mode="squash"),
        ),
    ],
)  # fmt: skip
def test_preprocessing(said, facts, tmp_path):
    assert beside(tmp_path, preprocessor=said) == facts


def test_a_crop_of_another_shape_than_what_it_is_of_is_refused(tmp_path):
    said = {"size": 256, "crop_size": {"height": 224, "width": 256}}
    with pytest.raises(CheckpointError, match="crop_size is .*the same share of size=256 in both"):
        beside(tmp_path, preprocessor=said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "config.json is not whole JSON"),
        ("", "config.json is not whole JSON"),
        ("[" * 100_000, "config.json is not whole JSON"),
        ("[1]", "config.json holds a list, expected a JSON object"),
    ],
)
def test_damaged_files(text, said, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        facts_beside(tmp_path)


def test_a_disk_that_fails_has_not_damaged_the_file(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EIO, "not now")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr("pathlib.Path.read_text", refuse)
    with pytest.raises(OSError, match="not now"):
        facts_beside(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "preprocessor_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="preprocessor_config.json is not whole JSON"):
        facts_beside(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("model_type", 3, "a string"),
        ("hidden_size", "768", "a whole number of at least 1"),
        ("hidden_size", True, "a whole number"),
        ("hidden_size", -1, "a whole number"),
        ("num_attention_heads", [], "a whole number"),
        ("layer_norm_eps", 0, "a positive number"),
        ("layer_norm_eps", "tiny", "a positive number"),
        ("hidden_act", "relu", "one of gelu, "),
        ("image_size", [224, 0], "pixels: the side of a square, or height and width"),
        ("image_size", {"height": 3}, "pixels: the side of a square, or height and width"),
        ("image_size", [], "pixels: the side of a square, or height and width"),
        ("patch_size", 16.0, "the side of a square"),
        ("patch_size", [16, 8], "the side of a square"),
        ("id2label", {"a": "cat"}, "names by their numbers"),
        ("id2label", {"1": "cat"}, "names .* without gaps"),
        ("id2label", 7, "names in a list"),
        ("vision_config", [], "a JSON object"),
        ("use_swiglu_ffn", 1, "true or false"),
    ],
)
def test_fields_of_wrong_types_are_named(field, value, expected, tmp_path):
    with pytest.raises(CheckpointError, match=f"{field} is .*expected {expected}"):
        beside(tmp_path, VIT | {field: value})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("depths", [2, "x"], "a list of whole numbers"),
        ("num_heads", "many", "a whole number"),
    ],
)
def test_fields_of_stages(field, value, expected, tmp_path):
    with pytest.raises(CheckpointError, match=f"{field} is .*expected {expected}"):
        beside(tmp_path, {"model_type": "swin", "embed_dim": 96, "depths": [2], field: value})


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("image_mean", [0.5, 0.5], "three numbers"),
        ("image_std", [0.5, 0.5, float("nan")], "three numbers"),
        ("do_rescale", False, "true: mean and std are of pixels between 0 and 1"),
        ("rescale_factor", 1.0, "1/255"),
        ("resample", 9, "one of Pillow's filters"),
        ("size", {"longest_edge": 3}, "pixels: the side of a square"),
    ],
)
def test_fields_of_preprocessing(field, value, expected, tmp_path):
    with pytest.raises(CheckpointError, match=f"{field} is .*expected {expected}"):
        beside(tmp_path, preprocessor={field: value})


def test_two_files_that_scale_colours_otherwise_are_refused(tmp_path):
    timm = {"architecture": "vit_tiny_patch16_224", "mean": [0.485, 0.456, 0.406]}
    same = {"image_mean": [0.4851, 0.456, 0.406], "image_std": [0.5, 0.5, 0.5]}
    assert beside(tmp_path, timm, same).std == (0.5, 0.5, 0.5)
    with pytest.raises(CheckpointError, match=r"mean is .* by config\.json and .* by preproc"):
        beside(tmp_path, timm, same | {"image_mean": [0.5, 0.5, 0.5]})
    with pytest.raises(CheckpointError, match=r"std is .* by config\.json and .* by preproc"):
        beside(tmp_path, timm | {"std": [0.2, 0.2, 0.2]}, same)


def test_long_values_are_cut_short(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        beside(tmp_path, VIT | {"hidden_size": "9" * 10_000})
    assert len(str(caught.value)) < 400


def test_facts_that_fit(tmp_path):
    check(beside(tmp_path, VIT), state())
    check(TIMM_FACTS, state() | {"cls_token": np.ones((1, 1, 768))})
    check(TIMM_FACTS, {"stem.conv.weight": np.ones(1)})


def test_contradictions_are_all_named():
    facts = Facts(width=384, depth=6, patch_size=32, heads=5, class_names=("cat",))
    with pytest.raises(CheckpointError) as caught:
        check(facts, state())
    for said in (
        "config.json says width 384, the arrays 768 (patch_embed.proj.weight [768, 3, 16, 16])",
        "says depth 6, the arrays 12",
        "says patch size 32, the arrays 16",
        "says 5 heads, which do not divide the arrays' width of 768",
        "says names of 1 classes, the arrays have 3 (head.weight)",
    ):
        assert said in str(caught.value)


def test_classes_and_positions_are_counted():
    arrays = state(patch=8) | {"pos_embed": np.ones((1, 17, 768)), "cls_token": np.ones((1, 1, 1))}
    check(Facts(built_for=32, classes=3), arrays)
    check(Facts(built_for=(16, 64), image_size=96), arrays)
    with pytest.raises(CheckpointError) as caught:
        check(Facts(built_for=64, classes=7), arrays)
    assert "images of 64 pixels, the arrays have positions of 16 patches of 8" in str(caught.value)
    assert "says 7 classes, the arrays have 3 (head.weight)" in str(caught.value)


@pytest.mark.parametrize("pool", ["max", "avgmax"])
def test_a_pooling_that_no_model_here_has_is_refused(pool, tmp_path):
    for config in ({"global_pool": pool}, {"model_args": {"global_pool": pool}}):
        with pytest.raises(CheckpointError, match="global_pool is .* one of token, avg, map"):
            beside(tmp_path, TIMM | config)


def test_depths_of_stages_are_counted():
    swin = {
        f"layers.{s}.blocks.{i}.norm1.weight": np.ones(8) for s, i in ((0, 0), (1, 0), (1, 1))
    } | {"patch_embed.proj.weight": np.ones((8, 3, 4, 4))}
    check(Facts(width=8, depth=3, patch_size=4, heads=2), swin)
    with pytest.raises(CheckpointError, match="depth 4, the arrays 3"):
        check(Facts(depth=4), swin)


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"heads": "3"}, "heads must be whole and 1 or more; got '3'"),
        ({"heads": 0}, "heads must be whole and 1 or more; got 0"),
        ({"depth": True}, "depth must be whole and 1 or more; got True"),
        ({"epsilon": float("nan")}, "epsilon must be a number above 0; got nan"),
        ({"crop_ratio": "x"}, "crop_ratio must be a number above 0; got 'x'"),
        ({"positions": "x"}, "positions must be one of antialiased, bicubic; got 'x'"),
        ({"activation": "relu"}, "activation must be one of gelu, .*; got 'relu'"),
        ({"rotary": "eva"}, r"rotary must be a Rotary, as Facts\.of\(rotary=…\) .* got 'eva'"),
        ({"rotary": Rotary("x", 1.0)}, "rotary must be one of dinov3, eva, none; got 'x'"),
    ],
)
def test_facts_that_there_are_not(fact, message):
    with pytest.raises(CheckpointError, match=message):
        Facts(**fact)
