"""ViTs and Swins in timm's many spellings, rewritten as the plain model they are equal to.

Names and shapes do not tell everything: see ``facts`` for the rest. Norms after the layers cannot
be seen at all, nor whether the patches are averaged after the last norm where there is a class
token to look at.
"""

import itertools
import math
import re
from collections.abc import Iterator

import numpy as np

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError
from spvit_jax.convert.facts import UNKNOWN, Facts
from spvit_jax.convert.positions import filled

CONVERTS = """\
what converts: ViTs of any width, depth, heads and patch size, with learned or rotary positions,
one, two or no class token, registers, a norm before the blocks, normalised queries and keys, gated
FFNs, token, average or attention pooling, with or without layer scale and head; Swin (the first
version) of any width, depths, heads and window. Train or choose one of these."""

NO_COUNTERPART = (  # in a name of the checkpoint, and what it is a part of
    (r"\.mlp\.(norm|grn)\b", "a norm inside the FFN"),
    (r"\.attn\.(norm|sub_norm)\b", "a norm inside attention"),
    (r"\.attn\.lambda_", "differential attention"),
    (r"\.attn\.proj_[lw]\b", "talking heads"),
    (r"\.attn\.logit_scale\b", "cosine attention (Swin V2)"),
    (r"\.(cpb_mlp|meta_mlp)\b", "relative positions by an MLP (Swin V2)"),
    (r"rel_pos|^blocks\..*relative_position_bias", "relative positions in a ViT"),
    (r"(^|\.)rope\.freqs\b", "a rotary position embedding of learned frequencies"),
    (r"^absolute_pos_embed$", "an absolute position embedding in a Swin"),
    (r"^pre_logits\b", "a pre-logits layer"),
    (r"^patch_embed\.backbone\b", "a hybrid stem"),
    (r"^patch_embed\.(proj\.\d|conv|stem)", "a stem of several convolutions"),
    (r"^blocks\.\d+\.(attns|ffns|in_proj|in_norm)\b", "parallel attention and FFN"),
    (r"^blocks_token_only\b", "class attention (CaiT)"),
    (r"^pixel_embed\b|\.attn_in\b", "a transformer inside each patch (TNT)"),
)
LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")
OUTSIDE = ("patch_embed.proj", "head", "attn_pool.q", "attn_pool.kv", "attn_pool.proj")
SCALES = (  # layer scale, and the layer it multiplies the output of
    ("ls1.gamma", "attn.proj"),
    ("ls2.gamma", "mlp.fc2"),
    ("gamma_1", "attn.proj"),
    ("gamma_2", "mlp.fc2"),
)


def plain(state: State, facts: Facts = UNKNOWN) -> State:
    """The same function in the names that the tables know; any other family's state as it is.

    Layer scale is folded into the layer before it; layers without bias get one of zeros, as do
    keys where only queries and values have one; class tokens and registers without a position get
    one of zeros. What is stored apart or together otherwise, ``spellings`` has regrouped.

    Args:
      state: a checkpoint in timm's names; not changed.
      facts: what is said of it besides: which of its positions are of patches.

    Raises:
      CheckpointError: the model is none of ours; names every feature that has no counterpart.
    """
    features = dict(_foreign_names(state)) | dict(_foreign_shapes(state))
    if features:
        lines = "\n  ".join(f"{feature}: {name}" for feature, name in features.items())
        raise CheckpointError(
            f"the checkpoint's model is none that can be built here:\n  {lines}\n{CONVERTS}"
        )
    state = dict(state)
    _join_biases(state)
    _fill_biases(state)
    _fold_scales(state)
    return filled(state, facts)


def _foreign_names(state: State) -> Iterator[tuple[str, str]]:
    """Each feature that a name gives away, and the first such name."""
    for pattern, feature in NO_COUNTERPART:
        for name in state:
            if re.search(pattern, name):
                yield feature, name
                break


def _foreign_shapes(state: State) -> Iterator[tuple[str, str]]:
    """Each feature given away by a shape or by what is missing, and where."""
    vit = any(re.match(r"blocks\.0\.attn\.(qkv|q_proj)\.", name) for name in state)
    swin = any(name.startswith("layers.0.blocks.0.attn.qkv.") for name in state)
    if not vit and not swin:
        return
    patches = state.get("patch_embed.proj.weight", np.empty((0, 3, 0, 0)))
    if patches.ndim != 4 or patches.shape[2] != patches.shape[3]:
        yield "patches that are no squares", f"patch_embed.proj.weight {list(patches.shape)}"
    if vit and "patch_embed.norm.weight" in state:
        yield "a norm after the patch embedding of a ViT", "patch_embed.norm.weight"
    if swin and "patch_embed.norm.weight" not in state:
        yield "no norm after the patch embedding", "patch_embed.norm.weight is missing"
    windows = _windows(state)
    if any(after > before for before, after in itertools.pairwise(windows)):
        yield "windows that grow from stage to stage", f"{windows} tokens a side"
    norms = [name for name in state if re.search(r"norm\d?\.weight$", name)]
    if norms and not any(_bias(name) in state for name in norms):
        yield "norms without bias (LayerNorm or RMSNorm)", f"{_bias(norms[0])} is missing"


def _windows(state: State) -> list[int]:
    """The tokens per side of each stage's windows, by the first block of each."""
    ending = "attn.relative_position_bias_table"
    tables = (state[block + ending] for block in _owners(state, ending) if ".blocks.0." in block)
    return [(math.isqrt(len(table)) + 1) // 2 for table in tables if table.ndim == 2]


def _bias(weight: str) -> str:
    return weight.removesuffix("weight") + "bias"


def _owners(state: State, ending: str) -> list[str]:
    """The blocks that have the name ``ending``, each as what comes before it."""
    pattern = re.compile(rf"\bblocks\.\d+\.{re.escape(ending)}$")
    return [name.removesuffix(ending) for name in state if pattern.search(name)]


def _join_biases(state: State) -> None:
    """BEiT's biases of queries and values, its keys having none, as one."""
    for block in _owners(state, "attn.q_bias"):
        if f"{block}attn.v_bias" in state:
            q, v = state.pop(f"{block}attn.q_bias"), state.pop(f"{block}attn.v_bias")
            k = state.pop(f"{block}attn.k_bias", np.zeros_like(q))
            state[f"{block}attn.qkv.bias"] = np.hstack([q, k, v])


def _fill_biases(state: State) -> None:
    """Zeros for a bias that no block has; one missing here or there is a damaged checkpoint."""
    for layer in OUTSIDE if _owners(state, "attn.qkv.weight") else ():
        weight = state.get(f"{layer}.weight")
        if weight is not None and f"{layer}.bias" not in state:
            state[f"{layer}.bias"] = np.zeros(weight.shape[:1], weight.dtype)
    for layer in LAYERS:
        if not _owners(state, f"{layer}.bias"):
            for block in _owners(state, f"{layer}.weight"):
                weight = state[f"{block}{layer}.weight"]
                state[f"{block}{layer}.bias"] = np.zeros(weight.shape[:1], weight.dtype)


def _fold_scales(state: State) -> None:
    """Layer scale, where every block has it; a gamma that stays is reported as unexpected."""
    for scale, layer in SCALES:
        gammas = {block: state[f"{block}{scale}"].shape for block in _owners(state, scale)}
        weights = {b: state[f"{b}{layer}.weight"].shape for b in _owners(state, f"{layer}.weight")}
        if gammas != {block: shape[:1] for block, shape in weights.items()}:
            continue
        for block in gammas:
            gamma = state.pop(f"{block}{scale}").astype(np.float64)
            for name in (f"{block}{layer}.weight", f"{block}{layer}.bias"):
                if name in state:
                    scaled = (state[name].T * gamma).T
                    state[name] = scaled.astype(state[name].dtype)
