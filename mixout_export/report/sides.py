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
        artifact: The side itself.
        files: The files that decide what it computes; a server shows none.
    """

    artifact: Artifact
    files: tuple[HashedFile, ...]


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
    return Side(side, files)
