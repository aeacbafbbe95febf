"""transformers' names: those of its files, which are of version 4, and of its models since 5."""

from spvit_jax.convert.spellings.rules import Rule, Spelling, batched, token

BLOCK = "(encoder.layer|layer|layers|model.layer).{i}"
MASK = (r"(^|\.)mask_token$", "the token of masked patches")
POSITION_IDS = (r"(^|\.)position_ids$", "counted positions")
POOLER = (r"^pooler\.", "a pooler behind the class token")
DECODER = (r"^decoder\.", "the decoder of a masked autoencoder")
PATCHES = "embeddings.patch_embeddings.projection"

VIT = Spelling(
    "transformers' ViT, DeiT, DINOv2 or DINOv3",
    f"{PATCHES}.weight",
    (),
    (
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.distillation_token", "dist_token"),
        Rule("embeddings.register_tokens", "reg_token"),
        Rule("embeddings.position_embeddings", "pos_embed"),
        Rule("embeddings.patch_embeddings(.projection|).{w}", "patch_embed.proj.{w}"),
        Rule(f"{BLOCK}.(layernorm_before|norm1).{{w}}", "blocks.{i}.norm1.{w}"),
        Rule(f"{BLOCK}.(layernorm_after|norm2).{{w}}", "blocks.{i}.norm2.{w}"),
        Rule(f"{BLOCK}.attention.{{p}}_proj.{{w}}", "blocks.{i}.attn.{p}.{w}"),
        Rule(f"{BLOCK}.attention.attention.query.{{w}}", "blocks.{i}.attn.q.{w}"),
        Rule(f"{BLOCK}.attention.attention.key.{{w}}", "blocks.{i}.attn.k.{w}"),
        Rule(f"{BLOCK}.attention.attention.value.{{w}}", "blocks.{i}.attn.v.{w}"),
        Rule(f"{BLOCK}.attention.(o_proj|output.dense).{{w}}", "blocks.{i}.attn.proj.{w}"),
        Rule(f"{BLOCK}.layer_scale{{n}}.lambda1", "blocks.{i}.ls{n}.gamma"),
        Rule(f"{BLOCK}.(mlp.fc1|intermediate.dense).{{w}}", "blocks.{i}.mlp.fc1.{w}"),
        Rule(f"{BLOCK}.(mlp.fc2|output.dense).{{w}}", "blocks.{i}.mlp.fc2.{w}"),
        Rule(f"{BLOCK}.mlp.weights_in.{{w}}", "blocks.{i}.mlp.fc1.{w}"),
        Rule(f"{BLOCK}.mlp.gate_proj.{{w}}", "blocks.{i}.mlp.fc1_g.{w}"),
        Rule(f"{BLOCK}.mlp.up_proj.{{w}}", "blocks.{i}.mlp.fc1_x.{w}"),
        Rule(f"{BLOCK}.mlp.(down_proj|weights_out).{{w}}", "blocks.{i}.mlp.fc2.{w}"),
        Rule("(layernorm|norm).{w}", "norm.{w}"),
        Rule("(classifier|cls_classifier).{w}", "head.{w}"),
        Rule("distillation_classifier.{w}", "head_dist.{w}"),
    ),
    (MASK, POOLER, DECODER, (r"^rope_embeddings\.", "frequencies of the rotary embedding")),
    checked="outputs and patches of random models of transformers 5.24: ViT, DeiT, DINOv2 with and"
    " without SwiGLU and registers, DINOv3 with and without; of a real ViT-S/14",
)
DINOV3 = Spelling(VIT.title, "embeddings.patch_embeddings.weight", (), VIT.rules, VIT.ignored)

STAGE = "encoder.layers.{s}.blocks.{i}"
SWIN_BLOCK = "layers.{s}.blocks.{i}"
BIASES = "relative_position_bias_table"

SWIN = Spelling(
    "transformers' Swin",
    f"{PATCHES}.weight",
    ("encoder.layers.0.blocks.0.",),
    (
        Rule(f"{PATCHES}.{{w}}", "patch_embed.proj.{w}"),
        Rule("embeddings.norm.{w}", "patch_embed.norm.{w}"),
        Rule(f"{STAGE}.layernorm_before.{{w}}", f"{SWIN_BLOCK}.norm1.{{w}}"),
        Rule(f"{STAGE}.layernorm_after.{{w}}", f"{SWIN_BLOCK}.norm2.{{w}}"),
        Rule(f"{STAGE}.attention.{{p}}_proj.{{w}}", f"{SWIN_BLOCK}.attn.{{p}}.{{w}}"),
        Rule(f"{STAGE}.attention.self.query.{{w}}", f"{SWIN_BLOCK}.attn.q.{{w}}"),
        Rule(f"{STAGE}.attention.self.key.{{w}}", f"{SWIN_BLOCK}.attn.k.{{w}}"),
        Rule(f"{STAGE}.attention.self.value.{{w}}", f"{SWIN_BLOCK}.attn.v.{{w}}"),
        Rule(f"{STAGE}.attention.(o_proj|output.dense).{{w}}", f"{SWIN_BLOCK}.attn.proj.{{w}}"),
        Rule(
            f"{STAGE}.attention.(self|relative_position_bias).{BIASES}",
            f"{SWIN_BLOCK}.attn.{BIASES}",
        ),
        Rule(f"{STAGE}.(mlp.fc1|intermediate.dense).{{w}}", f"{SWIN_BLOCK}.mlp.fc1.{{w}}"),
        Rule(f"{STAGE}.(mlp.fc2|output.dense).{{w}}", f"{SWIN_BLOCK}.mlp.fc2.{{w}}"),
        Rule("encoder.layers.{s}.downsample.norm.{w}", "layers.{next}.downsample.norm.{w}"),
        Rule(
            "encoder.layers.{s}.downsample.reduction.weight",
            "layers.{next}.downsample.reduction.weight",
        ),
        Rule("layernorm.{w}", "norm.{w}"),
        Rule("classifier.{w}", "head.fc.{w}"),
    ),
    (MASK, DECODER, (r"\.relative_position_index$", "counted positions")),
    checked="outputs of random models of transformers 5.24",
)

CLIP = Spelling(
    "transformers' CLIP or SigLIP",
    "embeddings.patch_embedding.weight",
    (),
    (
        Rule("embeddings.class_embedding", "cls_token", token),
        Rule("embeddings.patch_embedding.{w}", "patch_embed.proj.{w}"),
        Rule("embeddings.position_embedding.weight", "pos_embed", batched),
        Rule("pre_layrnorm.{w}", "norm_pre.{w}"),
        Rule("encoder.layers.{i}.layer_norm{n}.{w}", "blocks.{i}.norm{n}.{w}"),
        Rule("encoder.layers.{i}.self_attn.{p}_proj.{w}", "blocks.{i}.attn.{p}.{w}"),
        Rule("encoder.layers.{i}.self_attn.out_proj.{w}", "blocks.{i}.attn.proj.{w}"),
        Rule("encoder.layers.{i}.mlp.fc{n}.{w}", "blocks.{i}.mlp.fc{n}.{w}"),
        Rule("post_layernorm.{w}", "norm.{w}"),
        Rule("head.probe", "attn_pool.latent"),
        Rule("head.attention.in_proj_{w}", "attn_pool.qkv.{w}"),
        Rule("head.attention.out_proj.{w}", "attn_pool.proj.{w}"),
        Rule("head.layernorm.{w}", "attn_pool.norm.{w}"),
        Rule("head.mlp.fc{n}.{w}", "attn_pool.mlp.fc{n}.{w}"),
        Rule("visual_projection.weight", "head.weight"),
        Rule("classifier.{w}", "head.{w}"),
    ),
    (POSITION_IDS,),
    checked="outputs and patches of random models of transformers 5.24, CLIP with and without"
    " projection",
)
SPELLINGS = (SWIN, VIT, DINOV3, CLIP)
