"""Turn a graph's floating point into fp16, except where fp16 cannot hold the numbers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from mixout_export.export.saving import is_large, saved

Array = npt.NDArray[Any]

#: Largest magnitude seen that a node may take or give in fp16, whose own limit is 65504: inputs
#: that were not tried get four times as much.
LARGEST = 16384.0

#: From here on a number is no number but a mask's "minus infinity": softmax makes 0 of it, as it
#: does of fp16's -65504 or -inf.
MASK = 1e30

#: What a normalisation is made of where it is no operator of its own: squares leave fp16's range in
#: both directions long before the values do.
_NORMALISATION = ("Pow", "ReduceMean", "ReduceSumSquare", "ReduceL2", "Sqrt", "Reciprocal")

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def _magnitude(values: Array) -> float:
    """Return the largest finite magnitude that is no mask's."""
    magnitudes = np.abs(values[np.isfinite(values)])
    return float(magnitudes[magnitudes < MASK].max(initial=0.0))


def measure_magnitudes(
    model: onnx.ModelProto, batches: Iterable[Mapping[str, Array]]
) -> dict[str, float]:
    """Run a graph and return the largest magnitude of each of its float values, by name.

    Args:
        model: A graph in fp32; it is left as it is.
        batches: Inputs by name, each batch on its own.
    """
    given = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name not in given]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with saved(model) as path:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    del model.graph.output[len(given) :]
    taken = [value.name for value in session.get_inputs()]
    floats = [value.name for value in session.get_outputs() if value.type == "tensor(float)"]
    found = {tensor.name: _magnitude(values) for tensor, values in _float_constants(model)}
    for batch in batches:
        values = session.run(floats, {name: batch[name] for name in taken})
        for name, value in zip(floats, values, strict=True):
            found[name] = max(found.get(name, 0.0), _magnitude(value))
    return found


def _float_constants(model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, Array]]:
    for tensor in model.graph.initializer:
        if tensor.data_type == _FLOAT:
            yield tensor, numpy_helper.to_array(tensor)


def _too_large(model: onnx.ModelProto, magnitudes: Mapping[str, float]) -> set[str]:
    """Return the names of nodes that take or give a number too large for fp16."""
    return {
        node.name
        for node in model.graph.node
        if any(magnitudes.get(name, 0.0) > LARGEST for name in (*node.input, *node.output))
    }


def _enclosed(model: onnx.ModelProto, kept: Set[str], floats: Set[str]) -> set[str]:
    """Return the nodes between nodes that are kept: a cast to fp16 and back would gain nothing."""
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


def _round(model: onnx.ModelProto) -> None:
    """Round weights to what fp16 holds, as everybody else does.

    The library would keep numbers below fp16's smallest from becoming zero.
    """
    for tensor, values in _float_constants(model):
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16).astype(np.float32)
        fits = np.isfinite(rounded) | ~np.isfinite(values)
        changed = numpy_helper.from_array(np.where(fits, rounded, values), tensor.name)
        tensor.CopyFrom(changed)


def to_half(
    model: onnx.ModelProto, batches: Sequence[Mapping[str, Array]]
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Turn a graph's weights and arithmetic into fp16; its inputs and outputs stay what they are.

    Nodes whose numbers leave fp16's range on any batch stay in fp32, and so do the parts of a
    normalisation that is not an operator of its own.

    Args:
        model: A graph in fp32 with names of its nodes; it is changed.
        batches: Inputs by name, to find what is too large.

    Returns:
        The graph, and the names of the nodes that stay in fp32.
    """
    magnitudes = measure_magnitudes(model, batches)
    kept = _too_large(model, magnitudes)
    kept |= {node.name for node in model.graph.node if node.op_type in _NORMALISATION}
    while more := _enclosed(model, kept, magnitudes.keys()) - kept:
        kept |= more
    _round(model)
    names = tuple(node.name for node in model.graph.node if node.name in kept)
    original = {node.name for node in model.graph.node}
    if is_large(model):
        with saved(model) as path:
            converted = _convert(str(path), names)
    else:
        converted = _convert(model, names)
    _join(converted.graph, original)
    return converted, names


def _convert(model: onnx.ModelProto | str, kept: Sequence[str]) -> onnx.ModelProto:
    converted: onnx.ModelProto = convert_float_to_float16(
        model,
        keep_io_types=True,
        op_block_list=list(DEFAULT_OP_BLOCK_LIST),
        node_block_list=list(kept),
    )
    return converted


def _join(graph: onnx.GraphProto, original: Set[str]) -> None:
    """Take out the casts to fp16 and back that the library puts between nodes in fp32."""
    added = [node for node in graph.node if node.name not in original and node.op_type == "Cast"]
    target = {node.name: next(a.i for a in node.attribute if a.name == "to") for node in added}
    wide = {node.output[0]: node.input[0] for node in added if target[node.name] == _HALF}
    joined = {
        node.output[0]: wide[node.input[0]]
        for node in added
        if target[node.name] == _FLOAT and node.input[0] in wide
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = joined.get(name, name)
    outputs = {value.name for value in graph.output}
    for casts in (joined, wide):
        used = outputs | {name for node in graph.node for name in node.input}
        kept = [n for n in graph.node if n.output[0] not in casts or n.output[0] in used]
        del graph.node[:]
        graph.node.extend(kept)
