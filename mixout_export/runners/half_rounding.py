"""Run an fp16 graph on a CPU as a GPU computes it.

onnxruntime has few fp16 operators for a CPU. It computes the others in fp32 and removes the
conversions between them. A value that overflows fp16, or loses digits there, then shows nothing of
it. So a copy of the graph, in fp32, rounds the result of every fp16 operator to fp16.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from mixout_export.runners.onnx_runner import open_session

logger = logging.getLogger(__name__)

_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16

#: Operators that only move values, which are rounded already.
_MOVING = frozenset(
    ("Concat", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity")
) | frozenset(("Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"))

#: Attributes that name the type of a result.
_TYPE_ATTRIBUTES = ("to", "dtype")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield the initializers, and the constants among the attributes of nodes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def computes_in_half(model: onnx.ModelProto) -> bool:
    """Return whether a graph has weights in fp16. Their values are not read."""
    return any(tensor.data_type == _HALF for tensor in _tensors(model))


def _half_values(path: Path, model: onnx.ModelProto) -> set[str]:
    """Return the names of the fp16 values that nodes compute, as onnxruntime infers them."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    given = {value.name for value in probe.graph.output}
    names = (name for node in probe.graph.node for name in node.output)
    probe.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name and name not in given
    )
    options = _options(path)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = open_session(probe.SerializeToString(), options)
    return {value.name for value in session.get_outputs() if value.type == "tensor(float16)"}


def _options(path: Path) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path.parent)
    )
    return options


def _widen(model: onnx.ModelProto) -> None:
    """Turn the fp16 constants, types, inputs and outputs of a graph into fp32, in place."""
    for tensor in _tensors(model):
        if tensor.data_type == _HALF:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in _TYPE_ATTRIBUTES and attribute.i == _HALF:
                attribute.i = _FLOAT
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == _HALF:
            value.type.tensor_type.elem_type = _FLOAT
    del model.graph.value_info[:]


def _rounding(name: str) -> list[onnx.NodeProto]:
    """Return nodes that compute the value `name` from `name.exact` by rounding it to fp16."""
    exact, rounded = f"{name}.exact", f"{name}.half"
    return [
        helper.make_node("Cast", [exact], [rounded], to=_HALF),
        helper.make_node("Cast", [rounded], [name], to=_FLOAT),
    ]


def _round_results(model: onnx.ModelProto, half: set[str]) -> None:
    """Round the values named in `half` where they are computed, in place."""
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        names = [name for name in node.output if name in half and node.op_type not in _MOVING]
        for index, name in enumerate(node.output):
            if name in names:
                node.output[index] = f"{name}.exact"
        nodes += [node, *(made for name in names for made in _rounding(name))]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def round_results(path: Path) -> bytes | None:
    """Return a copy of an fp16 graph that computes on a CPU what a GPU computes.

    Returns:
        The copy; None if the graph has no fp16 weights. None with a warning if it has subgraphs or
        is larger than 2 GiB.
    """
    outline = onnx.load(path, load_external_data=False)
    if not computes_in_half(outline):
        return None
    attributes = (attribute for node in outline.graph.node for attribute in node.attribute)
    if any(attribute.HasField("g") for attribute in attributes):
        _report_skipped(path, "it has subgraphs")
        return None
    half = _half_values(path, outline)
    model = onnx.load(path)
    _widen(model)
    _round_results(model, half)
    try:
        copy: bytes = model.SerializeToString()
        return copy
    except ValueError:  # protobuf's limit
        _report_skipped(path, "it is larger than 2 GiB in fp32")
        return None


def _report_skipped(path: Path, reason: str) -> None:
    logger.warning(
        "%s: how a GPU rounds in fp16 is not checked, because %s; compare it on a GPU with "
        "verify --provider CUDAExecutionProvider",
        path,
        reason,
    )
