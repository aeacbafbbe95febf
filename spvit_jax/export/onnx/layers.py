"""Layers of every transformer here as ONNX nodes: norms, projections, FFN, convolutions."""

import math
from typing import Any, NamedTuple

import numpy as np

from spvit_jax.export.onnx.graph import Graph
from spvit_jax.models.activations import QUICK, TANH
from spvit_jax.models.layers import Attention, BatchNorm, Dense, Mlp
from spvit_jax.single_path.sharing import FoldedConv

GELU = 20  # the first opset with that operator
ATTENTION = 23


class Projected(NamedTuple):
    """Queries, keys and values by heads: ``[batch, heads, tokens, head_dim]``, values of their own.

    In windows ``[batch, windows, heads, tokens, head_dim]``.
    """

    q: str
    k: str
    v: str


def array(variable: Any) -> np.ndarray:
    """A parameter as NumPy's, in the precision it has."""
    return np.asarray(variable[...])


def norm(graph: Graph, layer: Any, x: str, times: float = 1.0) -> str:
    """Layer norm over the last axis, ``times`` a number."""
    scale, bias = (graph.weight(times * array(p)) for p in (layer.scale, layer.bias))
    return graph.op("LayerNormalization", x, scale, bias, axis=-1, epsilon=layer.epsilon)


def dense(graph: Graph, x: str, kernel: np.ndarray, bias: np.ndarray | None = None) -> str:
    """A product with ``kernel [in, out]``, and a bias."""
    x = graph.op("MatMul", x, graph.weight(kernel, "kernel"))
    return x if bias is None else graph.op("Add", x, graph.weight(bias, "bias"))


def linear(graph: Graph, layer: Dense, x: str) -> str:
    """A fully connected layer on tokens."""
    return dense(graph, x, array(layer.kernel), array(layer.bias))


def projected_out(graph: Graph, layer: Dense, x: str) -> str:
    """The output projection of attention."""
    with graph.within("out"):
        return linear(graph, layer, x)


def gemm(graph: Graph, layer: Dense, x: str) -> str:
    """A fully connected layer on ``[batch, width]``."""
    weights = graph.weight(array(layer.kernel), "kernel"), graph.weight(array(layer.bias), "bias")
    return graph.op("Gemm", x, *weights)


def head(graph: Graph, layer: Dense, x: str) -> str:
    """The classifier on ``[batch, width]``."""
    with graph.within("head"):
        return gemm(graph, layer, x)


def activation(graph: Graph, name: str, x: str) -> str:
    """One of ``models.activations``; GELU before its operator as runtimes recognise it."""
    if name == "silu":
        return graph.op("Mul", x, graph.op("Sigmoid", x))
    if name == "quick_gelu":
        return graph.op("Mul", x, graph.op("Sigmoid", graph.call("Mul", x, QUICK)))
    if graph.opset >= GELU:
        return graph.op("Gelu", x, approximate="tanh" if name == "gelu_tanh" else "none")
    if name == "gelu":
        inner = graph.op("Erf", graph.call("Div", x, math.sqrt(2)))
    else:
        cubed = graph.call("Mul", graph.op("Mul", x, graph.op("Mul", x, x)), float(TANH[1]))
        inner = graph.op("Tanh", graph.call("Mul", graph.op("Add", x, cubed), float(TANH[0])))
    return graph.call("Mul", graph.op("Mul", x, graph.call("Add", inner, 1)), 0.5)


def ffn(graph: Graph, layer: Mlp, x: str) -> str:
    """The feed-forward network of a block."""
    with graph.within("fc1"):
        units = linear(graph, layer.fc1, x)
    if layer.gate is None:
        units = activation(graph, layer.activation, units)
    else:
        with graph.within("gate"):
            opened = linear(graph, layer.gate, x)
        units = graph.op("Mul", activation(graph, layer.activation, opened), units)
    with graph.within("fc2"):
        return linear(graph, layer.fc2, units)


def weights_of(layer: Attention) -> list[tuple[np.ndarray, np.ndarray]]:
    """Kernels and biases of queries, which take the logits' scale with them, keys and values."""
    kernels, biases = (np.split(array(p), 2, -1) for p in (layer.qk.kernel, layer.qk.bias))
    value = array(layer.v.kernel), array(layer.v.bias)
    scale = 1.0 if layer.q_norm is not None else logit_scale(layer)
    query = (kernels[0] * scale).astype(value[0].dtype), (biases[0] * scale).astype(value[0].dtype)
    return [query, (kernels[1], biases[1]), value]


def logit_scale(layer: Attention) -> float:
    """What products of queries and keys are multiplied by."""
    return 1 / math.sqrt(layer.qk.kernel.shape[1] // 2 // layer.heads)


def project(graph: Graph, x: str, weights: list, heads: int, inner: tuple[int, ...]) -> tuple:
    """Projects tokens ``[batch, *inner, D]`` by several weights at once, and splits heads.

    A dimension of ``inner`` that is 0 stays as it is. The parts lie side by side among the heads:
    with an axis of their own, runtimes transpose value by value. Those whose heads are of another
    size are split off before.
    """
    kernel, bias = (np.concatenate(both, -1) for both in zip(*weights, strict=True))
    sizes = [one.shape[1] for one, _ in weights]
    many, head_dim, tokens = len(weights), sizes[0] // heads, len(inner)
    with graph.within("qkv"):
        x = dense(graph, x, kernel, bias)
    if len(set(sizes)) > 1:
        parts = zip(graph.split(x, *sizes, axis=2), sizes, strict=True)
        split = (graph.reshape(part, 0, *inner, heads, size // heads) for part, size in parts)
        order = *range(tokens), tokens + 1, tokens, tokens + 2
        return tuple(graph.transpose(part, *order) for part in split)
    x = graph.reshape(x, 0, *inner, many * heads, head_dim)
    x = graph.transpose(x, *range(tokens), tokens + 1, tokens, tokens + 2)
    return (x,) if many == 1 else graph.split(x, *[heads] * many, axis=tokens)


def attend(graph: Graph, by_heads: Projected, biases: list[str], tokens: int = 0) -> str:
    """Softmax attention, with what is added to its logits: ``[batch, tokens, heads * head_dim]``.

    ``tokens`` are those of all windows; 0: there are none.
    """
    outer = range(2 if tokens else 1)
    n = len(outer)
    keys = graph.transpose(by_heads.k, *outer, n, n + 2, n + 1)
    with graph.within("products"):
        logits = graph.op("MatMul", by_heads.q, keys)
        for bias in biases:
            logits = graph.op("Add", logits, bias)
        mixed = graph.op("MatMul", graph.op("Softmax", logits, axis=-1), by_heads.v)
    return graph.reshape(graph.transpose(mixed, *outer, n + 1, n, n + 2), 0, tokens, -1)


def convolution(graph: Graph, layer: FoldedConv, x: str) -> str:
    """A folded convolution on normalised tokens; class tokens pass."""
    geometry = layer.geometry
    prefix = geometry.prefix
    tokens = graph.slice(x, 0, prefix) if prefix else ""
    if geometry.class_only:
        return tokens
    if prefix:
        x = graph.slice(x, prefix, geometry.tokens)
    kernel, bias = array(layer.kernel), array(layer.bias)
    with graph.within("convolution"):
        if kernel.shape[1] == 1:
            y = linear(graph, layer.out, graph.op("Relu", dense(graph, x, kernel[:, 0], bias)))
        else:
            x = graph.reshape(graph.transpose(x, 0, 2, 1), 0, kernel.shape[0], *geometry.grid)
            kernel = kernel.transpose(2, 0, 1).reshape(kernel.shape[2], -1, 3, 3)
            hidden = graph.op("Relu", conv(graph, x, kernel, bias, pad=1))
            out = array(layer.out.kernel).T[..., None, None]
            y = conv(graph, hidden, out, array(layer.out.bias))
            y = graph.transpose(graph.reshape(y, 0, geometry.width, -1), 0, 2, 1)
    return graph.op("Concat", tokens, y, axis=1) if prefix else y


def conv(
    graph: Graph,
    x: str,
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    stride: int = 1,
    pad: int = 0,
    groups: int = 1,
) -> str:
    """A convolution of ``x [batch, in, h, w]`` by ``kernel [out, in / groups, size, size]``."""
    weights = graph.weight(kernel, "kernel"), graph.weight(bias, "bias")
    return graph.op("Conv", x, *weights, strides=[stride] * 2, pads=[pad] * 4, group=groups)


def norm_scale(layer: BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    """What a batch norm multiplies by and adds, with its running statistics."""
    scale = array(layer.scale) / np.sqrt(array(layer.var) + layer.EPSILON)
    return scale, array(layer.bias) - array(layer.mean) * scale
