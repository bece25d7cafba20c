"""Open the ONNX folder that is bundled, and read the inputs and outputs of its graphs."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

import onnx

from mixout_export.artifacts.onnx_model import external_files
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.artifact import LocalArtifact
from mixout_export.checkpoint.folder import is_onnx_folder
from mixout_export.checkpoint.interface import IMAGE_INPUT
from mixout_export.errors import CheckpointError
from mixout_export.files.graph_metadata import GraphMetadata
from mixout_export.files.layout import LAYOUT, is_preprocessor_file
from mixout_export.files.runtimes import OldestRuntimes, oldest_runtimes
from mixout_export.files.streams import file_digest
from mixout_export.runners.onnx_runner import open_session

#: onnxruntime's name of a type → that of the Open Inference Protocol; Triton's is `TYPE_` of it,
#: except for BYTES.
DATATYPES = {
    "tensor(int64)": "INT64",
    "tensor(int32)": "INT32",
    "tensor(bool)": "BOOL",
    "tensor(float)": "FP32",
    "tensor(float16)": "FP16",
    "tensor(double)": "FP64",
}

_STANDARD_DOMAINS = ("", "ai.onnx")

#: Measures the largest activation of a whole batch and rounds all of its rows accordingly.
_BATCH_SCALE = "DynamicQuantizeLinear"


@dataclass(frozen=True)
class Value:
    """An input or output of a graph.

    Attributes:
        name: Its name.
        datatype: Its type in the Open Inference Protocol, for example "INT64".
        shape: Its dimensions, the batch first; -1 means any size.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """An ONNX file.

    Attributes:
        path: The file.
        inputs: Its inputs.
        outputs: Its outputs.
        metadata: Its metadata.
        sha256: SHA-256 of the file.
        external: Files next to it that contain its larger tensors.
        standard: Whether it uses only operators of the ONNX standard.
        shares_scale: Whether the rows of a batch share a quantization scale, as with int8. Then a
            row's output depends on the other rows of its batch.
        oldest: The oldest runtimes that load it.
    """

    path: Path
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    metadata: GraphMetadata
    sha256: str
    external: tuple[Path, ...]
    standard: bool
    shares_scale: bool
    oldest: OldestRuntimes

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, and the external files that it needs."""
        return (self.path, *self.external)

    @cached_property
    def digests(self) -> dict[Path, str]:
        """File → SHA-256, the graph's own file first."""
        return {self.path: self.sha256} | {path: file_digest(path) for path in self.external}


def _value(argument: Any, graph: Path) -> Value:
    if argument.type not in DATATYPES:
        raise CheckpointError(
            f"{graph}: {argument.name!r} has type {argument.type}, which no server supports; "
            f"expected one of {', '.join(DATATYPES)}"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in argument.shape)
    return Value(argument.name, DATATYPES[argument.type], shape)


def _external(model: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """Return the files that contain a graph's larger tensors.

    Raises:
        CheckpointError: A file is not in the graph's folder.
    """
    names = external_files(model)
    for name in names:
        if PurePath(name).name != name:
            raise CheckpointError(
                f"{path}: keeps weights in {name!r}, expected a file in the same folder; export it "
                "again"
            )
    return tuple(path.with_name(name) for name in names)


def _oldest(model: onnx.ModelProto) -> OldestRuntimes:
    """Return the runtimes that load a graph that does not record them."""
    versions = [opset.version for opset in model.opset_import if opset.domain in _STANDARD_DOMAINS]
    return oldest_runtimes(max(versions, default=0), model.ir_version)


def read_graph(path: Path) -> Graph:
    """Read an ONNX file by loading it as a server does.

    Raises:
        CheckpointError: It cannot be loaded, or has an input of a type that no server supports.
    """
    try:
        session = open_session(path)
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # onnxruntime's and protobuf's errors have no common class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be loaded ({reason}); export it again") from error
    metadata = GraphMetadata(session.get_modelmeta().custom_metadata_map, path)
    return Graph(
        path=path,
        inputs=tuple(_value(argument, path) for argument in session.get_inputs()),
        outputs=tuple(_value(argument, path) for argument in session.get_outputs()),
        metadata=metadata,
        sha256=file_digest(path),
        external=_external(model, path),
        standard=all(node.domain in _STANDARD_DOMAINS for node in model.graph.node)
        and all(opset.domain in _STANDARD_DOMAINS for opset in model.opset_import),
        shares_scale=any(node.op_type == _BATCH_SCALE for node in model.graph.node),
        oldest=metadata.oldest or _oldest(model),
    )


@dataclass(frozen=True)
class OnnxFolder:
    """A folder that `onnx` wrote, or one with the same layout.

    Attributes:
        model: The opened folder.
        graph: Its graph.
        cached: The graph with a key/value cache; None if it was not exported.
    """

    model: LocalArtifact
    graph: Graph
    cached: Graph | None

    @property
    def path(self) -> Path:
        """The folder."""
        return self.model.path

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """The graph, and the one with a cache if there is one."""
        return (self.graph,) if self.cached is None else (self.graph, self.cached)

    @property
    def precision(self) -> str:
        """The weights' precision: "fp32", "fp16" or "int8"."""
        return self.graph.metadata.precision

    @property
    def source_sha256(self) -> str:
        """Identifies the weights that were exported; "" if unknown."""
        return self.graph.metadata.source_sha256

    @property
    def task(self) -> str:
        """Name of the task; "" if unknown."""
        return self.graph.metadata.task

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels; empty if the task has none."""
        return self.graph.metadata.labels or ()

    @property
    def takes_text(self) -> bool:
        """Whether the model takes token ids."""
        return any(value.name == "input_ids" for value in self.graph.inputs)

    @property
    def takes_images(self) -> bool:
        """Whether the model takes images."""
        return any(value.name == IMAGE_INPUT for value in self.graph.inputs)

    @property
    def limit(self) -> int | None:
        """Longest sequence in tokens; None if unknown."""
        limit = (self.graph.metadata.interface or {}).get("sequence_limit")
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def trained_max_length(self) -> int | None:
        """Longest sequence, in tokens, of the model's training; None if unknown."""
        return self.graph.metadata.trained_max_length

    @cached_property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The files of the tokenizer or image processor."""
        return tuple(
            path
            for path in sorted(self.path.iterdir())
            if path.is_file() and is_preprocessor_file(path.name)
        )

    @property
    def companions(self) -> tuple[Path, ...]:
        """Files that a Python or JavaScript library reads in addition to the graph."""
        names = (LAYOUT.config, LAYOUT.generation_config)
        configs = [self.path / name for name in names if (self.path / name).is_file()]
        return (*configs, *self.tokenizer_files)


def open_onnx_folder(path: Path) -> OnnxFolder:
    """Open a folder to bundle.

    Raises:
        CheckpointError: The path is not an ONNX folder, or its graph cannot be loaded.
    """
    model = open_artifact(path)
    if not is_onnx_folder(path):
        if model.files.is_bundle:
            raise CheckpointError(
                f"{path}: is not an ONNX folder; it is a bundle, so give the folder that it was "
                "made from"
            )
        raise CheckpointError(
            f"{path}: is not an ONNX folder; make one with: mixout-export onnx {path} ONNX"
        )
    cached = path / LAYOUT.onnx_cached
    return OnnxFolder(
        model=model,
        graph=read_graph(path / LAYOUT.onnx),
        cached=read_graph(cached) if cached.is_file() else None,
    )
