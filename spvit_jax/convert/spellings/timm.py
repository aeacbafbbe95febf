"""timm's names and those of the code it took them from: DINO, DINOv2, DINOv3, MAE, EVA."""

from spvit_jax.convert.spellings.rules import Rule, Spelling

DINO_HEAD = "a projection head of self-supervised training"

TIMM = Spelling(
    "timm's ViT, EVA or Swin, DINO's or MAE's own",
    "patch_embed.proj.weight",
    (),
    (
        Rule("(register_tokens|storage_tokens)", "reg_token"),
        Rule("blocks.{s}.{i}.ls{n}.gamma", "blocks.{i}.ls{n}.gamma"),
        Rule("blocks.{s}.{i}.norm{n}.{w}", "blocks.{i}.norm{n}.{w}"),
        Rule("blocks.{s}.{i}.attn.qkv.{w}", "blocks.{i}.attn.qkv.{w}"),
        Rule("blocks.{s}.{i}.attn.proj.{w}", "blocks.{i}.attn.proj.{w}"),
        Rule("blocks.{s}.{i}.mlp.fc{n}.{w}", "blocks.{i}.mlp.fc{n}.{w}"),
        Rule("blocks.{s}.{i}.mlp.w12.{w}", "blocks.{i}.mlp.fc1.{w}"),
        Rule("blocks.{s}.{i}.mlp.w3.{w}", "blocks.{i}.mlp.fc2.{w}"),
        Rule("blocks.{i}.mlp.w12.{w}", "blocks.{i}.mlp.fc1.{w}"),
        Rule("blocks.{i}.mlp.w1.{w}", "blocks.{i}.mlp.fc1_g.{w}"),
        Rule("blocks.{i}.mlp.w2.{w}", "blocks.{i}.mlp.fc1_x.{w}"),
        Rule("blocks.{i}.mlp.w3.{w}", "blocks.{i}.mlp.fc2.{w}"),
        Rule("blocks.{i}.attn.{p}_proj.{w}", "blocks.{i}.attn.{p}.{w}"),
        Rule("head.proj.{w}", "head.{w}"),
        Rule("linear_head.{w}", "head.{w}"),
    ),
    (
        (r"^mask_token$", "the token of masked patches"),
        (r"^decoder_|^decoder\.", "the decoder of a masked autoencoder"),
        (r"^head\.(mlp2?|last_layer2?|\d+)\.", DINO_HEAD),
        (r"^(dino_head|ibot_head|predictor|projectors)\.", DINO_HEAD),
        (r"^local_cls_norm\.", "a norm of small crops, in training"),
        (r"^rope_embed\.periods$|^rope\.periods$", "frequencies of the rotary embedding"),
    ),
    lenient=True,
    checked="logits, features and gradients of random models of timm 1.0.31; DINO's and MAE's own"
    " names by hand",
)
REGNET = Spelling(
    "timm's RegNet",
    "stem.conv.weight",
    ("s1.b1.conv1.",),
    (),
    (),
    lenient=True,
    checked="logits of random models of timm 1.0.31",
)
SPELLINGS = (TIMM, REGNET)
