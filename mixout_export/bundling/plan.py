"""What goes into a bundle: models, files that are copied, and files that are written."""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mixout_export.bundling.source import Graph, OnnxFolder
from mixout_export.errors import ArgumentError
from mixout_export.files.layout import LAYOUT

SERVERS = ("triton", "mlserver", "openvino", "transformers-js", "optimum")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

#: Largest number that servers read.
_LARGEST = (1 << 31) - 1

#: What other files at the top of a bundle are called.
_TAKEN = (
    LAYOUT.card,
    LAYOUT.manifest,
    LAYOUT.signature,
    LAYOUT.config,
    LAYOUT.bom,
    "settings.json",
)


@dataclass(frozen=True)
class BundleOptions:
    """How a bundle is laid out.

    Attributes:
        server: One of `SERVERS`.
        name: What the model is called there.
        version: The model's version, at least 1, where the server has versions.
        max_batch_size: Most rows of a batch, at least 1, where the server has a limit.
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
                f"name: got {self.name!r}, expected letters, digits, '_', '-' and '.', as it "
                "becomes a part of an address; give --name"
            )
        if self.name in _TAKEN or self.name.endswith(LAYOUT.partial_suffix):
            raise ArgumentError(
                f"name: got {self.name!r}, which is another file's; give --name another"
            )
        for name, value in (
            ("model-version", self.version),
            ("max-batch-size", self.max_batch_size),
        ):
            if not 1 <= value <= _LARGEST:
                raise ArgumentError(f"{name}: got {value}, expected 1 to {_LARGEST}")


@dataclass(frozen=True)
class Model:
    """A graph as a server serves it.

    Attributes:
        name: What it is called there.
        folder: The ONNX folder that it is from.
        graph: The graph.
        path: Where it lies in the bundle.
    """

    name: str
    folder: OnnxFolder
    graph: Graph
    path: PurePosixPath

    @property
    def digests(self) -> dict[PurePosixPath, str]:
        """The SHA-256 of its files, by their paths in the bundle."""
        graph, *others = self.graph.digests.items()
        return {self.path: graph[1]} | {self.path.with_name(f.name): d for f, d in others}

    @property
    def identity(self) -> dict[str, str]:
        """What tells this graph from an older version of the model, for the server to show."""
        return {
            "model_sha256": self.graph.sha256,
            "source_sha256": self.folder.source_sha256,
            "precision": self.folder.precision,
        }


@dataclass
class Plan:
    """The files of a bundle by their paths in it.

    Attributes:
        models: The graphs.
        copies: Path → the file that is copied there.
        texts: Path → the text that is written there.
        tokenizers: Folders of tokenizers in the bundle, with the ONNX folder each comes from.
    """

    models: list[Model] = field(default_factory=list)
    copies: dict[PurePosixPath, Path] = field(default_factory=dict)
    texts: dict[PurePosixPath, str] = field(default_factory=dict)
    tokenizers: dict[PurePosixPath, OnnxFolder] = field(default_factory=dict)

    def add_graph(self, model: Model) -> None:
        """Add a graph, with its external data under the name that the graph knows it by.

        Raises:
            ArgumentError: Two graphs would have the same file.
        """
        first, *others = model.graph.files
        files = {model.path: first} | {model.path.with_name(file.name): file for file in others}
        for path in files.keys() & self.copies.keys():
            raise ArgumentError(
                f"{files[path]}: would lie at {path}, where {self.copies[path]} does; bundle one "
                "of the two"
            )
        self.models.append(model)
        self.copies |= files

    def add_tokenizer(self, directory: PurePosixPath, folder: OnnxFolder) -> None:
        """Add a tokenizer's files to a directory."""
        for file in folder.tokenizer_files:
            self.copies[directory / file.name] = file
        self.tokenizers[directory] = folder

    def write(self, out: Path) -> None:
        """Write and copy everything into a folder.

        Raises:
            OSError: The disk is full, say.
        """
        for path, source in self.copies.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, out / path)
        for path, text in self.texts.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(text, encoding="utf-8", newline="\n")


def served_graphs(
    folders: Sequence[OnnxFolder], options: BundleOptions
) -> Mapping[str, tuple[OnnxFolder, Graph]]:
    """Name each graph of several precisions as servers do that know one graph a model.

    The first precision has the bare name; a graph with a cache is a model of its own.
    """
    found: dict[str, tuple[OnnxFolder, Graph]] = {}
    for number, folder in enumerate(folders):
        name = options.name if number == 0 else f"{options.name}_{folder.precision}"
        found[name] = (folder, folder.graph)
        if folder.cached is not None:
            found[f"{name}_with_past"] = (folder, folder.cached)
    return found
