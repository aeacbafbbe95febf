"""The names and layouts of Google's JAX code: vision_transformer and big_vision."""

import re

import numpy as np

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.spellings.rules import Rule, Spelling, batched, transposed

STACKED = "Transformer/encoderblock/"


def merged(value: np.ndarray) -> np.ndarray:
    """A projection to heads, ``[D, heads, d]``, as ``[heads * d, D]``."""
    return transposed(value.reshape(value.shape[0], -1))


def from_heads(value: np.ndarray) -> np.ndarray:
    """The projection of what the heads found, ``[heads, d, D]``, as ``[D, heads * d]``."""
    return transposed(value.reshape(-1, value.shape[-1]))


def flat(value: np.ndarray) -> np.ndarray:
    """``[heads, d]`` as ``[heads * d]``."""
    return value.reshape(-1)


def patches(value: np.ndarray) -> np.ndarray:
    """``[height, width, channels, D]`` as ``[D, channels, height, width]``."""
    return np.ascontiguousarray(value.transpose(3, 2, 0, 1))


def _norm(source: str, target: str) -> tuple[Rule, ...]:
    return Rule(f"{source}/scale", f"{target}.weight"), Rule(f"{source}/bias", f"{target}.bias")


def _dense(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}/kernel", f"{target}.weight", transposed),
        Rule(f"{source}/bias", f"{target}.bias"),
    )


def _attention(source: str, target: str) -> tuple[Rule, ...]:
    rules = [
        Rule(f"{source}/out/kernel", f"{target}.proj.weight", from_heads),
        Rule(f"{source}/out/bias", f"{target}.proj.bias"),
    ]
    for name in ("query", "key", "value"):
        rules += [
            Rule(f"{source}/{name}/kernel", f"{target}.{name[0]}.weight", merged),
            Rule(f"{source}/{name}/bias", f"{target}.{name[0]}.bias", flat),
        ]
    return tuple(rules)


BLOCK = "Transformer/encoderblock_{i}"
JAX = Spelling(
    "a ViT of Google's JAX code (vision_transformer, big_vision)",
    "embedding/kernel",
    ("Transformer/encoder_norm/",),
    (
        Rule("cls", "cls_token"),
        Rule("(Transformer/posembed_input/|)pos_embedding", "pos_embed", batched),
        Rule("embedding/kernel", "patch_embed.proj.weight", patches),
        Rule("embedding/bias", "patch_embed.proj.bias"),
        *_norm(f"{BLOCK}/LayerNorm_0", "blocks.{i}.norm1"),
        *_norm(f"{BLOCK}/(LayerNorm_1|LayerNorm_2)", "blocks.{i}.norm2"),
        *_attention(
            f"{BLOCK}/(MultiHeadDotProductAttention_0|MultiHeadDotProductAttention_1)",
            "blocks.{i}.attn",
        ),
        *_dense(f"{BLOCK}/(MlpBlock_0|MlpBlock_3)/Dense_0", "blocks.{i}.mlp.fc1"),
        *_dense(f"{BLOCK}/(MlpBlock_0|MlpBlock_3)/Dense_1", "blocks.{i}.mlp.fc2"),
        *_norm("Transformer/encoder_norm", "norm"),
        Rule("MAPHead_0/probe", "attn_pool.latent"),
        *_attention("MAPHead_0/MultiHeadDotProductAttention_0", "attn_pool"),
        *_norm("MAPHead_0/LayerNorm_0", "attn_pool.norm"),
        *_dense("MAPHead_0/MlpBlock_0/Dense_0", "attn_pool.mlp.fc1"),
        *_dense("MAPHead_0/MlpBlock_0/Dense_1", "attn_pool.mlp.fc2"),
        *_dense("pre_logits", "pre_logits.fc"),
        *_dense("head", "head"),
    ),
    checked="what timm 1.0.31 reads of the same files, bit for bit",
)
SPELLINGS = (JAX,)


def unstacked(state: State) -> State:
    """Blocks that were scanned over, ``[depth, …]`` arrays, each on its own."""
    arrays: State = {}
    for name, value in state.items():
        if name.startswith(STACKED) and value.ndim:
            rest = name.removeprefix(STACKED)
            arrays |= {f"Transformer/encoderblock_{i}/{rest}": one for i, one in enumerate(value)}
        else:
            arrays[name] = value
    return arrays


def heads_of(state: State) -> int | None:
    """How many heads a state in these names says that each block has; None: it does not."""
    for name, value in state.items():
        if re.search(r"encoderblock(_\d+)?/MultiHead.*/query/kernel$", name) and value.ndim >= 3:
            return value.shape[-2]
    return None
