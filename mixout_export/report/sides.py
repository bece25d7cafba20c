"""One side of a comparison: what it is, and which files it was read from."""

from dataclasses import dataclass
from typing import NamedTuple

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.errors import CheckpointError


class HashedFile(NamedTuple):
    """A file by its name in the side's folder, with its size and its SHA-256."""

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


def describe_side(side: Artifact) -> Side:
    """Describe a side and hash its files.

    Raises:
        CheckpointError: A file cannot be read.
    """
    try:
        files = tuple(
            HashedFile(file.name, file.stat().st_size, digest) for file, digest in side.parts()
        )
    except OSError as error:
        raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return Side(
        path=side.where,
        kind=side.title,
        architecture=side.architecture,
        task=side.task_name,
        labels=side.labels or (),
        runs_in=side.runs_in,
        files=files,
        served=side.session is not None,
    )
