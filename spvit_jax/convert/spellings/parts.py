"""Arrays that code bases keep apart or together, as timm has them; a gated FFN always apart."""

import re

import numpy as np

from spvit_jax.convert.checkpoint import State
from spvit_jax.convert.errors import CheckpointError

APART = (  # what stands before the parts, the parts in their order, and the whole
    (r"(.*\bblocks\.\d+\.attn)\.q\.weight", "qkv", "{0}.qkv"),
    (r"(attn_pool)\.k\.weight", "kv", "{0}.kv"),
)
MASK = "attn.qkv.bias_mask"  # DINOv3's own, of ones, and of zeros or no numbers for the keys
BLOCK = r"blocks\.\d+\."


def regrouped(state: State) -> State:
    """Queries, keys and values together, gate and input of an FFN apart.

    A bias that only some of the queries, keys and values have is of zeros for the others.

    Raises:
      CheckpointError: some of the parts are missing, or do not fit together.
    """
    state = dict(state)
    for pattern, parts, whole in APART:
        for name in list(state):
            if match := re.fullmatch(pattern, name):
                _join(state, match[1], parts, whole.format(match[1]))
    for name in list(state):
        if re.fullmatch(BLOCK + re.escape(MASK), name):
            _mask(state, name)
        elif re.fullmatch(BLOCK + r"mlp\.fc1\.weight", name):
            _split_gate(state, name.removesuffix("fc1.weight"))
        elif re.fullmatch(BLOCK + r"mlp\.fc1_x\.weight", name):
            _without_gate(state, name.removesuffix("fc1_x.weight"))
    _split_pool(state)
    return state


def _join(state: State, owner: str, parts: str, whole: str) -> None:
    weights = {p: state.pop(f"{owner}.{p}.weight", None) for p in parts}
    biases = {p: state.pop(f"{owner}.{p}.bias", None) for p in parts}
    missing = [f"{owner}.{p}.weight" for p, value in weights.items() if value is None]
    if missing:
        raise CheckpointError(
            f"the checkpoint has some of the queries, keys and values of {owner}, but not, in"
            f" timm's names, {', '.join(missing)}; it is damaged or only a part"
        )
    known = [value for value in weights.values() if value is not None]
    if any(value.ndim != 2 or value.shape[1:] != known[0].shape[1:] for value in known):
        shapes = ", ".join(f"{p} {list(v.shape)}" for p, v in zip(parts, known, strict=True))
        raise CheckpointError(f"{owner}: expected projections of one width, got {shapes}")
    state[f"{whole}.weight"] = np.concatenate(known)
    if any(value is not None for value in biases.values()):
        state[f"{whole}.bias"] = np.concatenate(
            [
                np.zeros(len(weight), weight.dtype) if bias is None else bias
                for weight, bias in zip(known, biases.values(), strict=True)
            ]
        )


def _mask(state: State, name: str) -> None:
    bias, mask = name.removesuffix("_mask"), state.pop(name)
    if bias in state:
        state[bias] = np.where(mask == 1, state[bias], np.zeros_like(state[bias]))


def _split_gate(state: State, mlp: str) -> None:
    """A packed SwiGLU's first half is the gate, the one that is activated."""
    units, second = state[f"{mlp}fc1.weight"].shape[0], state.get(f"{mlp}fc2.weight")
    if second is None or second.ndim != 2 or units != 2 * second.shape[1]:
        return
    for name in ("weight", "bias"):
        if f"{mlp}fc1.{name}" in state:
            gate, value = np.split(state.pop(f"{mlp}fc1.{name}"), 2)
            state[f"{mlp}fc1_g.{name}"], state[f"{mlp}fc1_x.{name}"] = gate, value


def _without_gate(state: State, mlp: str) -> None:
    """What goes up beside no gate is a plain FFN's first layer."""
    if f"{mlp}fc1_g.weight" in state:
        return
    for name in ("weight", "bias"):
        if f"{mlp}fc1_x.{name}" in state:
            state[f"{mlp}fc1.{name}"] = state.pop(f"{mlp}fc1_x.{name}")


def _split_pool(state: State) -> None:
    """Attention pooling projects its one query apart from keys and values."""
    for name in ("weight", "bias"):
        whole = state.pop(f"attn_pool.qkv.{name}", None)
        if whole is None:
            continue
        if len(whole) % 3:
            raise CheckpointError(
                f"attention pooling projects to {len(whole)} features, which are no queries, keys"
                " and values of one width"
            )
        width = len(whole) // 3
        state[f"attn_pool.q.{name}"] = whole[:width]
        state[f"attn_pool.kv.{name}"] = whole[width:]
