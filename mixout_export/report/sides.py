"""One side of a comparison: what it is, and which files it was read from."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from mixout_export.errors import CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import file_digest
from mixout_export.parity.subject import (
    Candidate,
    OnnxSubject,
    ServedSubject,
    Subject,
    TorchSubject,
)

_KINDS = {
    "mixout": "mixout checkpoint",
    "huggingface": "Hugging Face folder",
    "onnx": "ONNX graph",
}


@dataclass(frozen=True)
class HashedFile:
    """A file and what it holds.

    Attributes:
        name: Its name in the side's folder.
        bytes: Its size.
        sha256: Its SHA-256, as `sha256sum` prints it.
    """

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        path: The path as the user gave it.
        kind: What lies there, in words.
        architecture: Class of the model; None if unknown.
        task: Name of the task; None without a head.
        labels: Names of the labels; empty where there are none.
        runs_in: What computed its outputs.
        files: The files that decide what it computes; none of a server's are known.
        served: Whether it is on a server.
    """

    path: str
    kind: str
    architecture: str | None
    task: str | None
    labels: tuple[str, ...]
    runs_in: str
    files: tuple[HashedFile, ...]
    served: bool = False


def _beside(graph: Path) -> Iterator[Path]:
    """Yield a graph, and the files that hold weights of it."""
    yield graph
    found = {
        entry.value
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    yield from (graph.parent / name for name in sorted(found))


def _files(subject: Subject) -> Iterator[Path]:
    if isinstance(subject, OnnxSubject):
        yield from _beside(subject.graph)
        if subject.cached_graph is not None:
            yield from _beside(subject.cached_graph)
        return
    yield subject.path / LAYOUT.config
    yield from subject.folder.weight_paths
    if subject.folder.kind == "mixout":
        yield from subject.folder.pretrained_paths


def _hashed(file: Path) -> HashedFile:
    try:
        return HashedFile(file.name, file.stat().st_size, file_digest(file))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error


def _runs_in(subject: Subject) -> str:
    if isinstance(subject, TorchSubject):
        return "PyTorch, float32, on the CPU"
    return f"onnxruntime, {subject.provider}"


def _describe_served(subject: ServedSubject) -> Side:
    session = subject.session
    over = "gRPC" if session.protocol == "grpc" else f"{session.address.scheme.upper()}, "
    how = {"json": "numbers as JSON", "binary": "numbers as bytes", "grpc": ""}[session.protocol]
    platform = f", {session.facts.platform}" if session.facts.platform else ""
    return Side(
        path=str(subject.path),
        kind="model on a server",
        architecture=None,
        task=None,
        labels=subject.labels or (),
        runs_in=f"{session.server}{platform}, over {over}{how}",
        files=(),
        served=True,
    )


def describe_side(subject: Candidate) -> Side:
    """Describe a side and hash its files.

    Raises:
        CheckpointError: A file cannot be read.
    """
    if isinstance(subject, ServedSubject):
        return _describe_served(subject)
    architectures = subject.folder.config.get("architectures") or [None]
    return Side(
        path=str(subject.path),
        kind=_KINDS[subject.folder.kind],
        architecture=architectures[0],
        task=subject.task,
        labels=subject.labels or (),
        runs_in=_runs_in(subject),
        files=tuple(_hashed(file) for file in _files(subject)),
    )
