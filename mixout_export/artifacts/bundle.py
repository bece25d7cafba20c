"""Open bundles: folders that `bundle` wrote for a server or another runtime."""

from functools import cached_property
from pathlib import Path

from mixout_export.artifacts.onnx_model import OnnxModel
from mixout_export.errors import CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.provenance.manifest import Manifest, read_manifest


class Bundle(OnnxModel):
    """A bundle. As a model, it is its first graph with the files beside that graph."""

    kind = "bundle"
    title = "ONNX graph"
    cached_graph = None

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest. Every bundle has one."""
        return read_manifest(self.files)

    @cached_property
    def graph(self) -> Path:
        """The first graph."""
        graphs = self.manifest.link.options.get("graphs")
        first = graphs[0] if isinstance(graphs, list) and graphs else None
        if not isinstance(first, str) or first not in self.manifest.files:
            raise CheckpointError(
                f"{self.path / LAYOUT.manifest}: names no graph of this folder, although it is a "
                "bundle; bundle the model again"
            )
        return self.path / first

    @property
    def where(self) -> str:
        """Path of the graph, for messages."""
        return str(self.graph)

    @property
    def folder(self) -> Path:
        """The folder of the graph and of its tokenizer."""
        return self.graph.parent
