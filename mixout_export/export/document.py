"""Write an ONNX graph to a file.

The file holds no paths or stack traces of the machine that made it, it records where the model
comes from, and the same graph always gives the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes.common import ClearMetadataAndDocStringPass

from mixout_export.errors import ExportError
from mixout_export.export.graph import ExportedGraph
from mixout_export.export.opset import declare_lowest
from mixout_export.files.graph_metadata import Provenance
from mixout_export.files.layout import LAYOUT
from mixout_export.files.runtimes import OldestRuntimes, oldest_runtimes
from mixout_export.version import __version__

PRODUCER = "mixout-export"

#: Metadata key that maps each module to the names of its output values. The drift map reads it.
MODULE_VALUES = "module_values"

#: Largest size of the weights, in bytes, for a single file. A protobuf message holds at most
#: 2 GiB, and the nodes need part of that.
SINGLE_FILE_LIMIT = 2**31 - 2**26

#: Above that limit, tensors larger than this many bytes are stored in a second file.
EXTERNAL_TENSOR_BYTES = 1024

_FLOATING = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


def _strip(model: ir.Model) -> None:
    """Remove what the exporter recorded: stack traces with absolute paths and inferred shapes."""
    initializers = model.graph.initializers.values()
    kept = {id(v) for v in (*model.graph.inputs, *model.graph.outputs, *initializers)}
    ClearMetadataAndDocStringPass()(model)
    inner = [
        value
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for value in node.outputs
        if id(value) not in kept
    ]
    for value in inner:
        value.type = None
        value.shape = None
    for value in (*inner, *model.graph.inputs, *model.graph.outputs, *initializers):
        value.metadata_props.clear()
        value.doc_string = None


def _with_ancestors(module: str) -> Iterator[str]:
    """Yield a module's name and the names of all modules that contain it; nothing for ""."""
    while module:
        yield module
        module = module.rpartition(".")[0]


def _is_inside(module: str, ancestor: str) -> bool:
    return module == ancestor or module.startswith(f"{ancestor}.")


def _values_by_module(graph: ExportedGraph) -> dict[str, tuple[str, ...]]:
    """Find each module's output values: those created inside it and used outside it.

    The last value that a module creates itself may differ from what it returns, because its
    submodules may process that value further. The types of the values must still be known.

    Returns:
        Module → names of its floating-point output values, in the graph's order. The last name is
        the value that the module returns. A module that is called several times has one name per
        call.
    """
    model, modules_by_node = graph.model, graph.modules_by_node
    found: dict[str, list[str]] = {}
    outputs = {id(value) for value in model.graph.outputs}
    for node in model.graph:
        maker = modules_by_node.get(node.name or "", "")
        for value in node.outputs:
            if value.dtype not in _FLOATING or not value.name:
                continue
            users = {modules_by_node.get(use.node.name or "", "") for use in value.uses()}
            for module in _with_ancestors(maker):
                inside = all(_is_inside(user, module) for user in users)
                if id(value) in outputs or not inside:
                    found.setdefault(module, []).append(value.name)
    return {module: tuple(names) for module, names in sorted(found.items())}


@dataclass(frozen=True)
class Declared:
    """What a graph declares that it needs.

    Attributes:
        opset: The ONNX operator set.
        oldest: The oldest runtimes that load it.
    """

    opset: int
    oldest: OldestRuntimes


def _optimized_by(model: ir.Model) -> str | None:
    """Return this onnxruntime's version if its own operators are in the graph, else None."""
    standard = {"", "ai.onnx"}
    nodes = ir.traversal.RecursiveGraphIterator(model.graph)
    own = any(node.domain not in standard for node in nodes)
    return ".".join(onnxruntime.__version__.split(".")[:2]) if own else None


def finalize_graph(
    graph: ExportedGraph, provenance: Provenance, *, captured: ExportedGraph | None = None
) -> Declared:
    """Remove the exporter's traces from a graph and record its origin, in place.

    `captured` is the graph that `graph` was converted from, if it was converted. It still knows
    which module made which node. A conversion loses that but keeps most values' names.

    Returns:
        What the graph declares that it needs.
    """
    model = graph.model
    made = _values_by_module(captured or graph)
    # a conversion may have removed some values
    present = {value.name for node in model.graph for value in node.outputs}
    modules = {module: names for module, names in made.items() if present.issuperset(names)}
    _strip(model)
    model.producer_name = PRODUCER
    model.producer_version = __version__
    model.doc_string = None
    model.metadata_props.clear()
    opset = declare_lowest(model)
    oldest = oldest_runtimes(opset, model.ir_version or 0, optimized_by=_optimized_by(model))
    model.metadata_props.update(
        provenance.to_metadata(opset=opset, oldest=oldest, module_values=modules)
    )
    return Declared(opset, oldest)


def write_graph(
    graph: ExportedGraph,
    folder: Path,
    *,
    name: str = LAYOUT.onnx,
    single_file_limit: int = SINGLE_FILE_LIMIT,
) -> tuple[Path, ...]:
    """Write a graph that `finalize_graph` has prepared into an existing folder.

    Up to `single_file_limit` bytes of weights, one file holds everything. Above that, the weights
    go to a second file.

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
