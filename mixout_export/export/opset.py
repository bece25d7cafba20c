"""Declare the lowest operator set and IR version with which a graph can be read."""

from collections.abc import Iterator

import onnx
import onnx_ir as ir
from onnx.helper import find_min_ir_version_for, make_opsetid
from onnx_ir.passes.common import RemoveUnusedNodesPass

from mixout_export.errors import ArgumentError, ExportError

#: ONNX operator sets that can be written.
OPSETS = range(17, 24)

#: The lowest operator set that PyTorch's exporter writes. Lower ones are made from it.
LOWEST_CAPTURED = 18

#: Operators whose axes are an input since operator set 18 and an attribute before.
_REDUCTIONS = frozenset(
    f"Reduce{kind}"
    for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
)


def check_opset(opset: int) -> None:
    """Raise an ArgumentError unless an operator set can be written."""
    if opset not in OPSETS:
        raise ArgumentError(f"opset: got {opset!r}, expected {OPSETS.start} to {OPSETS.stop - 1}")


def _standard_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield the nodes with operators of the ONNX standard, those of subgraphs included."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain in ("", "ai.onnx"):
            yield node


def _needed(node: ir.Node, opset: int) -> int:
    """Return the first operator set that has a node's operator as `opset` has it."""
    return int(onnx.defs.get_schema(node.op_type, opset, "").since_version)


def lower_to(model: ir.Model, opset: int) -> None:
    """Write a graph of `LOWEST_CAPTURED` with the operators of an older set, in place.

    Raises:
        ExportError: An operator cannot be written in the older set.
    """
    for node in list(_standard_nodes(model)):
        if _needed(node, LOWEST_CAPTURED) <= opset:
            continue
        if node.op_type == "Split":  # parts of equal size need no attribute there
            node.attributes.pop("num_outputs", None)
        elif node.op_type in _REDUCTIONS and _constant_axes(node):
            _move_axes_to_attribute(node)
        else:
            raise ExportError(
                f"opset {opset}: the model needs {node.op_type} as opset {LOWEST_CAPTURED} has it; "
                f"give --opset {LOWEST_CAPTURED}"
            )
    model.opset_imports[""] = opset
    RemoveUnusedNodesPass()(model)  # and the axes that were inputs


def _constant_axes(node: ir.Node) -> list[int]:
    """Return the axes of a reduction; [] if they are computed, or left out."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    tensor = None if axes is None else ir.convenience.get_const_tensor(axes)
    return [] if tensor is None else [int(axis) for axis in tensor.numpy().flat]


def _move_axes_to_attribute(node: ir.Node) -> None:
    node.attributes.add(ir.AttrInt64s("axes", _constant_axes(node)))
    node.attributes.pop("noop_with_empty_axes", None)
    node.replace_input_with(1, None)
    node.resize_inputs(1)


def declare_lowest(model: ir.Model) -> int:
    """Declare the lowest operator set and IR version that a graph's operators need, in place.

    An operator that did not change between two sets means the same in both. So the graph
    computes the same, and older runtimes read it.

    Returns:
        The operator set.
    """
    written = model.opset_imports[""]
    needed = max((_needed(node, written) for node in _standard_nodes(model)), default=0)
    opset = min(written, max(needed, OPSETS.start))
    model.opset_imports[""] = opset
    model.ir_version = int(find_min_ir_version_for([make_opsetid("", opset)]))
    return opset
