"""The files that hold a folder's weights, and their hash."""

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mixout_export.errors import CheckpointError
from mixout_export.files.input_files import InputFiles
from mixout_export.files.json_files import read_json
from mixout_export.files.layout import LAYOUT
from mixout_export.files.streams import in_background
from mixout_export.files.tensors import TensorEntry, digest_files, read_tensors

#: Files of a distributed checkpoint, which newer versions of transformers prefer to all others.
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")

#: Files whose ages differ by less than this, in seconds, may have been copied together.
_COPY_SECONDS = 60


@dataclass(frozen=True)
class WeightFiles:
    """The decision about which files of a folder hold its weights.

    Attributes:
        files: The files in the order of their names; empty if there are none.
        index: The index that lists them; None for a single file.
        stale: An index that is ignored, because the shards that it lists are gone and a single
            file was written after it; None without one.
    """

    files: tuple[Path, ...] = ()
    index: Path | None = None
    stale: Path | None = None

    @property
    def name(self) -> str | None:
        """Name of the file with which a reader begins; None if there are no weights."""
        return next((path.name for path in (self.index, *self.files) if path is not None), None)


def find_weights(folder: InputFiles) -> WeightFiles:
    """Find the safetensors files of a folder's weights: those that transformers would read.

    `transformers_weights` in `config.json` comes first, then the single file, then the shards.

    Raises:
        CheckpointError: A file is missing, or two sets of files hold different weights.
    """
    path = folder.folder
    for file in sorted(path.iterdir()):
        if _DISTRIBUTED.fullmatch(file.name):
            raise CheckpointError(
                f"{file}: belongs to a distributed checkpoint, expected {LAYOUT.weights}; load it "
                "with transformers and save it with save_pretrained into a new folder"
            )
    named = folder.config.get("transformers_weights")
    if named is None:
        return _choose(path, LAYOUT.weights, LAYOUT.weights_index, _same_tensors)
    if not isinstance(named, str) or Path(named).name != named or not (path / named).is_file():
        raise CheckpointError(
            f"{path / LAYOUT.config}: its 'transformers_weights' names {named!r}, expected a file "
            "of the same folder; restore that file or remove the entry"
        )
    if named.endswith(".index.json"):
        return _shards(path / named)
    return WeightFiles((path / named,))


def find_anchors(path: Path) -> WeightFiles:
    """Find the files of a folder's anchors, in the same way as those of its weights."""
    return _choose(path, LAYOUT.pretrained, LAYOUT.pretrained_index, _same_tensors)


def find_pickles(path: Path) -> WeightFiles:
    """Find the pickles of a folder's weights, which are not read to compare them."""
    return _choose(path, LAYOUT.pickle_weights, LAYOUT.pickle_index, lambda _one, _shards: False)


def newer_pickle(path: Path, weights: WeightFiles) -> Path | None:
    """Return a pickle beside the weights that was written after them, if there is one.

    It may hold other weights, for example of a trainer that saves no safetensors. Files of one copy
    or download are about equally old.
    """
    pickles = (path / LAYOUT.pickle_weights, path / LAYOUT.pickle_index)
    written = max((file.stat().st_mtime for file in weights.files), default=float("inf"))
    newer = (f for f in pickles if f.is_file() and f.stat().st_mtime > written + _COPY_SECONDS)
    return next(newer, None)


def _choose(
    path: Path, single: str, index: str, same: Callable[[Path, Sequence[Path]], bool]
) -> WeightFiles:
    """Choose between a single file and the shards of an index, as transformers does."""
    file, index_path = path / single, path / index
    if not index_path.exists():
        return WeightFiles((file,) if file.exists() else ())
    if not file.exists():
        return _shards(index_path)
    listed = _listed(index_path)
    missing = [shard for shard in listed if not shard.exists()]
    if len(missing) == len(listed) and index_path.stat().st_mtime <= file.stat().st_mtime:
        return WeightFiles((file,), stale=index_path)
    if missing:
        raise CheckpointError(
            f"{index_path}: lists {missing[0].name!r}, which is missing, and {single} is there "
            f"too; if {single} holds the right weights, delete the index, else restore the shards "
            f"and delete {single}"
        )
    if listed != [file] and not same(file, listed):
        raise CheckpointError(
            f"{file}: holds other weights than the shards of {index}, such as {listed[0].name}, "
            f"and transformers reads {single}; delete the set that is wrong: either {single}, or "
            "the index with its shards"
        )
    return WeightFiles((file,))


def _listed(index: Path) -> list[Path]:
    """Return the files that an index lists, whether they exist or not."""
    weight_map = read_json(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise CheckpointError(f"{index}: has no usable weight_map; restore the file")
    return [index.parent / name for name in sorted(set(weight_map.values()))]


def _shards(index: Path) -> WeightFiles:
    files = _listed(index)
    for file in files:
        if file.parent != index.parent or not file.exists():
            raise CheckpointError(f"{index}: lists {file.name!r}, which is missing; restore it")
    return WeightFiles(tuple(files), index)


def _same_tensors(file: Path, shards: Sequence[Path]) -> bool:
    """Tell whether shards hold the same tensors as a single file, byte by byte."""
    one = read_tensors(file)
    others: dict[str, TensorEntry] = {}
    for shard in shards:
        others |= read_tensors(shard)
    return one.keys() == others.keys() and all(
        entry.same_bytes(others[key]) for key, entry in one.items()
    )


def refuse_unlisted(index: Path | None, tensors: Container[str]) -> None:
    """Refuse an index that lists a tensor which none of its files holds."""
    weight_map = {} if index is None else read_json(index)["weight_map"]
    for key, name in weight_map.items():
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

    def __init__(self, files: Sequence[Path], folder: InputFiles | None = None) -> None:
        self.files = tuple(files)
        self.folder = folder
        self._digest = in_background(partial(digest_files, self.files, self._PIECE))

    @classmethod
    def begin(cls, path: Path) -> "BaseDigest | None":
        """Begin hashing. Return None if the folder has no such weights or they cannot be read."""
        folder = InputFiles(path)
        try:
            files = find_weights(folder).files if path.is_dir() else ()
        except (CheckpointError, OSError):
            return None
        return cls(files, folder) if files else None

    def opened(self, path: Path) -> InputFiles:
        """Return the files of the folder, with what was read of them to find the weights."""
        if self.folder is None or self.folder.folder != path:
            return InputFiles(path)
        return self.folder

    def result(self) -> str:
        """Wait for the digest and return it; raise `CheckpointError` if a file cannot be read."""
        try:
            return self._digest.result()
        except OSError as error:
            raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror})") from error
