"""ONNX models: a graph, alone or in a folder with its configuration and tokenizer; bundles."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mixout_export.checkpoint.artifact import Generators, Hashes, LocalArtifact
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.graph_metadata import GraphMetadata
from mixout_export.files.input_files import InputFiles
from mixout_export.files.layout import LAYOUT, is_tokenizer_file
from mixout_export.files.streams import file_digest
from mixout_export.provenance.manifest import Manifest, read_manifest
from mixout_export.runners import CPU_PROVIDER
from mixout_export.tasks import labels_of, task_of_config

if TYPE_CHECKING:
    from onnx import ModelProto
    from transformers import PreTrainedTokenizerBase

    from mixout_export.checkpoint.interface import ModelInterface
    from mixout_export.runners.onnx_runner import CachedGraph, OnnxRunner
    from mixout_export.runners.runner import Array
    from mixout_export.runners.trace import Trace


class OnnxModel(LocalArtifact):
    """An ONNX graph, with the folder around it if the path names a folder."""

    kind = "onnx"
    title = "ONNX graph"

    def __init__(self, path: Path, files: InputFiles, *, provider: str = CPU_PROVIDER) -> None:
        super().__init__(path, files)
        self.provider = provider

    @property
    def graph(self) -> Path:
        """The ONNX file that is run."""
        return self.path / LAYOUT.onnx if self.path.is_dir() else self.path

    @property
    def cached_graph(self) -> Path | None:
        """The graph with a key/value cache in the folder; None if it was not exported."""
        path = self.path / LAYOUT.onnx_cached
        return path if path.is_file() else None

    @cached_property
    def opened(self) -> "OnnxRunner | CachedGraph":
        """The graph in onnxruntime."""
        from mixout_export.runners.onnx_runner import open_graph

        return open_graph(self.graph, provider=self.provider)

    def proto(self) -> "ModelProto":
        """Read the graph without the weights beside it."""
        import onnx
        from google.protobuf.message import DecodeError

        try:
            proto = onnx.load(self.graph, load_external_data=False)
        except (DecodeError, OSError) as error:
            raise CheckpointError(
                f"{self.graph}: cannot be read as an ONNX file ({error}); export it again"
            ) from error
        if not proto.graph.node:
            raise CheckpointError(f"{self.graph}: the ONNX file holds no graph; export it again")
        return proto

    @property
    def metadata(self) -> GraphMetadata:
        """What the graph records about itself."""
        return GraphMetadata(self.opened.metadata, self.graph)

    @property
    def task_name(self) -> str | None:
        """Name of the task the graph was made for; None if unknown."""
        task = task_of_config(self.config)
        return self.metadata.task or (None if task is None else task.name)

    @property
    def labels(self) -> tuple[str, ...] | None:
        """Names of the labels; None where unknown, or where the task has none."""
        recorded = self.metadata.labels
        if recorded is None:
            return labels_of(self.config, task_of_config(self.config))
        return recorded or None

    @property
    def precision(self) -> str:
        """The precision that the graph records; "" if it records none."""
        return self.metadata.recorded_precision

    @cached_property
    def interface(self) -> "ModelInterface | None":
        """What the graph takes and gives, as recorded in it; None if it records nothing."""
        from mixout_export.checkpoint.interface import ModelInterface

        fields = self.metadata.interface
        if fields is None:
            return None
        return ModelInterface.from_dict({**fields, "inputs": self.inputs, "outputs": self.outputs})

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, without those of a cache."""
        return self.opened.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, without those of a cache."""
        return self.opened.outputs

    @property
    def runs_in(self) -> str:
        """What computes the outputs, in words."""
        return f"onnxruntime, {self.provider}"

    def load(self) -> None:
        """Load the graph and the tokenizer."""
        _ = self.opened, self.tokenizer

    def reopen(self, path: Path) -> "OnnxModel":
        """Open another graph, to be run by the same provider."""
        files = InputFiles(path if path.is_dir() else path.parent)
        return OnnxModel(path, files, provider=self.provider)

    def runner(
        self, inputs: tuple[str, ...], *, headless: bool = False
    ) -> "OnnxRunner | CachedGraph":
        """Return what runs the graph, which can only be run whole."""
        return self.opened

    def half_runner(self) -> "OnnxRunner | CachedGraph | None":
        """Return what runs an fp16 graph on a CPU as a GPU computes it; None for other graphs."""
        from mixout_export.runners.half_rounding import round_results
        from mixout_export.runners.onnx_runner import open_graph

        copy = round_results(self.graph) if self.provider == CPU_PROVIDER else None
        return None if copy is None else open_graph(self.graph, copy=copy)

    def described_by(self, other: "ModelInterface | None") -> "ModelInterface":
        """Return the interface: as recorded, else the other side's, else what the folder says."""
        from mixout_export.checkpoint.interface import IMAGE_INPUT, ModelInterface

        if self.interface is not None:
            return self.interface
        if other is not None:
            return replace(other, inputs=self.inputs, outputs=self.outputs)
        if self.inputs == (IMAGE_INPUT,):
            return ModelInterface(
                self.inputs, self.outputs, vocabulary_size=0, image=self._image_shape()
            )
        if "vocab_size" not in self.config:
            raise CheckpointError(
                f"{self.graph}: neither the graph nor a {LAYOUT.config} beside it says how large "
                f"the vocabulary is; put the checkpoint's {LAYOUT.config} beside it"
            )
        return ModelInterface(
            self.inputs,
            self.outputs,
            vocabulary_size=self.config["vocab_size"],
            sequence_limit=self.config.get("max_position_embeddings"),
            segments=self.config.get("type_vocab_size") or 1,
            pad_token_id=self.config.get("pad_token_id"),
        )

    def _image_shape(self) -> tuple[int, int, int]:
        from mixout_export.checkpoint.interface import IMAGE_INPUT

        shape = self.opened.input_shapes[IMAGE_INPUT][1:]
        sizes = [size for size in shape if isinstance(size, int)]
        if len(shape) != 3 or len(sizes) != 3:
            raise CheckpointError(
                f"{self.graph}: {IMAGE_INPUT} has shape (batch, {', '.join(map(str, shape))}) "
                "there, so the size of an image is unknown; compare it with the checkpoint it came "
                "from"
            )
        return sizes[0], sizes[1], sizes[2]

    def generators(self) -> Generators:
        """Return the graphs that a causal language model generates with."""
        from mixout_export.runners.cache import CachedRunner
        from mixout_export.runners.onnx_runner import OnnxRunner, open_graph

        graphs = [self.opened]
        if self.cached_graph is not None:
            graphs.append(open_graph(self.cached_graph, provider=self.provider))
        return Generators(
            plain=next((graph for graph in graphs if isinstance(graph, OnnxRunner)), None),
            cached=next((graph for graph in graphs if isinstance(graph, CachedRunner)), None),
        )

    @property
    def knows_modules(self) -> bool:
        """Whether the graph records which values leave which module."""
        return self.metadata.knows_modules

    def epsilons(self, *, headless: bool) -> dict[str, float]:
        """Return the epsilon of each normalization that is one node, by the module's name."""
        from mixout_export.runners.graph_modules import graph_epsilons

        modules = self.metadata.module_values
        return graph_epsilons(self.graph, modules) if modules else {}

    def trace(self, inputs: "Mapping[str, Array]", *, headless: bool) -> "Trace":
        """Run a copy of the graph and return the values that leave its modules."""
        from mixout_export.runners.graph_modules import trace_graph

        return trace_graph(self.graph, self.metadata.module_values, inputs, provider=self.provider)

    def hashes(self, *, with_cache: bool) -> Hashes:
        """Return the hash of the graph, and of the weights that it was exported from."""
        graph = self.cached_graph if with_cache and self.cached_graph else self.graph
        return Hashes(file_digest(graph), self.metadata.source_sha256 or None)

    def part_files(self) -> Iterator[Path]:
        """Yield the graphs, and the files that hold weights of them."""
        import onnx

        for graph in (self.graph, self.cached_graph):
            if graph is not None:
                yield graph
                model = onnx.load(graph, load_external_data=False)
                yield from (graph.parent / name for name in external_files(model))


class Bundle(OnnxModel):
    """A bundle. As a model, it is its first graph with the files beside that graph."""

    kind = "bundle"
    title = "ONNX graph"
    cached_graph = None

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest. Every bundle has one."""
        return read_manifest(self.files)

    @property
    def graph(self) -> Path:
        """The first graph."""
        return self._graphs[0]

    @property
    def other_graphs(self) -> tuple[Path, ...]:
        """The other graphs: other precisions, and graphs with a key/value cache."""
        return self._graphs[1:]

    def check_single(self) -> None:
        """Refuse a bundle of several precisions where one model is meant.

        Raises:
            ArgumentError: The bundle holds several precisions.
        """
        if self.manifest.link.options.get("also"):
            raise ArgumentError(
                f"{self.path}: holds the model in several precisions; give the graph that is "
                f"right: {' or '.join(map(str, self._graphs))}"
            )

    @cached_property
    def _graphs(self) -> tuple[Path, ...]:
        graphs = self.manifest.link.options.get("graphs")
        names = graphs if isinstance(graphs, list) and graphs else [None]
        if not all(isinstance(name, str) and name in self.manifest.files for name in names):
            raise CheckpointError(
                f"{self.path / LAYOUT.manifest}: names no graph of this folder, although it is a "
                "bundle; bundle the model again"
            )
        return tuple(self.path / str(name) for name in names)

    @property
    def where(self) -> str:
        """Path of the graph, for messages."""
        return str(self.graph)

    @property
    def folder(self) -> Path:
        """The folder of the graph."""
        return self.graph.parent

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The tokenizer, which for some servers lies in a folder of its own; None without one."""
        from mixout_export.checkpoint.tokenizer import load_tokenizer

        names = (Path(name) for name in self.manifest.files)
        found = next((name.parent for name in names if is_tokenizer_file(name.name)), None)
        return load_tokenizer(self.folder if found is None else self.path / found)


def external_files(model: "ModelProto") -> list[str]:
    """Return the names of the files that hold a graph's larger tensors."""
    from onnx.external_data_helper import uses_external_data

    return sorted(
        {
            entry.value
            for tensor in model.graph.initializer
            if uses_external_data(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )
