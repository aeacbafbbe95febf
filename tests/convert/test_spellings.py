"""Other code bases' names: each model's own outputs against timm's, given its renamed arrays."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spvit_jax.convert import CheckpointError, load, read_state
from spvit_jax.convert.families import recognise
from spvit_jax.convert.spellings import SPELLINGS, heads_of, spelled
from spvit_jax.convert.spellings.jax_names import unstacked
from spvit_jax.convert.spellings.prefixes import find, take_off

from . import stand_ins

WIDTH, DEPTH, HEADS, PATCH, SIZE, CLASSES = 32, 2, 4, 4, 16, 5
TOLERANCE = 1e-5
COMMON = {
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "image_size": SIZE,
    "patch_size": PATCH,
}
SIZES = {**COMMON, "intermediate_size": 48}
TEXT = {**{k: v for k, v in SIZES.items() if "_size" not in k}, "hidden_size": 32, "vocab_size": 99}
OURS = {
    "img_size": SIZE,
    "patch_size": PATCH,
    "embed_dim": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": CLASSES,
    "mlp_ratio": 1.5,
}
CLIP = {**OURS, "pre_norm": True, "act_layer": "quick_gelu", "eps": 1e-5}
SIGLIP = {
    **OURS, "class_token": False, "global_pool": "map", "act_layer": "gelu_tanh", "num_classes": 0,
}  # fmt: skip
REGISTERS = {**OURS, "reg_tokens": 3, "no_embed_class": True, "init_values": 1.0}
SWIGLU = {"mlp_layer": "SwiGLU", "act_layer": "silu"}
DINOV3 = {
    "use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "dinov3",
    "rope_temperature": 100.0, "rope_rotate_half": True, "num_reg_tokens": 3, "init_values": 1.0,
    "qkv_bias": True, "use_fc_norm": False, "global_pool": "token", "num_classes": 0, "eps": 1e-5,
}  # fmt: skip
FAMILIES = {  # transformers' model, config and options; timm's class and options; what to compare
    "vit": ("ViTForImageClassification", "ViT", SIZES, "ViT", {**OURS, "eps": 1e-12}),
    "deit": (
        "DeiTForImageClassificationWithTeacher", "DeiT", SIZES, "Distilled", {**OURS, "eps": 1e-12},
    ),
    "dinov2": (
        "Dinov2Model", "Dinov2", COMMON, "ViT",
        {**OURS, "mlp_ratio": 4, "num_classes": 0, "init_values": 1.0},
    ),
    "dinov2_swiglu": (
        "Dinov2Model", "Dinov2", {**COMMON, "use_swiglu_ffn": True}, "ViT",
        {**OURS, "mlp_ratio": 88 / WIDTH, "num_classes": 0, "init_values": 1.0, **SWIGLU},
    ),
    "dinov2_registers": (
        "Dinov2WithRegistersModel", "Dinov2WithRegisters", {**COMMON, "num_register_tokens": 3},
        "ViT", {**REGISTERS, "mlp_ratio": 4, "num_classes": 0},
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViT", {**SIZES, "num_register_tokens": 3}, "Eva", DINOV3),
    "dinov3_gated": (
        "DINOv3ViTModel", "DINOv3ViT",
        {**SIZES, "num_register_tokens": 3, "use_gated_mlp": True, "hidden_act": "silu"},
        "Eva", {**DINOV3, "swiglu_mlp": True, "swiglu_align_to": 8},
    ),
    "clip": (
        "CLIPVisionModelWithProjection", "CLIPVision", {**SIZES, "projection_dim": CLASSES},
        "ViT", CLIP,
    ),
    "clip_without_projection": (
        "CLIPVisionModel", "CLIPVision", SIZES, "ViT", {**CLIP, "num_classes": 0},
    ),
    "siglip": ("SiglipVisionModel", "SiglipVision", SIZES, "ViT", SIGLIP),
    "siglip_classifier": (
        "SiglipForImageClassification", "Siglip", {"vision_config": SIZES}, "ViT",
        {**SIGLIP, "global_pool": "avg", "fc_norm": False, "num_classes": CLASSES},
    ),
    "swin": (
        "SwinForImageClassification", "Swin",
        {
            "image_size": SIZE, "patch_size": 2, "embed_dim": 16, "depths": [2, 1],
            "num_heads": [2, 4], "window_size": 4, "mlp_ratio": 2.0,
        },
        "Swin",
        {
            "img_size": SIZE, "patch_size": 2, "embed_dim": 16, "depths": (2, 1),
            "num_heads": (2, 4), "window_size": 4, "mlp_ratio": 2.0, "num_classes": CLASSES,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def timm():
    """timm's classes."""
    pytest.importorskip("torch")
    with stand_ins.torchvision():
        pytest.importorskip("timm")
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.eva import Eva
        from timm.models.swin_transformer import SwinTransformer
        from timm.models.vision_transformer import VisionTransformer
    return {
        "ViT": VisionTransformer,
        "Distilled": VisionTransformerDistilled,
        "Eva": Eva,
        "Swin": SwinTransformer,
    }


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def randomised(model):
    """The model with every array random, so that no name can go unnoticed."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.normal_(0.0, 0.3)
            if ("norm" in name and name.endswith("weight")) or "layrnorm.weight" in name:
                value.add_(1.0)
    return model.eval()


def arrays(model):
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


def images(size=SIZE):
    import torch

    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def rename(state, notes=None):
    return spelled(state, [] if notes is None else notes)


def ours(timm, kind, options):
    """timm's model of that class."""
    from functools import partial

    import torch
    from timm.layers import get_act_layer
    from timm.layers.mlp import SwiGLU

    options = dict(options)
    if "eps" in options:
        options["norm_layer"] = partial(torch.nn.LayerNorm, eps=options.pop("eps"))
    if "mlp_layer" in options:
        options["mlp_layer"] = SwiGLU
    if "act_layer" in options:
        options["act_layer"] = get_act_layer(options["act_layer"])
    if kind == "Eva":
        options = {k: v for k, v in OURS.items() if k not in options} | options
    return timm[kind](**options).eval()


def filled(model, state):
    """timm's model with a renamed state, after what timm stores otherwise by design."""
    import torch

    own = model.state_dict()
    state = dict(state)
    if "reg_token" in own and "pos_embed" in own:  # timm adds the position to the class token
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    for name in list(state):
        if name.endswith("attn.qkv.bias") and name not in own:  # Eva keeps no bias of keys
            q, k, v = np.split(state.pop(name), 3)
            assert not k.any()
            state[name.replace("qkv.bias", "q_bias")] = q
            state[name.replace("qkv.bias", "v_bias")] = v
        elif name.endswith(".gamma") and name not in own:
            block, scale, _ = name.rsplit(".", 2)
            state[f"{block}.gamma_{scale[-1]}"] = state.pop(name)
    buffers = {n: v for n, v in own.items() if "k_bias" in n or "relative_position_index" in n}
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in state.items()}
    model.load_state_dict(tensors | buffers, strict=True)
    return model


def logits(outputs):
    """What timm's ``forward`` is to compute, of what transformers' says."""
    if outputs.__class__.__name__.startswith("DeiTForImage"):
        return outputs.logits
    for name in ("logits", "image_embeds", "pooler_output"):
        if outputs.get(name) is not None:
            return outputs[name]
    raise AssertionError(outputs.keys())


def theirs(transformers, family):
    name, config, options, *_ = FAMILIES[family]
    config = getattr(transformers, f"{config}Config")(**options)
    if "Classification" in name:
        config.num_labels = CLASSES
    return randomised(getattr(transformers, name)(config))


def assert_close(found, expected):
    scale = expected.abs().max()
    assert (found - expected).abs().max() <= TOLERANCE * max(scale, 1), (found, expected)


@pytest.mark.parametrize("saved", [False, True], ids=["in_memory", "in_files"])
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_models_compute_what_timms_do(family, saved, transformers, timm, tmp_path):
    import torch
    from safetensors.numpy import load_file

    model = theirs(transformers, family)
    state = arrays(model)
    if saved:  # in the names of version 4, as published
        model.save_pretrained(tmp_path)
        state = load_file(tmp_path / "model.safetensors")
    before = dict(state)
    notes = []
    renamed = rename(state, notes)
    assert state == before and notes
    assert spelled(renamed, []) is renamed
    same = filled(ours(timm, *FAMILIES[family][3:]), renamed)
    with torch.no_grad():
        assert_close(same(images()), logits(model(images())))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_becomes_a_model_of_ours(family, transformers, tmp_path):
    """Nothing but the folder is given: heads, epsilon, activation, … are read there."""
    import torch

    model = theirs(transformers, family)
    model.save_pretrained(tmp_path)
    ours = load(tmp_path)
    with torch.no_grad():
        outputs = model(images())
    pixels = images().numpy().transpose(0, 2, 3, 1)
    assert_close(torch.tensor(np.asarray(ours(pixels))), logits(outputs))
    if not ours.spec.classes and family != "siglip":
        spec = replace(ours.spec, patches=True)
        whole = load(tmp_path, spec)
        found = whole.patch_features(whole.stream(pixels)[-1])
        expected = outputs.last_hidden_state
        if family == "clip_without_projection":  # which normalises the class token alone
            expected = model.post_layernorm(expected).detach()
        assert_close(torch.tensor(np.asarray(found)), expected[:, spec.prefix :])


def timm_state(depth=DEPTH, **names):
    """A ViT's arrays in timm's names, of random numbers; ``names`` adds shapes."""
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 17, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for i in range(depth):
        layers = {
            "norm1": (WIDTH,),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "norm2": (WIDTH,),
            "mlp.fc1": (48, WIDTH),
            "mlp.fc2": (WIDTH, 48),
        }
        for layer, shape in layers.items():
            shapes[f"blocks.{i}.{layer}.weight"] = shape
            shapes[f"blocks.{i}.{layer}.bias"] = shape[:1]
    shapes |= {f"norm.{name}": (WIDTH,) for name in ("weight", "bias")}
    shapes |= {"head.weight": (CLASSES, WIDTH), "head.bias": (CLASSES,)} | names
    random = np.random.default_rng(0)
    return {n: random.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


def respelled(state, pairs):
    """The names with parts replaced, in the order of the pairs."""
    found = {}
    for name, value in state.items():
        for old, new in pairs.items():
            name = name.replace(old, new)
        found[name] = value
    return found


TORCHVISION = {
    "cls_token": "class_token",
    "pos_embed": "encoder.pos_embedding",
    "patch_embed.proj": "conv_proj",
    "attn.qkv.": "self_attention.in_proj_",
    "attn.proj": "self_attention.out_proj",
    ".norm1": ".ln_1",
    ".norm2": ".ln_2",
    "blocks.": "encoder.layers.encoder_layer_",
    "norm.": "encoder.ln.",
    "head.": "heads.head.",
}


@pytest.mark.parametrize("layers", [("mlp.0", "mlp.3"), ("mlp.linear_1", "mlp.linear_2")])
def test_torchvisions_names(layers, assert_same):
    first, second = layers
    state = timm_state()
    theirs = respelled(state, TORCHVISION | {"mlp.fc1": first, "mlp.fc2": second})
    assert not theirs.keys() & state.keys()
    assert_same(rename(theirs), state)


def test_names_of_dinos_own_code(assert_same):
    layer_scale = {f"blocks.{i}.ls{n}.gamma": (WIDTH,) for i in range(2) for n in (1, 2)}
    state = timm_state(reg_token=(1, 3, WIDTH), **layer_scale)
    more = {"mask_token": np.ones((1, WIDTH), np.float32)}
    for tokens in ("register_tokens", "storage_tokens"):
        notes = []
        theirs = respelled(state, {"reg_token": tokens, "blocks.": "blocks.0."})
        assert_same(rename(theirs | more, notes), state)
        assert "mask_token" in " ".join(notes)
    classified = respelled(state, {"head.": "linear_head."})
    assert_same(rename(classified), state)


@pytest.mark.parametrize("chunk", ["", "0."])
def test_gated_ffns_are_two_layers_whatever_they_were(chunk, assert_same):
    gated = {}
    for i in range(DEPTH):
        gated |= {f"blocks.{i}.mlp.fc1_{p}.weight": (24, WIDTH) for p in "gx"}
        gated |= {f"blocks.{i}.mlp.fc1_{p}.bias": (24,) for p in "gx"}
        gated[f"blocks.{i}.mlp.fc2.weight"] = (WIDTH, 24)
    state = {n: v for n, v in timm_state(**gated).items() if ".fc1." not in n}
    packed, apart = {}, {}
    for name, value in state.items():
        new = name.replace("blocks.", f"blocks.{chunk}").replace("fc2", "w3")
        if "fc1_g" in name:
            packed[new.replace("fc1_g", "w12")] = np.concatenate(
                [value, state[name.replace("fc1_g", "fc1_x")]]
            )
        elif "fc1_x" not in name:
            packed[new] = value
        apart[name.replace("fc1_g", "w1").replace("fc1_x", "w2").replace("fc2", "w3")] = value
    assert_same(rename(packed), state)
    assert_same(rename(apart), state)
    assert rename(state) is state


def test_packed_swiglu_activates_its_first_half_as_timm_does(timm):
    import torch
    from timm.layers.mlp import SwiGLUPacked

    options = {"mlp_ratio": 3, "mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
    packed = randomised(timm["ViT"](**OURS | options))
    apart = filled(ours(timm, "ViT", {**OURS, **SWIGLU}), rename(arrays(packed)))
    with torch.no_grad():
        assert_close(apart(images()), packed(images()))


def test_evas_projections_apart_are_joined_and_keys_get_no_bias(timm):
    import torch

    options = {"img_size": SIZE, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True}
    apart = randomised(ours(timm, "Eva", options | {"qkv_fused": False}))
    state = rename(arrays(apart))
    whole = filled(ours(timm, "Eva", options | {"qkv_fused": True}), state)
    assert not state["blocks.1.attn.qkv.bias"][WIDTH : 2 * WIDTH].any()
    with torch.no_grad():
        assert_close(whole(images()), apart(images()))


def test_masked_biases_are_applied():
    state = timm_state()
    mask = np.ones(3 * WIDTH, np.float32)
    mask[WIDTH : 2 * WIDTH] = np.nan
    found = rename(state | {"blocks.1.attn.qkv.bias_mask": mask, "rope_embed.periods": mask})
    assert found.keys() == state.keys()
    bias = state["blocks.1.attn.qkv.bias"]
    expected = np.concatenate([bias[:WIDTH], np.zeros(WIDTH), bias[2 * WIDTH :]])
    np.testing.assert_array_equal(found["blocks.1.attn.qkv.bias"], expected)


def test_masked_autoencoders_leave_their_decoder(assert_same):
    state = timm_state()
    more = {n: np.ones(3) for n in ("mask_token", "decoder_embed.weight", "decoder_pos_embed")}
    notes = []
    assert_same(rename(state | more, notes), state)
    assert "the decoder of a masked autoencoder: decoder_embed.weight and 1 more" in notes[1]


@pytest.fixture(scope="module")
def open_clip():
    pytest.importorskip("torch")
    with stand_ins.torchvision():
        pytest.importorskip("open_clip")
        from open_clip.model import CLIP
    return CLIP


def test_open_clips_tower_computes_what_timms_does(open_clip, timm):
    import torch

    vision = {
        "image_size": SIZE, "patch_size": PATCH, "width": WIDTH, "layers": DEPTH,
        "head_width": WIDTH // HEADS, "mlp_ratio": 1.5, "ls_init_value": 1.0,
    }  # fmt: skip
    text = {"vocab_size": 99, "width": WIDTH, "heads": 4, "layers": 1, "context_length": 7}
    model = randomised(open_clip(CLASSES, vision, text, quick_gelu=True))
    notes = []
    renamed = rename(arrays(model), notes)
    same = filled(ours(timm, "ViT", {**CLIP, "init_values": 1.0}), renamed)
    with torch.no_grad():
        assert_close(same(images()), model.encode_image(images()))
    assert "took the prefix 'visual.' off" in notes[0]
    assert "the text tower" in " ".join(notes) and "logit_scale" in " ".join(notes)
    alone = rename({f"module.{n}": v for n, v in arrays(model.visual).items()})
    assert alone.keys() == renamed.keys()


def test_open_clips_towers_of_timm(assert_same):
    state = timm_state()
    theirs = {f"visual.trunk.{n}": v for n, v in state.items() if not n.startswith("head.")}
    theirs["visual.head.proj.weight"] = state["head.weight"]
    theirs |= {"text.transformer.x.weight": np.ones(2), "logit_bias": np.ones(())}
    expected = state | {"head.bias": np.zeros(CLASSES, np.float32)}
    assert_same(rename(theirs), expected)


def jax_names(big_vision, scanned=False, pool=False):
    """Random arrays in Google's names and layouts."""
    d = WIDTH // HEADS
    attention, norm2, mlp = ("0", "1", "0") if big_vision else ("1", "2", "3")

    def attend(path):
        shapes = {f"{path}/out/kernel": (HEADS, d, WIDTH), f"{path}/out/bias": (WIDTH,)}
        for name in ("query", "key", "value"):
            shapes[f"{path}/{name}/kernel"] = (WIDTH, HEADS, d)
            shapes[f"{path}/{name}/bias"] = (HEADS, d)
        return shapes

    def norm(path):
        return {f"{path}/scale": (WIDTH,), f"{path}/bias": (WIDTH,)}

    def feed(path):
        shapes = {f"{path}/Dense_0/kernel": (WIDTH, 48), f"{path}/Dense_0/bias": (48,)}
        return shapes | {f"{path}/Dense_1/kernel": (48, WIDTH), f"{path}/Dense_1/bias": (WIDTH,)}

    rows = 16 if big_vision else 17
    position = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    shapes = {
        "embedding/kernel": (PATCH, PATCH, 3, WIDTH),
        "embedding/bias": (WIDTH,),
        position: (1, rows, WIDTH),
        **norm("Transformer/encoder_norm"),
    }
    for i in range(1 if scanned else DEPTH):
        path = "Transformer/encoderblock" + ("" if scanned else f"_{i}")
        block = norm(f"{path}/LayerNorm_0") | norm(f"{path}/LayerNorm_{norm2}")
        block |= attend(f"{path}/MultiHeadDotProductAttention_{attention}")
        block |= feed(f"{path}/MlpBlock_{mlp}")
        shapes |= {n: (DEPTH, *shape) if scanned else shape for n, shape in block.items()}
    if pool:
        shapes |= {"MAPHead_0/probe": (1, 1, WIDTH), **norm("MAPHead_0/LayerNorm_0")}
        shapes |= attend("MAPHead_0/MultiHeadDotProductAttention_0") | feed("MAPHead_0/MlpBlock_0")
    else:
        shapes |= {"head/kernel": (WIDTH, CLASSES), "head/bias": (CLASSES,)}
    if not big_vision:
        shapes["cls"] = (1, 1, WIDTH)
    random = np.random.default_rng(0)
    return {n: random.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}


NO_TOKEN = {**OURS, "class_token": False, "global_pool": "avg", "fc_norm": False}
NPZ = {  # names, their prefix, what is beside them, timm's options
    "vision_transformer": (jax_names(False), "", {}, OURS),
    "an_optimizers_target": (
        jax_names(False), "opt/target/", {"opt/state/step": np.ones(())}, OURS,
    ),
    "big_vision": (jax_names(True), "params/", {}, NO_TOKEN),
    "big_vision_scanned": (jax_names(True, scanned=True), "params/", {}, NO_TOKEN),
    "two_towers": (
        jax_names(True, pool=True), "params/img/",
        {"params/txt/head/bias": np.ones(3), "params/t": np.ones(1), "params/b": np.ones(1)},
        SIGLIP,
    ),
}  # fmt: skip


def npz(tmp_path, case):
    names, prefix, beside, options = NPZ[case]
    path = tmp_path / "weights.npz"
    np.savez(path, **{prefix + n: v for n, v in names.items()}, **beside)
    return path, options


@pytest.mark.parametrize("case", NPZ)
def test_jax_files_become_what_timm_reads_of_them(case, timm, tmp_path, assert_same):
    path, options = npz(tmp_path, case)
    model = ours(timm, "ViT", options)
    model.load_pretrained(str(path))
    expected = arrays(model)
    notes = []
    state = read_state(str(path))
    assert heads_of(state) == HEADS
    found = rename(state, notes)
    assert_same(found, expected)
    said = " ".join(notes)
    assert "vision_transformer, big_vision" in said
    if case == "two_towers":
        assert "the text tower: params/txt/head/bias" in said
        assert "params/t and 1 more" in said


@pytest.mark.parametrize("case", NPZ)
def test_jax_files_have_timms_names_and_shapes(case, tmp_path):
    path, _ = npz(tmp_path, case)
    found = rename(read_state(str(path)))
    assert found["blocks.1.attn.qkv.weight"].shape == (3 * WIDTH, WIDTH)
    assert found["patch_embed.proj.weight"].shape == (WIDTH, 3, PATCH, PATCH)
    assert not any("/" in name for name in found)


def test_pre_logits_are_kept_for_those_who_refuse_them():
    more = {"pre_logits/kernel": np.ones((WIDTH, WIDTH)), "pre_logits/bias": np.ones(WIDTH)}
    found = rename(jax_names(False) | more)
    assert {"pre_logits.fc.weight", "pre_logits.fc.bias"} <= found.keys()
    assert heads_of(found) is None


PREFIXES = (
    "module.", "_orig_mod.", "model.", "backbone.", "encoder.", "visual.", "vit.", "deit.",
    "module.model.", "module._orig_mod.backbone.", "teacher.backbone.", "model.vision_model.",
    "student.module.encoder.", "dinov2.", "net.anything_else.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_prefix_is_taken_off_and_said(prefix, assert_same):
    state, notes = timm_state(), []
    beside = {n: v for n, v in state.items() if n.startswith("head.")}
    theirs = {prefix + n: v for n, v in state.items() if n not in beside} | beside
    assert_same(rename(theirs, notes), state)
    assert notes == [f"took the prefix {prefix!r} off the checkpoint's names"]


@pytest.mark.parametrize("outer", ["", "_orig_mod."])
def test_the_count_of_an_averaged_model_is_left_out(outer, assert_same):
    state, notes = timm_state(), []
    count = {f"{outer}n_averaged": np.array(7)}  # torch.optim.swa_utils.AveragedModel's
    assert_same(rename(count | {f"{outer}module.{n}": v for n, v in state.items()}, notes), state)
    assert notes[1] == f"left out how many models were averaged: {outer}n_averaged"


def test_a_regnets_prefix_is_taken_off():
    names = ("stem.conv.weight", "s1.b1.conv1.conv.weight", "head.fc.weight")
    found = rename({f"model.{name}": np.ones(1) for name in names})
    assert tuple(found) == names


@pytest.mark.parametrize(
    ("taken", "other"),
    [
        ("teacher.backbone.", "student.backbone."),
        ("model_ema.", "model."),
        ("ema.", "model."),
        ("module.base_encoder.", "module.momentum_encoder."),
        ("encoder_q.", "encoder_k."),
    ],
)
def test_of_two_models_the_one_for_use_is_taken(taken, other, assert_same):
    state, notes = timm_state(), []
    both = {f"{other}{n}": v + 1 for n, v in state.items()}
    both |= {f"{other.removesuffix('backbone.')}head.mlp.0.weight": np.ones(1)}
    both |= {f"{taken}{n}": v for n, v in state.items()}
    assert_same(rename(both, notes), state)
    assert f"left out another model: {other}cls_token" in notes[1]


def test_projection_heads_are_left_out(assert_same):
    state, notes = timm_state(), []
    theirs = {f"backbone.{n}": v for n, v in state.items() if not n.startswith("head.")}
    names = ("head.mlp.0.weight", "head.last_layer.weight_g", "head.0.weight", "predictor.0.bias")
    heads = {n: np.ones(1) for n in names}
    found = rename(theirs | heads, notes)
    assert not any(name.startswith("head") for name in found)
    assert "a projection head of self-supervised training: head.mlp.0.weight" in notes[1]


def test_of_two_equal_models_none_is_guessed():
    both = {f"{tower}.{n}": v for n, v in timm_state().items() for tower in ("left", "right")}
    with pytest.raises(CheckpointError, match="2 models, under 'left.', 'right.'; save the one"):
        spelled(both, [])


def test_two_arrays_of_one_name_are_an_error():
    state = {f"model.{n}": v for n, v in timm_state().items()}
    with pytest.raises(CheckpointError, match=r"two names of the checkpoint are norm\.weight"):
        spelled(state | {"norm.weight": np.ones(1)}, [])
    state = respelled(timm_state(), TORCHVISION | {"fc1": "0", "fc2": "3"})
    state["encoder.layers.encoder_layer_0.mlp.linear_1.weight"] = np.ones(1)
    with pytest.raises(CheckpointError, match=r"both blocks\.0\.mlp\.fc1\.weight"):
        spelled(state, [])


def test_names_that_no_rule_knows_are_refused_all_at_once(transformers):
    for family in ("vit", "swin", "dinov3", "clip"):
        state = arrays(theirs(transformers, family))
        state |= {"lora.alpha": np.ones(3), "encoder.adapter.weight": np.ones((2, 3))}
        with pytest.raises(CheckpointError) as caught:
            spelled(state, [])
        assert "looks like transformers'" in str(caught.value)
        assert "lora.alpha [3]" in str(caught.value)
        assert "encoder.adapter.weight [2, 3]" in str(caught.value)


OPEN_CLIP = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj": "conv1",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    ".norm1": ".ln_1",
    ".norm2": ".ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "blocks.": "transformer.resblocks.",
    "norm.": "ln_post.",
    "head.weight": "proj",
}


def open_clip_state():
    state = {n: v for n, v in timm_state().items() if n != "head.bias"}
    state["head.weight"] = state["head.weight"].T
    state["cls_token"] = state["cls_token"][0, 0]
    state["pos_embed"] = state["pos_embed"][0]
    return respelled(state, OPEN_CLIP)


@pytest.mark.parametrize("prefix", ["", "visual.", "module.visual."])
def test_open_clips_names(prefix, assert_same):
    theirs = {prefix + name: value for name, value in open_clip_state().items()}
    expected = timm_state() | {"head.bias": np.zeros(CLASSES, np.float32)}
    assert_same(rename(theirs), expected)


FOREIGN = {
    "open_clip": open_clip_state(),
    "torchvision": respelled(timm_state(), TORCHVISION | {"fc1": "0", "fc2": "3"}),
    "vision_transformer": jax_names(False),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_an_unknown_name_is_refused(case):
    with pytest.raises(CheckpointError, match=rf"(?s){case}.*2 of its.*other\.x \[3\].*other\.y"):
        spelled(FOREIGN[case] | {"other.x": np.ones(3), "other.y": np.ones(3)}, [])


def test_arrays_of_another_rank_are_named():
    state = jax_names(False) | {"embedding/kernel": np.ones(3)}
    with pytest.raises(CheckpointError, match=r"embedding/kernel is of shape \[3\]"):
        spelled(state, [])


def test_a_missing_projection_is_named():
    path = "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/kernel"
    state = jax_names(False)
    del state[path]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.attn\.k\.weight; it is damaged"):
        spelled(state, [])
    with pytest.raises(CheckpointError, match="expected projections of one width"):
        spelled(state | {path: np.ones((3, 3, 3))}, [])


def test_attention_pooling_in_three():
    state = timm_state(**{"attn_pool.qkv.weight": (31, WIDTH)})
    with pytest.raises(CheckpointError, match="31 features"):
        spelled(state, [])


@pytest.mark.parametrize("state", [timm_state(), {"conv1.weight": np.ones((1, 3, 7, 7))}])
def test_what_needs_no_renaming_is_returned_as_it_is(state):
    notes = []
    assert spelled(state, notes) is state
    assert not notes


STEMS = (
    "deit_a_search", "deit_a_finetune", "deit_a_folded", "swin_a_search", "swin_a_finetune",
    "swin_dense_a", "swin_timm_a", "vit_dense_a", "vit_distilled_a", "regnety_a",
)  # fmt: skip


@pytest.mark.parametrize("stem", STEMS)
def test_timms_and_released_names_stay(stem, released):
    state, notes = released(stem), []
    assert spelled(state, notes) is state
    assert not notes


def test_classifiers_of_transformers_that_pool_otherwise(transformers):
    text = {"text_config": TEXT, "vision_config": SIZES}
    state = arrays(transformers.CLIPForImageClassification(transformers.CLIPConfig(**text)))
    with pytest.raises(CheckpointError, match="without the last norm"):
        spelled(state, [])
    notes = []
    rename(arrays(theirs(transformers, "siglip_classifier")), notes)
    assert "attention pooling, which its classifier does not use" in " ".join(notes)
    wide, notes = transformers.Dinov2ForImageClassification, []
    found = rename(arrays(wide(transformers.Dinov2Config(**COMMON))), notes)
    assert found["head.weight"].shape[1] == 2 * WIDTH
    assert "side by side" in notes[-1]


def test_both_of_transformers_towers(transformers):
    text = {"text_config": TEXT, "vision_config": SIZES, "projection_dim": CLASSES}
    for wrapper in ("", "module.", "model."):
        state = arrays(transformers.CLIPModel(transformers.CLIPConfig(**text)))
        state["vision_model.embeddings.position_ids"] = np.arange(17)[None]
        notes = []
        found = rename({f"{wrapper}{n}": v for n, v in state.items()}, notes)
        assert found["head.weight"].shape == (CLASSES, WIDTH)
        assert not any("text" in name for name in found)
        assert f"the text tower: {wrapper}text_model.embeddings.token_embedding" in " ".join(notes)


def test_poolers_and_masks_are_left_out(transformers):
    notes = []
    found = rename(arrays(transformers.ViTModel(transformers.ViTConfig(**SIZES))), notes)
    assert not any("pooler" in name for name in found)
    assert "a pooler behind the class token: pooler.dense.weight and 1 more" in notes[0]


def test_the_page_lists_every_spelling_and_what_it_was_checked_against():
    rows = {spelling.title: spelling.checked for spelling in SPELLINGS if spelling.checked}
    assert {spelling.title for spelling in SPELLINGS} == rows.keys()
    lines = [f"| {title} | {checked} |" for title, checked in sorted(rows.items())]
    table = "\n".join(["| names of | checked against |", "|---|---|", *lines])
    text = (Path(__file__).parents[2] / "docs/backbones.md").read_text()
    written = text.partition("<!-- spellings -->\n")[2].partition("\n<!-- /spellings -->")[0]
    assert written == table, f"put this between the marks in docs/backbones.md:\n{table}"


def every_state(transformers, folder):
    """States as the tests above rename them, in every spelling."""
    from safetensors.numpy import load_file

    for family in FAMILIES:
        model = theirs(transformers, family)
        model.save_pretrained(folder / family)
        yield from (arrays(model), load_file(folder / family / "model.safetensors"))
    scales = {f"blocks.0.ls{n}.gamma": (WIDTH,) for n in (1, 2)}
    dino = timm_state(reg_token=(1, 3, WIDTH), **scales)
    gated = {f"blocks.0.{c}mlp.{w}.bias": np.ones(2) for c in ("", "0.") for w in ("w12", "w3")}
    apart = {f"blocks.1.mlp.{w}.bias": np.ones(2) for w in ("w1", "w2")}
    heads = {n: np.ones(2) for n in ("linear_head.bias", "blocks.0.attn.q_proj.weight")}
    yield respelled(dino, {"reg_token": "register_tokens", "blocks.": "blocks.0."})
    yield dino | gated | apart | heads | {"head.proj.bias": np.ones(2)}
    more = {n: np.ones(WIDTH) for n in ("transformer.resblocks.0.ls_1.gamma", "ln_pre.bias")}
    yield open_clip_state() | more
    yield from FOREIGN.values()
    yield from (names for names, *_ in NPZ.values())
    yield jax_names(False) | {f"pre_logits/{n}": np.ones((2, 2)) for n in ("kernel", "bias")}


def test_every_rule_is_of_use_to_some_state(transformers, tmp_path):
    rules = {rule for spelling in SPELLINGS for rule in spelling.rules}
    used = set()
    for state in every_state(transformers, tmp_path):
        for spelling in SPELLINGS:
            prefix = find(spelling, state)
            if prefix is not None:
                names = unstacked(take_off(spelling, prefix, state, []))
                used |= {next((r for r in spelling.rules if r.named(n)), None) for n in names}
                break
    assert not [rule.source for rule in rules - used]


def test_of_a_model_nobody_knows_the_nearest_is_named():
    known = {f"blocks.{i}.norm{n}.weight": np.ones(8) for i in range(4) for n in (1, 2)}
    stem = {"stem.convolution.weight": np.ones((8, 3, 4, 4))}
    with pytest.raises(CheckpointError, match=r"nearest is timm's ViT.*no stem\.convolution"):
        recognise(known | stem)
    unlike = {f"stages.{i}.conv.weight": np.ones((8, 8, 3, 3)) for i in range(9)}
    with pytest.raises(CheckpointError, match="this one has 10 names") as error:
        recognise(unlike | stem)
    assert "nearest" not in str(error.value)
