"""OpenAI's and open_clip's names of CLIP's vision tower, and torchvision's of its ViT."""

from spvit_jax.convert.spellings.rules import Rule, Spelling, batched, token, transposed

BLOCK = "transformer.resblocks.{i}"
OPEN_CLIP = Spelling(
    "the vision tower of OpenAI's CLIP or open_clip",
    "ln_post.weight",
    ("class_embedding", "conv1.weight"),
    (
        Rule("class_embedding", "cls_token", token),
        Rule("positional_embedding", "pos_embed", batched),
        Rule("conv1.{w}", "patch_embed.proj.{w}"),
        Rule("ln_pre.{w}", "norm_pre.{w}"),
        Rule(f"{BLOCK}.ln_{{n}}.{{w}}", "blocks.{i}.norm{n}.{w}"),
        Rule(f"{BLOCK}.attn.in_proj_{{w}}", "blocks.{i}.attn.qkv.{w}"),
        Rule(f"{BLOCK}.attn.out_proj.{{w}}", "blocks.{i}.attn.proj.{w}"),
        Rule(f"{BLOCK}.ls_{{n}}.gamma", "blocks.{i}.ls{n}.gamma"),
        Rule(f"{BLOCK}.mlp.c_fc.{{w}}", "blocks.{i}.mlp.fc1.{w}"),
        Rule(f"{BLOCK}.mlp.c_proj.{{w}}", "blocks.{i}.mlp.fc2.{w}"),
        Rule("ln_post.{w}", "norm.{w}"),
        Rule("proj", "head.weight", transposed),
    ),
    checked="outputs of random towers of open_clip 3.3",
)

LAYER = "encoder.layers.encoder_layer_{i}"
TORCHVISION = Spelling(
    "torchvision's ViT",
    "conv_proj.weight",
    ("encoder.pos_embedding",),
    (
        Rule("class_token", "cls_token"),
        Rule("encoder.pos_embedding", "pos_embed"),
        Rule("conv_proj.{w}", "patch_embed.proj.{w}"),
        Rule(f"{LAYER}.ln_{{n}}.{{w}}", "blocks.{i}.norm{n}.{w}"),
        Rule(f"{LAYER}.self_attention.in_proj_{{w}}", "blocks.{i}.attn.qkv.{w}"),
        Rule(f"{LAYER}.self_attention.out_proj.{{w}}", "blocks.{i}.attn.proj.{w}"),
        Rule(f"{LAYER}.mlp.(0|linear_1).{{w}}", "blocks.{i}.mlp.fc1.{w}"),
        Rule(f"{LAYER}.mlp.(3|linear_2).{{w}}", "blocks.{i}.mlp.fc2.{w}"),
        Rule("encoder.ln.{w}", "norm.{w}"),
        Rule("heads.head.{w}", "head.{w}"),
    ),
    checked="its names, by hand",
)
SPELLINGS = (OPEN_CLIP, TORCHVISION)
