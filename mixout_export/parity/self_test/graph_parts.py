"""Find the linear layers, tables and normalizations of an ONNX graph by its structure."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import onnx
from onnx import GraphProto, NodeProto, TensorProto

from mixout_export.runners.graph_modules import NORMALIZATIONS

_FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

#: Operators that change no values.
_MOVES = ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")

#: Products of activations with a matrix, and the index of their bias input, if any.
_BIAS_INPUT = {
    "MatMul": None,
    "Gemm": 2,
    "FusedMatMul": None,
    "MatMulInteger": None,
    "MatMulIntegerToFloat": 6,
    "DynamicQuantizeMatMul": 4,
}

#: Operators that follow the addition of epsilon in a normalization of several nodes.
_ROOTS = ("Sqrt", "Rsqrt", "Pow", "Reciprocal")


@dataclass(frozen=True)
class Constant:
    """An initializer with floating-point or quantized values.

    Attributes:
        name: Name of the initializer.
        transposed: Whether it is transposed before it is used.
        scale: Initializer with the quantization steps; "" for floating-point values.
        zero_point: Initializer with the zero points; "" if they are 0.
    """

    name: str
    transposed: bool = False
    scale: str = ""
    zero_point: str = ""


@dataclass(frozen=True)
class LinearNode:
    """A product with a constant matrix, and the bias that is added to it.

    Attributes:
        product: The node of the product.
        output: Name of its value, before another node adds a bias.
        weight: The matrix.
        by_rows: Whether the matrix is `(out_features, in_features)`.
        addition: The node that adds the bias, which may be the product; None without a bias.
        bias: The bias, if there is one.
    """

    product: NodeProto
    output: str
    weight: Constant
    by_rows: bool
    addition: NodeProto | None = None
    bias: Constant | None = None

    @property
    def label(self) -> str:
        """The weight's name. If an exporter renamed it, the name follows from the bias's."""
        name = self.weight.name
        if self.bias is not None and self.bias.name.endswith(".bias") and "." not in name:
            return f"{self.bias.name.removesuffix('bias')}weight"
        return name

    def drop_bias(self) -> None:
        """Remove the bias and its addition from the graph."""
        if self.addition is None or self.bias is None:
            return
        if self.addition is self.product:
            self.product.input[_BIAS_INPUT[self.product.op_type] or 0] = ""
        else:
            self.addition.op_type = "Identity"
            self.addition.input[:] = [self.output]


class GraphParts:
    """The linear layers, tables and normalizations of a graph."""

    def __init__(self, graph: GraphProto) -> None:
        """Index the graph's nodes and initializers."""
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

    def _constant(self, name: str, rank: int) -> Constant | None:
        """Return the initializer that a value comes from, if it has this rank and is known."""
        transposed, steps = False, ("", "")
        while (node := self._maker.get(name)) is not None:
            if node.op_type not in ("Transpose", "Identity", "Cast", "DequantizeLinear"):
                return None
            transposed ^= node.op_type == "Transpose"
            if node.op_type == "DequantizeLinear":
                steps = node.input[1], node.input[2] if len(node.input) > 2 else ""
            name = node.input[0]
        tensor = self.tensors.get(name)
        if tensor is None or len(tensor.dims) != rank:
            return None
        if tensor.data_type not in _FLOATING:
            steps = steps if steps[0] else self._named_steps(name)
            if steps[0] not in self.tensors:
                return None
        return Constant(name, transposed, *steps)

    def _named_steps(self, name: str) -> tuple[str, str]:
        """Return the scale and zero point, as onnxruntime's quantizer names them."""
        bases = (name.removesuffix("_quantized"), name)
        base = next((base for base in bases if f"{base}_scale" in self.tensors), "")
        if not base:
            return "", ""
        zero_point = f"{base}_zero_point"
        return f"{base}_scale", zero_point if zero_point in self.tensors else ""

    def _linear(self, node: NodeProto) -> LinearNode | None:
        if node.op_type not in _BIAS_INPUT:
            return None
        weight = self._constant(node.input[1], 2)
        if weight is None:
            return None
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        by_rows = weight.transposed ^ bool(flags.get("transB"))
        output, at = self._product(node), _BIAS_INPUT[node.op_type]
        if at is not None and len(node.input) > at:
            bias = self._constant(node.input[at], 1)
            return LinearNode(node, output, weight, by_rows, node if bias else None, bias)
        for user in self.users(output):
            if user.op_type == "Add":
                bias = self._constant(user.input[1 - list(user.input).index(output)], 1)
                if bias is not None:
                    return LinearNode(node, output, weight, by_rows, user, bias)
        return LinearNode(node, output, weight, by_rows)

    def _product(self, node: NodeProto) -> str:
        """Return the name of a product's floating-point value; integer products are scaled."""
        name: str = node.output[0]
        if node.op_type == "MatMulInteger":
            for operator in ("Cast", "Mul"):
                users = self.users(name)
                if len(users) == 1 and users[0].op_type == operator:
                    name = users[0].output[0]
        return name

    @cached_property
    def linears(self) -> list[LinearNode]:
        """The linear layers, in the order of execution."""
        found = (self._linear(node) for node in self._graph.node)
        return [layer for layer in found if layer is not None]

    def linear_before(self, output: str) -> LinearNode | None:
        """Return the last linear layer before an output, which is its head."""
        made = {layer.output: layer for layer in self.linears}
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
        """Return the name of the value before operators that change no values."""
        while (node := self._maker.get(name)) is not None and node.op_type in _MOVES:
            name = node.input[0]
        return name

    def tables(self) -> Iterator[tuple[Constant, str, int]]:
        """Yield each embedding's table, the value that selects rows, and the number of rows."""
        for node in self._graph.node:
            if node.op_type == "Gather":
                table = self._constant(node.input[0], 2)
                if table is not None and not table.transposed:
                    rows = self.tensors[table.name].dims[0]
                    yield table, self._source(node.input[1]), rows

    def epsilons(self) -> Iterator[tuple[onnx.AttributeProto | TensorProto, float]]:
        """Yield the attribute or scalar with the epsilon of each normalization, and the epsilon."""
        for node in self._graph.node:
            if node.op_type in NORMALIZATIONS:
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
