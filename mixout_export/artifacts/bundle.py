"""Bundles: folders that `bundle` wrote for a server or another runtime."""

from functools import cached_property
from pathlib import Path

from mixout_export.artifacts.onnx_model import OnnxModel
from mixout_export.errors import CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.provenance.manifest import Manifest, read_manifest


class Bundle(OnnxModel):
    """A bundle. As a model it is the first of its graphs, with the files beside that."""

    kind = "bundle"
    title = "ONNX graph"
    cached_graph = None

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, without which a folder is no bundle.

        Raises:
            CheckpointError: It is damaged.
        """
        return read_manifest(self.files)

    @cached_property
    def graph(self) -> Path:
        """The first graph.

        Raises:
            CheckpointError: The manifest names none that is in the bundle.
        """
        graphs = self.manifest.link.options.get("graphs")
        first = graphs[0] if isinstance(graphs, list) and graphs else None
        if not isinstance(first, str) or first not in self.manifest.files:
            raise CheckpointError(
                f"{self.path / LAYOUT.manifest}: names no graph in the folder, and it is a bundle; "
                "bundle it again"
            )
        return self.path / first

    @property
    def where(self) -> str:
        """The path of the graph, as messages name it."""
        return str(self.graph)

    @property
    def folder(self) -> Path:
        """The folder of the graph and of its tokenizer."""
        return self.graph.parent
