"""Turn a captured graph into a file: no traces of the machine, the provenance, the same bytes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from mixout_export.checkpoint.layout import LAYOUT
from mixout_export.errors import ExportError
from mixout_export.export.graph import ExportedGraph
from mixout_export.export.module_values import values_by_module
from mixout_export.version import __version__

PRODUCER = "mixout-export"

#: Metadata entry that says which values are the outputs of which modules, for the drift map.
MODULE_VALUES = "module_values"

#: A protobuf message holds at most 2 GiB; the nodes get some of it too.
SINGLE_FILE_LIMIT = 2**31 - 2**26

#: Above the limit, tensors larger than this (in bytes) go to the file beside the graph.
EXTERNAL_TENSOR_BYTES = 1024


@dataclass(frozen=True)
class Provenance:
    """What a graph says about itself in its `metadata_props`.

    Attributes:
        task: The task's name; "" for a model without a head.
        labels: Names of the labels, by index; empty where the task has none.
        source_sha256: Hash of the weights it was made from.
        interface: Ranges of its inputs, as `ModelInterface.to_dict` gives them.
        precision: "fp32", "fp16" or "int8".
        conversion: How that was made, as plain JSON values; {} for a graph as it was captured.
    """

    task: str
    labels: Sequence[str]
    source_sha256: str
    interface: dict[str, Any]
    precision: str = "fp32"
    conversion: Mapping[str, Any] = field(default_factory=dict)

    def to_metadata(self, *, opset: int) -> dict[str, str]:
        """Return the entries, all text; lists and objects are JSON."""
        return {
            "task": self.task,
            "labels": json.dumps(list(self.labels), ensure_ascii=False),
            "source_sha256": self.source_sha256,
            "tool_version": __version__,
            "opset": str(opset),
            "interface": json.dumps(self.interface, sort_keys=True),
            "precision": self.precision,
            "conversion": json.dumps(self.conversion, sort_keys=True),
        }


def _strip(model: ir.Model) -> None:
    """Remove what the exporter recorded: stack traces with absolute paths, inferred shapes."""
    kept = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    kept |= {id(value) for value in model.graph.initializers.values()}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
            if id(value) not in kept:
                value.type = None
                value.shape = None
    for value in (
        *model.graph.inputs,
        *model.graph.outputs,
        *model.graph.initializers.values(),
    ):
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None


def _still_there(modules: Mapping[str, Sequence[str]], model: ir.Model) -> dict[str, Sequence[str]]:
    """Leave out modules of which a conversion has taken a value from the graph."""
    there = {value.name for node in model.graph for value in node.outputs}
    return {module: names for module, names in modules.items() if there.issuperset(names)}


def stamp_graph(
    graph: ExportedGraph, provenance: Provenance, *, captured: ExportedGraph | None = None
) -> None:
    """Strip the graph of its maker's traces and record where it comes from, in place.

    Args:
        graph: The graph.
        provenance: What to record.
        captured: The graph that this one was converted from, where it was: a conversion loses
            which module made a node, and keeps most values' names.
    """
    model = graph.model
    origin = captured or graph
    modules = _still_there(values_by_module(origin.model, origin.modules_by_node), model)
    _strip(model)
    model.producer_name = PRODUCER
    model.producer_version = __version__
    model.doc_string = None
    model.metadata_props.clear()
    model.metadata_props.update(provenance.to_metadata(opset=graph.opset))
    model.metadata_props[MODULE_VALUES] = json.dumps(modules, separators=(",", ":"))


def write_graph(
    graph: ExportedGraph,
    folder: Path,
    *,
    name: str = LAYOUT.onnx,
    single_file_limit: int = SINGLE_FILE_LIMIT,
) -> tuple[Path, ...]:
    """Write the graph into `folder`, as one file or, above the limit, with its weights beside it.

    Args:
        graph: A stamped graph.
        folder: An existing folder.
        name: Name of the file in it.
        single_file_limit: Bytes of weights up to which one file holds everything.

    Returns:
        The files written, the graph first.

    Raises:
        ExportError: The graph cannot be serialised.
    """
    path = folder / name
    weights = sum(
        value.const_value.nbytes
        for value in graph.model.graph.initializers.values()
        if value.const_value is not None
    )
    data = path.with_name(path.name + ".data")
    if weights > single_file_limit:
        ir.save(
            graph.model,
            path,
            external_data=data.name,
            size_threshold_bytes=EXTERNAL_TENSOR_BYTES,
        )
        _write_proto(onnx.load(path, load_external_data=False), path)
        return (path, data)
    _write_proto(ir.to_proto(graph.model), path)
    return (path,)


def _write_proto(proto: onnx.ModelProto, path: Path) -> None:
    """Write a graph without the types of its weights, which the weights themselves say."""
    del proto.graph.value_info[:]
    try:
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except ValueError as error:
        raise ExportError(f"{path.name}: cannot be serialised ({error})") from error
