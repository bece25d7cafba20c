"""Convert an ONNX graph to fp16, except for nodes whose values fp16 cannot hold."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from mixout_export.export.temporary_file import is_large, temporary_file
from mixout_export.runners.onnx_runner import open_session

Array = npt.NDArray[Any]

#: A node is converted only if no measured value of its inputs and outputs is larger than this. The
#: limit of fp16 is 65504, so values of inputs that were not measured may be four times larger.
LARGEST_SAFE_VALUE = 16384.0

#: Values of at least this magnitude are the "minus infinity" of an attention mask. They may
#: overflow: softmax returns 0 for them as well as for fp16's -65504 and -inf.
SMALLEST_MASK_VALUE = 1e30

#: Operators that compute a normalization where the graph does not have it as one operator. Squares
#: leave the range of fp16 in both directions long before the values themselves do.
_NORMALIZATION_OPERATORS = frozenset(
    ("Pow", "ReduceMean", "ReduceSumSquare", "ReduceL2", "Sqrt", "Reciprocal")
)

#: Operators whose results depend on every digit of what they are given: an angle of many turns.
_EXACT_OPERATORS = frozenset(("Sin", "Cos"))

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

#: Types that a float may be cast to without becoming a whole number.
_FLOATING = frozenset((_FLOAT, _HALF, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16))

#: Names of the constants that the nodes take which measure magnitudes.
_LIMIT, _ZERO = "magnitude.limit", "magnitude.zero"


def _magnitude(values: Array) -> float:
    """Return the largest finite magnitude, ignoring values of an attention mask."""
    magnitudes = np.abs(values[np.isfinite(values)])
    return float(magnitudes[magnitudes < SMALLEST_MASK_VALUE].max(initial=0.0))


def _float_values(model: onnx.ModelProto) -> list[str]:
    """Return the names of the float values that nodes compute."""
    typed = itertools.chain(model.graph.value_info, model.graph.output)
    floats = {value.name for value in typed if value.type.tensor_type.elem_type == _FLOAT}
    return [name for node in model.graph.node for name in node.output if name in floats]


def _measuring_nodes(value: str, result: str) -> list[onnx.NodeProto]:
    """Return nodes that compute what `_magnitude` does. -inf is the result without any value."""
    size, small, kept = (f"{result}.{part}" for part in ("size", "small", "kept"))
    return [
        helper.make_node("Abs", [value], [size]),
        helper.make_node("Less", [size, _LIMIT], [small]),
        helper.make_node("Where", [small, size, _ZERO], [kept]),
        helper.make_node("ReduceMax", [kept], [result], keepdims=0),
    ]


def measure_magnitudes(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, Array]]
) -> dict[str, float]:
    """Run an fp32 graph and return the largest magnitude of each of its float values by name.

    The graph itself computes the magnitudes, so that no value has to be kept or copied. The types
    of its values must be known.
    """
    results = {name: f"magnitude.{i}" for i, name in enumerate(_float_values(model))}
    found = {tensor.name: _magnitude(values) for tensor, values in _float_constants(model)}
    nodes, constants, outputs = (
        len(part) for part in (model.graph.node, model.graph.initializer, model.graph.output)
    )
    for name, limit in ((_LIMIT, SMALLEST_MASK_VALUE), (_ZERO, 0.0)):
        model.graph.initializer.append(numpy_helper.from_array(np.array(limit, np.float32), name))
    for value, result in results.items():
        model.graph.node.extend(_measuring_nodes(value, result))
        model.graph.output.append(helper.make_tensor_value_info(result, _FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with temporary_file(model) as path:
        session = open_session(path, options)
    del model.graph.node[nodes:], model.graph.initializer[constants:], model.graph.output[outputs:]
    taken = [value.name for value in session.get_inputs()]
    for batch in batches:
        values = session.run(list(results.values()), {name: batch[name] for name in taken})
        for name, value in zip(results, values, strict=True):
            found[name] = max(found.get(name, 0.0), float(value))
    return found


def _float_constants(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, Array]]:
    for tensor in model.graph.initializer:
        if tensor.data_type == _FLOAT:
            yield tensor, numpy_helper.to_array(tensor)


def _nodes_with_large_values(model: onnx.ModelProto, magnitudes: Mapping[str, float]) -> set[str]:
    """Return the names of nodes with an input or output that is too large for fp16."""
    return {
        node.name
        for node in model.graph.node
        if any(
            magnitudes.get(name, 0.0) > LARGEST_SAFE_VALUE for name in (*node.input, *node.output)
        )
    }


def _nodes_between(model: onnx.ModelProto, kept: Set[str], floats: Set[str]) -> set[str]:
    """Return the nodes whose float inputs and outputs all belong to nodes kept in fp32.

    Casting to fp16 and back around them would save nothing. `kept` names the nodes that stay in
    fp32, `floats` the float values.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    maker = {name: node.name for node in model.graph.node for name in node.output}
    users: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.name)
    outputs = {value.name for value in model.graph.output}
    found = set()
    for node in model.graph.node:
        taken = [name for name in node.input if name in floats and name not in constants]
        given = [name for name in node.output if name in floats]
        inside = taken and all(maker.get(name) in kept for name in taken)
        if inside and all(
            name not in outputs and users.get(name, set()) <= kept and name in users
            for name in given
        ):
            found.add(node.name)
    return found


def _needs_all_digits(node: onnx.NodeProto) -> bool:
    """Tell whether a small change of a node's input can change its result much.

    A float that is cast to a whole number is cut: 7.99 becomes 7, as in T5's table of distances.
    """
    if node.op_type != "Cast":
        return node.op_type in _EXACT_OPERATORS
    target = next(attribute.i for attribute in node.attribute if attribute.name == "to")
    return target not in _FLOATING and target != onnx.TensorProto.BOOL


def _nodes_of_exact_values(model: onnx.ModelProto, floats: Set[str]) -> set[str]:
    """Return the names of nodes that need all digits, and of those that compute only for them.

    `floats` names the float values. Nodes without any have nothing to lose.
    """
    users: dict[str, set[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.name)
    for value in model.graph.output:
        users.setdefault(value.name, set()).add("")
    found: set[str] = set()
    for node in reversed(model.graph.node):  # users come after what they use
        given = [users[name] for name in node.output if name in users]
        if _needs_all_digits(node) or (given and all(used <= found for used in given)):
            found.add(node.name)
    return {
        node.name
        for node in model.graph.node
        if node.name in found and not floats.isdisjoint((*node.input, *node.output))
    }


def _round_weights(converted: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Round the weights that became fp16 to the nearest number, in place, as `tensor.half()` does.

    The converter alone would raise the magnitude of tiny weights to 1e-7 instead of rounding them.
    Weights of nodes in fp32 keep their value, and so do those of a mask, which have none in fp16.
    """
    for tensor in converted.graph.initializer:
        if tensor.data_type == _HALF and tensor.name in weights:
            with np.errstate(over="ignore"):
                rounded = weights[tensor.name].astype(np.float16)
            if np.isfinite(rounded).all():
                tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def to_half(
    model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Convert a graph's weights and arithmetic to fp16.

    The graph's inputs and outputs keep their types. A node stays in fp32 if one of its values
    leaves the range of fp16 in any batch, if it is a part of a normalization, or if its result
    needs all digits (an angle, or a number that is cut to a whole one).

    Args:
        model: A graph in fp32 whose nodes have names. It is changed.
        batches: The batches to measure the graph's values with.

    Returns:
        The converted graph, and the names of the nodes that stay in fp32.
    """
    magnitudes = measure_magnitudes(model, batches)
    kept = _nodes_with_large_values(model, magnitudes)
    kept |= {node.name for node in model.graph.node if node.op_type in _NORMALIZATION_OPERATORS}
    kept |= _nodes_of_exact_values(model, magnitudes.keys())
    while more := _nodes_between(model, kept, magnitudes.keys()) - kept:
        kept |= more
    weights = {tensor.name: values for tensor, values in _float_constants(model)}
    names = tuple(node.name for node in model.graph.node if node.name in kept)
    original = {node.name for node in model.graph.node}
    if is_large(model):
        with temporary_file(model) as path:
            converted = _convert(str(path), names)
    else:
        converted = _convert(model, names)
    _round_weights(converted, weights)
    _remove_round_trips(converted.graph, original)
    return converted, names


def _convert(model: onnx.ModelProto | str, kept: Sequence[str]) -> onnx.ModelProto:
    converted: onnx.ModelProto = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=list(DEFAULT_OP_BLOCK_LIST),
        node_block_list=list(kept),
    )
    return converted


def _remove_round_trips(graph: onnx.GraphProto, original: Set[str]) -> None:
    """Remove, in place, the casts to fp16 and back that the converter adds between fp32 nodes.

    It also adds them between a node in fp32 and an output of the graph. `original` names the nodes
    that the graph had before the conversion.
    """
    added = [node for node in graph.node if node.name not in original and node.op_type == "Cast"]
    target = {node.name: next(a.i for a in node.attribute if a.name == "to") for node in added}
    source = {node.output[0]: node.input[0] for node in added if target[node.name] == _HALF}
    round_trips = {
        node.output[0]: source[node.input[0]]
        for node in added
        if target[node.name] == _FLOAT and node.input[0] in source
    }
    outputs = {value.name for value in graph.output}
    renamed = {value: name for name, value in round_trips.items() if name in outputs}
    ends = set(renamed.values())
    nodes = [node for node in graph.node if node.output[0] not in ends]
    for node in nodes:
        taken = [round_trips.get(name, name) for name in node.input]
        node.input[:] = [renamed.get(name, name) for name in taken]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for casts in (round_trips, source):
        used = outputs | {name for node in nodes for name in node.input}
        nodes = [n for n in nodes if n.output[0] not in casts or n.output[0] in used]
    del graph.node[:]
    graph.node.extend(nodes)
