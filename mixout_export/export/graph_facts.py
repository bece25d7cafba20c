"""Read facts about an ONNX file without loading its external data."""

import math
from dataclasses import dataclass
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from mixout_export.errors import CheckpointError
from mixout_export.files.graph_metadata import GraphMetadata
from mixout_export.files.layout import LAYOUT


@dataclass(frozen=True)
class GraphFacts:
    """Facts about an ONNX file.

    Attributes:
        path: The file.
        opset: Version of the standard operators.
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        initializers: Number of initializers.
        parameters: Number of elements in all initializers.
        dtypes: dtype → number of initializers that have it.
        metadata: What it records about itself.
    """

    path: Path
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: int
    parameters: int
    dtypes: dict[str, int]
    metadata: GraphMetadata


def read_graph_facts(path: Path) -> GraphFacts:
    """Read the facts about an ONNX file.

    Args:
        path: An ONNX file, or a folder that holds `model.onnx`.

    Raises:
        CheckpointError: The file is not an ONNX file, or it holds no graph.
    """
    file = path / LAYOUT.onnx if path.is_dir() else path
    try:
        model = onnx.load(file, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise CheckpointError(
            f"{file}: cannot be read as an ONNX file ({error}); export it again"
        ) from error
    if not model.graph.node:
        raise CheckpointError(f"{file}: the ONNX file holds no graph; export it again")
    graph = model.graph
    names = [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer]
    opsets = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
    return GraphFacts(
        path=file,
        opset=max(opsets, default=0),
        inputs=tuple(value.name for value in graph.input),
        outputs=tuple(value.name for value in graph.output),
        initializers=len(graph.initializer),
        parameters=sum(math.prod(tensor.dims) for tensor in graph.initializer),
        dtypes={name: names.count(name) for name in sorted(set(names))},
        metadata=GraphMetadata({entry.key: entry.value for entry in model.metadata_props}, file),
    )
