"""Plan a bundle: its models, the files to copy, and the files to write."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mixout_export.bundling.source import Graph, OnnxFolder
from mixout_export.errors import ArgumentError
from mixout_export.files.graph_metadata import MODEL_SHA256, PRECISION, SOURCE_SHA256
from mixout_export.files.layout import LAYOUT

SERVERS = ("triton", "mlserver", "openvino", "transformers-js", "optimum")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

#: Largest version and batch size that servers can read.
_LARGEST = (1 << 31) - 1

#: Names of other files at the top of a bundle. A model may not have them.
_RESERVED_NAMES = (
    LAYOUT.card,
    LAYOUT.manifest,
    LAYOUT.signature,
    LAYOUT.config,
    LAYOUT.bom,
    "settings.json",
)


@dataclass(frozen=True)
class BundleOptions:
    """Options of a bundle.

    Attributes:
        server: One of `SERVERS`.
        name: The model's name on the server.
        version: The model's version, at least 1. Only some servers use it.
        max_batch_size: Largest number of rows in a batch, at least 1. Only some servers use it.
    """

    server: str
    name: str
    version: int = 1
    max_batch_size: int = 64

    def __post_init__(self) -> None:
        if self.server not in SERVERS:
            raise ArgumentError(
                f"server: got {self.server!r}, expected one of {', '.join(SERVERS)}"
            )
        if not _NAME.fullmatch(self.name):
            raise ArgumentError(
                f"name: got {self.name!r}, expected letters, digits, '_', '-' and '.', because the "
                "name becomes part of the model's URL; give another name with --name"
            )
        if self.name in _RESERVED_NAMES or self.name.endswith(LAYOUT.partial_suffix):
            raise ArgumentError(
                f"name: got {self.name!r}, but the bundle needs that name for another file; give "
                "another name with --name"
            )
        for name, value in (
            ("model-version", self.version),
            ("max-batch-size", self.max_batch_size),
        ):
            if not 1 <= value <= _LARGEST:
                raise ArgumentError(f"{name}: got {value}, expected 1 to {_LARGEST}")


@dataclass(frozen=True)
class Model:
    """A graph in a bundle.

    Attributes:
        name: The model's name on the server.
        folder: The ONNX folder that the graph comes from.
        graph: The graph.
        path: Path of the graph in the bundle.
    """

    name: str
    folder: OnnxFolder
    graph: Graph
    path: PurePosixPath

    @property
    def digests(self) -> dict[PurePosixPath, str]:
        """Path in the bundle → SHA-256, for each of the graph's files."""
        graph, *others = self.graph.digests.items()
        return {self.path: graph[1]} | {self.path.with_name(f.name): d for f, d in others}

    @property
    def identity(self) -> dict[str, str]:
        """Metadata that the server shows, so that `verify` can recognize the model's version."""
        return {
            MODEL_SHA256: self.graph.sha256,
            SOURCE_SHA256: self.folder.source_sha256,
            PRECISION: self.folder.precision,
        }


@dataclass
class Plan:
    """The files of a bundle. Paths are relative to the bundle.

    Attributes:
        models: The graphs.
        copies: Path → file to copy there.
        texts: Path → text to write there.
        tokenizers: Folder of a tokenizer → ONNX folder that the tokenizer comes from.
        needs_tokenizer_json: Whether the runtime tokenizes, and reads only `tokenizer.json`.
    """

    models: list[Model] = field(default_factory=list)
    copies: dict[PurePosixPath, Path] = field(default_factory=dict)
    texts: dict[PurePosixPath, str] = field(default_factory=dict)
    tokenizers: dict[PurePosixPath, OnnxFolder] = field(default_factory=dict)
    needs_tokenizer_json: bool = False

    def add_graph(self, model: Model) -> None:
        """Add a graph, and its external data under the name that the graph refers to.

        Raises:
            ArgumentError: Two graphs need a file at the same path.
        """
        first, *others = model.graph.files
        files = {model.path: first} | {model.path.with_name(file.name): file for file in others}
        for path in files.keys() & self.copies.keys():
            raise ArgumentError(
                f"{files[path]}: cannot be copied to {path} because {self.copies[path]} is copied "
                "there too; bundle only one of the two"
            )
        self.models.append(model)
        self.copies |= files

    def add_models(
        self, folders: Sequence[OnnxFolder], options: BundleOptions, file: str
    ) -> list[Model]:
        """Add each graph as a model of its own, with a tokenizer.

        The first precision gets the model's name, the others also their precision. A graph with a
        cache gets the suffix `_with_past`.

        Args:
            folders: One ONNX folder per precision.
            options: The model's name.
            file: Path of the graph in the folder of its model.
        """
        for number, folder in enumerate(folders):
            name = options.name if number == 0 else f"{options.name}_{folder.precision}"
            for graph in folder.graphs:
                own = name if graph is folder.graph else f"{name}_with_past"
                root = PurePosixPath(own)
                self.add_graph(Model(own, folder, graph, root / file))
                for path in folder.tokenizer_files:
                    self.copies[root / "tokenizer" / path.name] = path
                self.tokenizers[root / "tokenizer"] = folder
        return self.models

    def write(self, out: Path) -> None:
        """Write and copy all files into a folder."""
        for path, source in self.copies.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / path)
        for path, text in self.texts.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text, encoding="utf-8", newline="\n")
