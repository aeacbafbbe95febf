"""Attention as ONNX nodes: over all tokens, in windows, and pooling."""

import math
from typing import Any

import numpy as np

from spvit_jax.export.onnx import layers
from spvit_jax.export.onnx.graph import Graph
from spvit_jax.export.onnx.layers import Projected, array, attend
from spvit_jax.export.onnx.tokens import Stream
from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Attention
from spvit_jax.models.pooling import AttentionPool
from spvit_jax.models.rotary import Rotary
from spvit_jax.models.swin import (
    WindowAttention,
    relative_position_index,
    shift_mask,
    window_of,
)


def over_tokens(
    graph: Graph, layer: Attention, geometry: Geometry, x: str, stream: Stream
) -> tuple[str, str]:
    """Attends over normalised ``x`` of all tokens.

    Returns:
      The branch of the tokens that are read, and the heads' average keys.
    """
    if isinstance(layer, WindowAttention):
        return in_windows(graph, layer, x), ""
    weights, read = layers.weights_of(layer), geometry.read
    plain = layer.q_norm is None and layer.rotary is None and stream.sizes is None
    if plain and graph.opset >= layers.ATTENTION:
        return _operator(graph, layer, geometry, x)
    if read >= geometry.tokens:
        q, k, v = layers.project(graph, x, weights, layer.heads, (0,))
    else:
        (q,) = layers.project(graph, graph.slice(x, 0, read), weights[:1], layer.heads, (0,))
        k, v = layers.project(graph, x, weights[1:], layer.heads, (0,))
    means = graph.reduce("ReduceMean", k, [1])
    if layer.q_norm is not None:
        q = layers.norm(graph, layer.q_norm, q, times=layers.logit_scale(layer))
        k = layers.norm(graph, layer.k_norm, k)
    if layer.rotary is not None:
        turns = _turns(graph, layer.rotary, stream, layer.qk.kernel.shape[1] // 2 // layer.heads)
        k = _turned(graph, k, turns, geometry.prefix, geometry.tokens)
        q = _turned(graph, q, turns, geometry.prefix, read)
    mixed = attend(graph, Projected(q, k, v), _size_bias(graph, stream))
    return layers.projected_out(graph, layer.out, mixed), means


def _operator(graph: Graph, layer: Attention, geometry: Geometry, x: str) -> tuple[str, str]:
    """The same by the operator ``Attention``, whose runtimes take no bias of keys alone."""
    weights, read = layers.weights_of(layer), geometry.read
    widths = [kernel.shape[1] for kernel, _ in weights]
    if read >= geometry.tokens:
        kernel, bias = (np.concatenate(both, -1) for both in zip(*weights, strict=True))
        with graph.within("qkv"):
            qkv = layers.dense(graph, x, kernel, bias)
        q, k, v = graph.split(qkv, *widths, axis=2)
    else:
        first = graph.slice(x, 0, read)
        with graph.within("qkv"):
            q = layers.dense(graph, first, *weights[0])
            k, v = (layers.dense(graph, x, *pair) for pair in weights[1:])
    heads: dict[str, Any] = {"q_num_heads": layer.heads, "kv_num_heads": layer.heads, "scale": 1.0}
    mixed = graph.op("Attention", q, k, v, **heads)
    by_heads = graph.reshape(k, 0, 0, layer.heads, widths[1] // layer.heads)
    mixed = layers.projected_out(graph, layer.out, mixed)
    return mixed, graph.reduce("ReduceMean", by_heads, [2])


def _size_bias(graph: Graph, stream: Stream) -> list[str]:
    """What counts merged tokens as many times, ``[batch, 1, 1, n]``."""
    if stream.sizes is None:
        return []
    return [graph.unsqueeze(graph.transpose(graph.op("Log", stream.sizes), 0, 2, 1), 1)]


def _turns(graph: Graph, rotary: Rotary, stream: Stream, head_dim: int) -> tuple[str, str]:
    """Cosines and sines of the patches' angles, ``[batch or 1, 1, patches, head_dim / 2]``."""
    if stream.places is None:
        fixed = np.asarray(rotary.angles(None, head_dim))[:, None]
        return graph.weight(np.cos(fixed), "cos"), graph.weight(np.sin(fixed), "sin")
    bands = rotary.bands(head_dim)
    zeros = np.zeros_like(bands)
    rows = np.stack([np.concatenate([bands, zeros]), np.concatenate([zeros, bands])])
    patches = graph.slice(stream.places, rotary.prefix, np.iinfo(np.int64).max)
    angles = graph.unsqueeze(graph.op("MatMul", patches, rows.astype(graph.dtype)), 1)
    return graph.op("Cos", angles), graph.op("Sin", angles)


def _turned(graph: Graph, x: str, turns: tuple[str, str], prefix: int, tokens: int) -> str:
    """Turns the patches among ``x [batch, heads, tokens, head_dim]``."""
    if tokens <= prefix:
        return x
    cos, sin = turns
    patches = graph.slice(x, prefix, tokens, axis=2) if prefix else x
    one, other = graph.op("Split", patches, outputs=2, axis=3, **_parts(graph))
    turned = graph.op(
        "Concat",
        graph.op("Sub", graph.op("Mul", one, cos), graph.op("Mul", other, sin)),
        graph.op("Add", graph.op("Mul", other, cos), graph.op("Mul", one, sin)),
        axis=3,
    )
    if not prefix:
        return turned
    return graph.op("Concat", graph.slice(x, 0, prefix, axis=2), turned, axis=2)


def _parts(graph: Graph) -> dict[str, Any]:
    """Split says how many parts since opset 18."""
    return {"num_outputs": 2} if graph.opset >= 18 else {}


def in_windows(graph: Graph, layer: WindowAttention, x: str) -> str:
    """Attends over normalised ``x [batch, patches, D]`` in shifted windows."""
    geometry = layer.geometry
    order = window_order(geometry)
    moved = not np.array_equal(order, np.arange(len(order)))
    inner = geometry.windows, math.prod(window_of(geometry))
    x = graph.op("Gather", x, order, axis=1) if moved else x
    parts = Projected(*layers.project(graph, x, layers.weights_of(layer), layer.heads, inner))
    index = relative_position_index(window_of(geometry))
    biases = [graph.weight(array(layer.position_bias)[index].transpose(2, 0, 1), "positions")]
    if any(geometry.shift):
        biases.append(graph.weight(shift_mask(geometry)[:, None].astype(np.float32), "mask"))
    x = layers.projected_out(graph, layer.out, attend(graph, parts, biases, geometry.patches))
    return graph.op("Gather", x, np.argsort(order), axis=1) if moved else x


def window_order(geometry: Geometry) -> np.ndarray:
    """The token at each place when windows stand one after the other, shifted: ``[patches]``."""
    (rows, columns), (high, wide), (down, right) = (
        geometry.grid,
        window_of(geometry),
        geometry.shift,
    )
    index = np.roll(np.arange(rows * columns).reshape(rows, columns), (-down, -right), (0, 1))
    return index.reshape(rows // high, high, columns // wide, wide).swapaxes(1, 2).reshape(-1)


def pool(graph: Graph, layer: AttentionPool, x: str, stream: Stream) -> str:
    """What a learnt query finds in normalised tokens: ``[batch, 1, D]``."""
    heads, scale = layer.heads, (layer.latent.shape[1] // layer.heads) ** -0.5
    query = array(layer.latent) @ array(layer.q.kernel) + array(layer.q.bias)
    query = (scale * query).reshape(1, heads, 1, -1)
    both = [(array(p.kernel), array(p.bias)) for p in (layer.k, layer.v)]
    k, v = layers.project(graph, x, both, heads, (0,))
    q = graph.weight(query, "query")
    mixed = attend(graph, Projected(q, k, v), _size_bias(graph, stream))
    pooled = layers.projected_out(graph, layer.out, mixed)
    unlike = layers.ffn(graph, layer.ffn, layers.norm(graph, layer.norm, pooled))
    return graph.op("Add", pooled, unlike)
