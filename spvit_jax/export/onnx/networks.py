"""ViT, Swin and RegNetY as ONNX nodes: from normalised NCHW images to what the model gives."""

from typing import Any

import numpy as np

from spvit_jax.export.onnx import attention, layers
from spvit_jax.export.onnx.graph import Graph
from spvit_jax.export.onnx.layers import array
from spvit_jax.export.onnx.tokens import Stream, merge
from spvit_jax.export.outputs import patches_read
from spvit_jax.models import RegNet, Swin, ViT
from spvit_jax.models.geometry import Geometry
from spvit_jax.models.layers import Attention, Block
from spvit_jax.models.swin import PatchMerging
from spvit_jax.single_path.sharing import FoldedConv

Outputs = dict[str, str]  # logits [batch, classes], features [batch, D], patches [batch, S*S, D]


def outputs(graph: Graph, model: Any, images: str) -> Outputs:
    """Adds the whole network on ``images [batch, channels, height, width]``."""
    if isinstance(model, RegNet):
        return {"logits": regnet(graph, model, images)}
    stream = _blocks(graph, model, _embedded(graph, model, images))
    seen = _seen(graph, model, stream)
    values = {"logits": _logits(graph, model, seen)} if model.spec.classes else {}
    if not model.spec.classes:
        values["features"] = graph.op("Gather", seen, np.int64(0), axis=1)
    if patches_read(model):
        values["patches"] = _patches(graph, model, stream)
    return values


def _embedded(graph: Graph, model: Any, images: str) -> str:
    """Patches by a convolution, class tokens and positions."""
    spec = model.spec
    kernel, bias = array(model.patch_embed.kernel), array(model.patch_embed.bias)
    side, width = spec.patch_size, kernel.shape[1]
    kernel = kernel.reshape(side, side, spec.channels, width).transpose(3, 2, 0, 1)
    with graph.within("patches"):
        x = layers.conv(graph, images, kernel, bias, stride=side)
    x = graph.transpose(graph.reshape(x, 0, width, -1), 0, 2, 1)
    if isinstance(model, Swin):
        return layers.norm(graph, model.embed_norm, x)
    prefix = spec.prefix
    positions = array(model.pos_embed) if spec.positions else None
    if positions is not None:
        x = graph.op("Add", x, graph.weight(positions[prefix:], "positions"))
    if prefix:
        first = array(model.tokens) + (0 if positions is None else positions[:prefix])
        batch = graph.slice(graph.op("Shape", x), 0, 1, axis=0)
        shape = graph.op("Concat", batch, np.array([prefix, width]), axis=0)
        first = graph.op("Expand", graph.weight(first[None], "tokens"), shape)
        x = graph.op("Concat", first, x, axis=1)
    return layers.norm(graph, model.norm_pre, x) if getattr(spec, "norm_pre", False) else x


def _blocks(graph: Graph, model: Any, x: str) -> Stream:
    spec, stream = model.spec, Stream(x)
    architecture, places = model.architecture, _places(model)
    geometries = spec.blocks if architecture is None else architecture.geometries(spec)
    ends = np.cumsum(spec.depths)[:-1].tolist() if isinstance(model, Swin) else []
    for i, (block, geometry) in enumerate(zip(model.blocks, geometries, strict=True)):
        if i in ends:
            stream = Stream(_merged_map(graph, model.merges[ends.index(i)], stream.x))
        with graph.within(f"blocks.{i}"):
            stream = _block(graph, block, geometry, stream, places)
    return stream


def _places(model: Any) -> np.ndarray | None:
    """The row and column of every token, where attention turns by them."""
    rotaries = (getattr(block.mixer, "rotary", None) for block in model.blocks)
    rotary = next(filter(None, rotaries), None)
    return None if rotary is None else np.pad(rotary.places(), ((rotary.prefix, 0), (0, 0)))


def _block(
    graph: Graph, block: Block, geometry: Geometry, stream: Stream, places: np.ndarray | None
) -> Stream:
    mixer, x, alike = block.mixer, stream.x, ""
    fewer = geometry.read < geometry.tokens
    if mixer is not None:
        branch = layers.norm(graph, block.norm1, x)
        if isinstance(mixer, Attention):
            branch, alike = attention.over_tokens(graph, mixer, geometry, branch, stream)
        elif isinstance(mixer, FoldedConv):
            branch = layers.convolution(graph, mixer, branch)
        if fewer and not isinstance(mixer, Attention):
            branch = graph.slice(branch, 0, geometry.read)
    if fewer:
        x = graph.slice(x, 0, geometry.read)
    if mixer is not None:
        x = graph.op("Add", x, branch)
    stream = Stream(x) if fewer else stream._replace(x=x)
    if block.merges:
        stream = merge(
            graph,
            stream,
            alike or layers.norm(graph, block.norm2, x),
            tokens=geometry.tokens,
            prefix=geometry.prefix,
            count=block.merges,
            places=places,
        )
    branch = layers.ffn(graph, block.ffn, layers.norm(graph, block.norm2, stream.x))
    return stream._replace(x=graph.op("Add", stream.x, branch))


def _merged_map(graph: Graph, layer: PatchMerging, x: str) -> str:
    """The end of a Swin's stage: the tokens of each 2x2 square, column by column, become one."""
    rows, columns = layer.grid[0] // 2, layer.grid[1] // 2
    index = np.arange(4 * rows * columns).reshape(rows, 2, columns, 2).transpose(0, 2, 3, 1)
    x = graph.op("Gather", x, index.reshape(-1), axis=1)
    x = graph.reshape(x, 0, rows * columns, layer.kernel.shape[0])
    x = layers.norm(graph, layer.norm, x)
    with graph.within("merging"):
        return layers.dense(graph, x, array(layer.kernel))


def _seen(graph: Graph, model: Any, stream: Stream) -> str:
    """What each head sees, ``[batch, heads, D]``."""
    spec, last = model.spec, model.spec.blocks[-1]
    if isinstance(model, ViT) and spec.pool == "token":
        x = stream.x
        classes = spec.prefix - spec.registers
        if not last.class_only:
            x = graph.slice(x, 0, classes)
        return layers.norm(graph, model.norm, x)
    if isinstance(model, ViT) and spec.pool == "attention":
        normed = layers.norm(graph, model.norm, stream.x)
        return attention.pool(graph, model.pool, normed, stream)
    if isinstance(model, ViT) and spec.pool == "average_norm":
        return layers.norm(graph, model.norm, _average(graph, stream.x, stream, spec.prefix))
    return _average(graph, layers.norm(graph, model.norm, stream.x), stream, last.prefix)


def _average(graph: Graph, x: str, stream: Stream, prefix: int) -> str:
    """The average of the embedded patches, ``[batch, 1, D]``."""
    end = np.iinfo(np.int64).max
    if prefix:
        x = graph.slice(x, prefix, end)
    if stream.sizes is None:
        return graph.reduce("ReduceMean", x, [1], keep=True)
    sizes = graph.slice(stream.sizes, prefix, end)
    shares = graph.op("Div", sizes, graph.reduce("ReduceSum", sizes, [1], keep=True))
    return graph.reduce("ReduceSum", graph.op("Mul", x, shares), [1], keep=True)


def _logits(graph: Graph, model: Any, seen: str) -> str:
    heads, logits = [model.head], []
    if getattr(model.spec, "distilled", False):
        heads.append(model.head_dist)
    for i, head in enumerate(heads):
        logits.append(layers.head(graph, head, graph.op("Gather", seen, np.int64(i), axis=1)))
    if len(logits) == 1:
        return logits[0]
    return graph.call("Mul", graph.op("Add", *logits), 0.5)


def _patches(graph: Graph, model: Any, stream: Stream) -> str:
    """The patches on the full map, normalised unless that norm is of their average."""
    spec, x = model.spec, stream.unmerged(graph)
    if not (isinstance(model, ViT) and spec.pool == "average_norm"):
        x = layers.norm(graph, model.norm, x)
    prefix = spec.blocks[-1].prefix
    return graph.slice(x, prefix, np.iinfo(np.int64).max) if prefix else x


def regnet(graph: Graph, model: RegNet, x: str) -> str:
    """A RegNetY with its batch norms in its convolutions."""
    x = graph.op("Relu", _conv_norm(graph, model.stem, x))
    for stage, blocks in enumerate(model.stages):
        for i, block in enumerate(blocks):
            with graph.within(f"stages.{stage}.{i}"):
                x = _bottleneck(graph, block, x)
    return layers.head(graph, model.head, graph.reduce("ReduceMean", x, [2, 3]))


def _bottleneck(graph: Graph, block: Any, x: str) -> str:
    y = graph.op("Relu", _conv_norm(graph, block.conv1, x))
    y = graph.op("Relu", _conv_norm(graph, block.conv2, y))
    squeezed = graph.reduce("ReduceMean", y, [2, 3])
    squeezed = graph.op("Relu", layers.gemm(graph, block.se.fc1, squeezed))
    opened = graph.op("Sigmoid", layers.gemm(graph, block.se.fc2, squeezed))
    y = graph.op("Mul", y, graph.unsqueeze(graph.unsqueeze(opened, 2), 3))
    y = _conv_norm(graph, block.conv3, y)
    shortcut = x if block.shortcut is None else _conv_norm(graph, block.shortcut, x)
    return graph.op("Relu", graph.op("Add", y, shortcut))


def _conv_norm(graph: Graph, layer: Any, x: str) -> str:
    conv = layer.conv
    scale, bias = layers.norm_scale(layer.norm)
    kernel = (array(conv.kernel) * scale).transpose(3, 2, 0, 1)
    strides = conv.strides if isinstance(conv.strides, int) else conv.strides[0]
    with graph.within("convolution"):
        return layers.conv(
            graph,
            x,
            kernel,
            bias,
            stride=strides,
            pad=conv.kernel_size[0] // 2,
            groups=conv.feature_group_count,
        )
