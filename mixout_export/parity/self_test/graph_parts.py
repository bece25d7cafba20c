"""What the constants of an ONNX graph are there for, as far as its structure tells."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import GraphProto, NodeProto, TensorProto

_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

#: Operators that only move what they are given.
_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")

_NORMALIZATIONS = (
    "LayerNormalization",
    "RMSNormalization",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
)

#: Where a normalisation is spelled out, what follows the addition of its epsilon.
_ROOTS = ("Sqrt", "Rsqrt", "Pow", "Reciprocal")


@dataclass(frozen=True)
class LinearNode:
    """A product with a constant matrix, and the bias that is added to it.

    Attributes:
        product: The node of the product.
        weight: Name of the matrix, an initializer.
        by_rows: Whether the matrix is `(out_features, in_features)`.
        addition: The node that adds the bias, the product itself for a Gemm; None without one.
        bias: Name of the bias, "" if there is none.
    """

    product: NodeProto
    weight: str
    by_rows: bool
    addition: NodeProto | None = None
    bias: str = ""

    @property
    def label(self) -> str:
        """The weight's name; exporters that rename weights keep the name of the bias."""
        if self.bias.endswith(".bias") and "." not in self.weight:
            return f"{self.bias.removesuffix('bias')}weight"
        return self.weight


class GraphParts:
    """The linear layers, tables and normalisations of a graph."""

    def __init__(self, graph: GraphProto) -> None:
        """Index the graph's nodes.

        Args:
            graph: The graph; its tensors' values are not looked at.
        """
        self._graph = graph
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self._maker = {name: node for node in graph.node for name in node.output}
        self._users: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def users(self, name: str) -> list[NodeProto]:
        """Return the nodes that take a value."""
        return self._users.get(name, [])

    def _constant(self, name: str, rank: int) -> tuple[str, bool] | None:
        """Return the floating-point initializer behind a value, and whether it is transposed."""
        transposed = False
        while (node := self._maker.get(name)) is not None:
            if node.op_type not in ("Transpose", "Identity", "Cast"):
                return None
            transposed ^= node.op_type == "Transpose"
            name = node.input[0]
        tensor = self.tensors.get(name)
        if tensor is None or tensor.data_type not in _FLOATING or len(tensor.dims) != rank:
            return None
        return name, transposed

    def _linear(self, node: NodeProto) -> LinearNode | None:
        if node.op_type not in ("MatMul", "Gemm"):
            return None
        found = self._constant(node.input[1], 2)
        if found is None:
            return None
        weight, transposed = found
        if node.op_type == "Gemm":
            flags = {attribute.name: attribute.i for attribute in node.attribute}
            bias = self._constant(node.input[2], 1) if len(node.input) > 2 else None
            by_rows = transposed ^ bool(flags.get("transB"))
            return LinearNode(
                node, weight, by_rows, None if bias is None else node, bias[0] if bias else ""
            )
        for user in self.users(node.output[0]):
            if user.op_type == "Add":
                other = user.input[1] if user.input[0] == node.output[0] else user.input[0]
                bias = self._constant(other, 1)
                if bias is not None:
                    return LinearNode(node, weight, transposed, user, bias[0])
        return LinearNode(node, weight, transposed)

    @cached_property
    def linears(self) -> list[LinearNode]:
        """The linear layers, in the order of execution."""
        found = (self._linear(node) for node in self._graph.node)
        return [layer for layer in found if layer is not None]

    def linear_before(self, output: str) -> LinearNode | None:
        """Return the last linear layer before an output, which is its head."""
        made = {layer.product.output[0]: layer for layer in self.linears}
        waiting, seen = [output], set[str]()
        while waiting:
            name = waiting.pop(0)
            if name in made:
                return made[name]
            node = self._maker.get(name)
            if node is not None and name not in seen:
                seen.add(name)
                waiting += node.input
        return None

    def _source(self, name: str) -> str:
        """Return what a value was before it was only moved."""
        while (node := self._maker.get(name)) is not None and node.op_type in _MOVES:
            name = node.input[0]
        return name

    def tables(self) -> Iterator[tuple[str, str, int]]:
        """Yield each embedding's initializer, what its rows are chosen by, and their number."""
        for node in self._graph.node:
            if node.op_type == "Gather":
                found = self._constant(node.input[0], 2)
                if found is not None and not found[1]:
                    yield found[0], self._source(node.input[1]), self.tensors[found[0]].dims[0]

    def epsilons(self) -> Iterator[tuple[onnx.AttributeProto | TensorProto, float]]:
        """Yield where each normalisation has its epsilon, an attribute or a scalar; and which."""
        for node in self._graph.node:
            if node.op_type in _NORMALIZATIONS:
                for attribute in node.attribute:
                    if attribute.name == "epsilon":
                        yield attribute, attribute.f
            elif node.op_type == "Add":
                followers = {user.op_type for user in self.users(node.output[0])}
                if followers and followers <= set(_ROOTS):
                    yield from self._scalars(node)

    def _scalars(self, node: NodeProto) -> Iterator[tuple[TensorProto, float]]:
        for name in node.input:
            tensor = self.tensors.get(name)
            if tensor is not None and tensor.data_type in _FLOATING and not sum(tensor.dims) > 1:
                value = float(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
                if 0 < value < 0.01:
                    yield tensor, value
