"""The files that hold a folder's weights, and their hash."""

from collections.abc import Container, Sequence
from functools import partial
from pathlib import Path

from mixout_export.errors import CheckpointError
from mixout_export.files.json_files import read_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import in_background
from mixout_export.files.tensors import digest_files


def weight_files(path: Path, weights: str, index: str) -> list[Path]:
    """Return the files that an index lists, else the single file, else nothing."""
    index_path = path / index
    if not index_path.exists():
        single = path / weights
        return [single] if single.exists() else []
    weight_map = read_json(index_path).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(f"{index_path}: has no usable weight_map; restore the file")
    files = [path / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if file.parent != path or not file.exists():
            raise CheckpointError(
                f"{index_path}: lists {file.name!r}, which is missing; restore it"
            )
    return files


def refuse_unlisted(index: Path, tensors: Container[str]) -> None:
    """Refuse an index that lists a tensor which none of its files holds."""
    for key, name in read_json(index)["weight_map"].items() if index.exists() else ():
        if key not in tensors:
            raise CheckpointError(
                f"{index}: lists {key!r} in {name}, which does not hold it; restore the files"
            )


class BaseDigest:
    """The SHA-256 of a folder's safetensors weights, computed in a second thread.

    It begins before PyTorch is imported and is done when the import is. Pieces are large because
    the thread waits for the interpreter's lock after each of them.
    """

    _PIECE = 16 << 20

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)
        self._digest = in_background(partial(digest_files, self.files, self._PIECE))

    @classmethod
    def begin(cls, path: Path) -> "BaseDigest | None":
        """Begin hashing. Return None if the folder has no such weights or they cannot be read."""
        try:
            files = weight_files(path, LAYOUT.weights, LAYOUT.weights_index)
        except CheckpointError:
            return None
        return cls(files) if files else None

    def result(self) -> str:
        """Wait for the digest and return it; raise `CheckpointError` if a file cannot be read."""
        try:
            return self._digest.result()
        except OSError as error:
            raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error
