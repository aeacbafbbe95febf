"""``Graph``: nodes and weights of an ONNX graph, in the order in which they are added."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

AXES_AS_INPUTS = 18  # since this opset; ReduceSum has been so since 13


class Graph:
    """Grows node by node; a value is the name of one.

    Attributes:
      opset: of ONNX's operators.
      dtype: of floating-point weights and of the computation.
    """

    def __init__(self, opset: int, dtype: Any = np.float32):
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, np.ndarray] = {}
        self._known: dict[tuple, str] = {}  # what small constants hold
        self._path = ""
        self._count = 0

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Puts ``name`` in front of the names of what is added meanwhile."""
        before, self._path = self._path, f"{self._path}{name}."
        yield
        self._path = before

    def weight(self, value: Any, name: str = "constant") -> str:
        """Adds an array in the computation's dtype."""
        return self.constant(np.asarray(value).astype(self.dtype), name)

    def constant(self, array: np.ndarray, name: str = "constant") -> str:
        """Adds an array as it is; what is there already, bit for bit, is not added again."""
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self._named(name)
            self._weights[self._known[key]] = array.copy()
        return self._known[key]

    def op(self, kind: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node.

        Args:
          kind: the operator's name.
          inputs: values, or numbers and arrays of NumPy's, which become constants as they are.
          outputs: how many it has.
          attributes: the operator's.

        Returns:
          Its value, or a tuple of them.
        """
        values = [i if isinstance(i, str) else self.constant(np.asarray(i)) for i in inputs]
        named = [self._named(kind) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, values, named, name=named[0], **attributes))
        return named[0] if outputs == 1 else tuple(named)

    def call(self, kind: str, x: str, value: float) -> str:
        """Adds a node of ``x`` and a number in the computation's dtype."""
        return self.op(kind, x, np.asarray(value, self.dtype))

    def reduce(self, kind: str, x: str, axes: Sequence[int], keep: bool = False) -> str:
        """Adds a ``Reduce…`` over axes."""
        if self.opset >= AXES_AS_INPUTS or kind == "ReduceSum":
            return self.op(kind, x, np.array(axes, np.int64), keepdims=int(keep))
        return self.op(kind, x, axes=list(axes), keepdims=int(keep))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshapes; 0 keeps the dimension there, -1 is what is left."""
        return self.op("Reshape", x, np.array(shape, np.int64))

    def transpose(self, x: str, *order: int) -> str:
        """Reorders the axes."""
        return self.op("Transpose", x, perm=list(order))

    def slice(self, x: str, start: int, end: int, axis: int = 1, step: int = 1) -> str:
        """Takes ``start`` to ``end`` of an axis, every ``step``-th."""
        numbers = (np.array([n], np.int64) for n in (start, end, axis, step))
        return self.op("Slice", x, *numbers)

    def split(self, x: str, *sizes: int, axis: int) -> tuple[str, ...]:
        """Splits an axis into parts of these sizes."""
        return self.op("Split", x, np.array(sizes, np.int64), outputs=len(sizes), axis=axis)

    def unsqueeze(self, x: str, axis: int) -> str:
        """Adds an axis of one."""
        return self.op("Unsqueeze", x, np.array([axis], np.int64))

    def cast(self, x: str, dtype: Any) -> str:
        """Casts to a dtype of NumPy's."""
        return self.op("Cast", x, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def built(self, inputs: list, outputs: dict[str, tuple[str, Any]]) -> onnx.GraphProto:
        """Makes the graph of what its outputs need.

        Args:
          inputs: ``ValueInfoProto``s.
          outputs: for each name its value and ``ValueInfoProto``.
        """
        ends = [helper.make_node("Identity", [v], [name]) for name, (v, _) in outputs.items()]
        nodes: list[onnx.NodeProto] = []
        needed: set[str] = set()
        for node in reversed([*self._nodes, *ends]):
            if needed.intersection(node.output) or node in ends:
                nodes.append(node)
                needed.update(node.input)
        weights = [numpy_helper.from_array(w, n) for n, w in self._weights.items() if n in needed]
        shown = [info for _, info in outputs.values()]
        return helper.make_graph(nodes[::-1], "spvit", inputs, shown, weights)

    def _named(self, kind: str) -> str:
        self._count += 1
        return f"{self._path}{kind}_{self._count}"
