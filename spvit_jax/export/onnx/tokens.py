"""Merging like tokens as ONNX nodes: what ``models.tokens`` does, by TopK and gathers."""

from typing import NamedTuple

import numpy as np

from spvit_jax.export.onnx.graph import Graph


class Stream(NamedTuple):
    """The tokens between two blocks.

    Attributes:
      x: ``[batch, n, D]``.
      sizes: how many embedded tokens each stands for, ``[batch, n, 1]``; None: one each.
      sources: which of them each embedded token is in, ``[batch, embedded]``; None: its own.
      places: the mean row and column of each, ``[batch, n, 2]``; None: its own.
    """

    x: str
    sizes: str | None = None
    sources: str | None = None
    places: str | None = None

    def unmerged(self, graph: Graph) -> str:
        """Gives every embedded token what became of it."""
        return self.x if self.sources is None else _take(graph, self.x, self.sources)


def merge(
    graph: Graph,
    stream: Stream,
    alike: str,
    *,
    tokens: int,
    prefix: int,
    count: int,
    places: np.ndarray | None = None,
) -> Stream:
    """Merges ``count`` of so many ``tokens`` away, those of the largest cosine.

    ``places [tokens, 2]`` are those of tokens that nothing has been merged of.
    """
    patches = tokens - prefix
    movable, others = patches // 2, patches - patches // 2
    partner, order = _matched(graph, graph.slice(alike, prefix, tokens), patches)
    gone, stays = graph.slice(order, 0, count), graph.slice(order, count, movable)
    none = graph.op("Mul", graph.slice(order, 0, 1), np.int64(0))  # of the batch's length
    always = np.concatenate([np.arange(prefix), prefix + 2 * np.arange(others)])
    always = graph.op("Add", none, always)
    left = graph.op("Concat", always, _odd(graph, stays, prefix), axis=1)
    many = np.array([tokens - count], np.int64)
    kept, _ = graph.op("TopK", left, many, outputs=2, axis=1, largest=0)
    partner = graph.op("Add", graph.op("Mul", partner, np.int64(2)), np.int64(prefix))
    targets = graph.op("GatherElements", partner, gone, axis=1)
    joins = graph.op("Equal", graph.unsqueeze(kept, 2), graph.unsqueeze(targets, 1))
    joins, gone = graph.cast(joins, graph.dtype), _odd(graph, gone, prefix)

    def summed(x: str) -> str:
        return graph.op(
            "Add", _take(graph, x, kept), graph.op("MatMul", joins, _take(graph, x, gone))
        )

    def averaged(x: str) -> str:
        weighted = x if stream.sizes is None else graph.op("Mul", x, stream.sizes)
        return graph.op("Div", summed(weighted), sizes)

    if stream.sizes is None:
        sizes = graph.call("Add", graph.reduce("ReduceSum", joins, [2], keep=True), 1)
    else:
        sizes = summed(stream.sizes)
    where = stream.places
    if places is not None:
        start = graph.cast(graph.unsqueeze(none, 2), graph.dtype)
        where = averaged(where or graph.op("Add", start, places.astype(graph.dtype)))
    _, rank = graph.op("TopK", order, np.array([movable]), outputs=2, axis=1, largest=0)
    itself = prefix + 1 + 2 * np.arange(movable)
    joined = graph.op("Where", graph.op("Less", rank, np.int64(count)), partner, itself)
    sources = _places(graph, kept, graph.op("Concat", always, joined, axis=1), prefix, patches)
    if stream.sources is not None:
        sources = graph.op("GatherElements", sources, stream.sources, axis=1)
    return Stream(averaged(stream.x), sizes, sources, where)


def _matched(graph: Graph, alike: str, patches: int) -> tuple[str, str]:
    """The partner of each second patch, and their order, the most alike first."""
    wide = alike if graph.dtype == np.float32 else graph.cast(alike, np.float32)
    length = graph.reduce("ReduceL2", wide, [2], keep=True)
    unit = graph.op("Div", wide, graph.op("Max", length, np.finfo(np.float32).tiny))
    movable, others = (graph.slice(unit, start, patches, step=2) for start in (1, 0))
    cosines = graph.op("MatMul", movable, graph.transpose(others, 0, 2, 1))
    best = graph.reduce("ReduceMax", cosines, [2])
    partner = graph.op("ArgMax", cosines, axis=2, keepdims=0)
    _, order = graph.op("TopK", best, np.array([patches // 2]), outputs=2, axis=1)
    return partner, order


def _odd(graph: Graph, index: str, prefix: int) -> str:
    """The tokens that are these of every second patch."""
    return graph.op("Add", graph.op("Mul", index, np.int64(2)), np.int64(prefix + 1))


def _places(graph: Graph, kept: str, become: str, prefix: int, patches: int) -> str:
    """Where each token goes, of what it becomes; there the second patches come last."""
    others = patches - patches // 2
    after = [prefix + i // 2 + i % 2 * others for i in range(patches)]
    become = graph.op("Gather", become, np.array([*range(prefix), *after]), axis=1)
    ahead = graph.op("Less", graph.unsqueeze(kept, 1), graph.unsqueeze(become, 2))
    return graph.reduce("ReduceSum", graph.cast(ahead, np.int64), [2])


def _take(graph: Graph, x: str, index: str) -> str:
    """Rows ``[batch, m]`` of ``x [batch, n, D]``."""
    return graph.op("GatherND", x, graph.unsqueeze(index, 2), batch_dims=1)
