"""Write an ONNX graph to a file.

The file holds no paths or stack traces of the machine that made it, it records where the model
comes from, and the same graph always gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir

from mixout_export.errors import ExportError
from mixout_export.export.graph import ExportedGraph
from mixout_export.export.module_values import values_by_module
from mixout_export.files.graph_metadata import Provenance
from mixout_export.files.layout import LAYOUT
from mixout_export.version import __version__

PRODUCER = "mixout-export"

#: Metadata key that maps each module to the names of its output values. The drift map reads it.
MODULE_VALUES = "module_values"

#: Largest size of the weights, in bytes, for a single file. A protobuf message holds at most
#: 2 GiB, and the nodes need part of that.
SINGLE_FILE_LIMIT = 2**31 - 2**26

#: Above that limit, tensors larger than this many bytes are stored in a second file.
EXTERNAL_TENSOR_BYTES = 1024


def _strip(model: ir.Model) -> None:
    """Remove what the exporter recorded: stack traces with absolute paths and inferred shapes."""
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


def _modules_in_graph(
    modules: Mapping[str, Sequence[str]], model: ir.Model
) -> dict[str, Sequence[str]]:
    """Keep only the modules whose output values all exist in the graph.

    A conversion may have removed some values.
    """
    present = {value.name for node in model.graph for value in node.outputs}
    return {module: names for module, names in modules.items() if present.issuperset(names)}


def finalize_graph(
    graph: ExportedGraph, provenance: Provenance, *, captured: ExportedGraph | None = None
) -> None:
    """Remove the exporter's traces from a graph and record its origin, in place.

    Args:
        graph: The graph.
        provenance: The origin to record.
        captured: The graph that `graph` was converted from, if it was converted. It still knows
            which module made which node; a conversion loses that but keeps most values' names.
    """
    model = graph.model
    origin = captured or graph
    modules = _modules_in_graph(values_by_module(origin.model, origin.modules_by_node), model)
    _strip(model)
    model.producer_name = PRODUCER
    model.producer_version = __version__
    model.doc_string = None
    model.metadata_props.clear()
    model.metadata_props.update(provenance.to_metadata(opset=graph.opset, module_values=modules))


def write_graph(
    graph: ExportedGraph,
    folder: Path,
    *,
    name: str = LAYOUT.onnx,
    single_file_limit: int = SINGLE_FILE_LIMIT,
) -> tuple[Path, ...]:
    """Write the graph into `folder`.

    Up to `single_file_limit` bytes of weights, one file holds everything. Above that, the weights
    go to a second file.

    Args:
        graph: A graph that `finalize_graph` has prepared.
        folder: An existing folder.
        name: Name of the graph's file.
        single_file_limit: Largest size of the weights, in bytes, for a single file.

    Returns:
        The files written, the graph first.

    Raises:
        ExportError: The graph cannot be serialized.
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
    """Write a graph without `value_info`, which repeats the dtypes and shapes of its weights."""
    del proto.graph.value_info[:]
    try:
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except ValueError as error:
        raise ExportError(f"{path.name}: the graph cannot be serialized: {error}") from error
