"""Write several safetensors files at once: shards, and files that repeat some of the tensors."""

import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from mixout_export.files.layout import LAYOUT
from mixout_export.files.sidecar_files import make_read_only
from mixout_export.files.streams import BackgroundHashing, Buffers, Hash, Piece, output_file
from mixout_export.files.tensors import TensorSource, header_of, joint_digest, pieces

#: Bytes above which the weights, and the anchors, are split into several files.
SHARD_SIZE = "5GB"
ANCHOR_SHARD = 5_000_000_000


@dataclass(frozen=True)
class TensorFile:
    """A file to write, which must not exist, and its tensors in the order to write them."""

    path: Path
    tensors: tuple[TensorSource, ...]


class _Copies:
    """Files that are written one after the other and hashed at the same time."""

    def __init__(
        self,
        files: Sequence[TensorFile],
        hashing: BackgroundHashing,
        also: Hash | None,
        opened: ExitStack,
    ) -> None:
        self._files = list(files)
        self._hashing = hashing
        self._also = () if also is None else (also,)
        self._open = opened
        self.hashes: dict[str, Hash] = {}
        self._begin()

    def _begin(self) -> None:
        current = self._files.pop(0)
        self._left = sum(tensor.nbytes for tensor in current.tensors)
        self._output = self._open.enter_context(output_file(current.path))
        self._hash = self.hashes[current.path.name] = hashlib.sha256()
        self._write(header_of(current.tensors))

    def _write(self, piece: Piece, *hashes: Hash) -> None:
        self._output.write(piece)
        self._hashing.update(piece, self._hash, *self._also, *hashes)

    def append(self, piece: Piece, *hashes: Hash) -> None:
        """Write the next bytes, which belong to one tensor, into the file of that tensor."""
        if not len(piece):
            self._hashing.update(piece)
            return
        while not self._left:
            self._open.close()
            self._begin()
        self._left -= len(piece)
        self._write(piece, *hashes)


def write_twice(
    files: Sequence[TensorFile],
    copies: Sequence[TensorFile],
    copied: Set[str],
    *,
    also: Hash | None = None,
) -> dict[str, str]:
    """Write files, and copies of some of their tensors, while reading each tensor only once.

    Args:
        files: The files to write.
        copies: Files with some of the same tensors, in the same order. Their keys may differ.
        copied: Keys, in `files`, of the tensors that the copies hold.
        also: A second hash of the bytes of all copies, one after the other.

    Returns:
        File name → SHA-256 of each file and each copy, computed on the way.
    """
    buffers = Buffers()
    hashing = BackgroundHashing(buffers)
    hashes: dict[str, Hash] = {}
    try:
        with ExitStack() as opened:
            copy = _Copies(copies, hashing, also, opened)
            for file in files:
                whole = hashes[file.path.name] = hashlib.sha256()
                with output_file(file.path) as output:
                    header = header_of(file.tensors)
                    output.write(header)
                    hashing.update(header, whole)
                    for tensor in file.tensors:
                        pass_on = copy.append if tensor.key in copied else hashing.update
                        for piece in pieces(tensor, buffers):
                            output.write(piece)
                            pass_on(piece, whole)
    finally:
        hashing.finish()
    return {name: each.hexdigest() for name, each in (hashes | copy.hashes).items()}


def shards_of(
    directory: Path, name: str, tensors: Sequence[TensorSource], *, limit: int
) -> list[TensorFile]:
    """Distribute tensors over one file, or over shards if they exceed a size.

    Args:
        directory: Where to write.
        name: Name of the single file. Shards are called `<stem>-00001-of-00002.safetensors`.
        tensors: The tensors in the order to write them.
        limit: Bytes above which there is more than one file. A larger tensor has one of its own.

    Returns:
        The files to write.
    """
    shards: list[list[TensorSource]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return [TensorFile(directory / name, tuple(tensors))]
    stem, suffix = name.rsplit(".", 1)
    names = [f"{stem}-{i:05d}-of-{len(shards):05d}.{suffix}" for i in range(1, len(shards) + 1)]
    return [
        TensorFile(directory / shard_name, tuple(shard))
        for shard_name, shard in zip(names, shards, strict=True)
    ]


def write_index(path: Path, files: Sequence[TensorFile]) -> None:
    """Write the index of the files of a checkpoint."""
    weight_map = {tensor.key: file.path.name for file in files for tensor in file.tensors}
    total_size = sum(tensor.nbytes for file in files for tensor in file.tensors)
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def finish_anchors(directory: Path, files: Sequence[TensorFile], digests: Mapping[str, str]) -> str:
    """Complete the files of anchors, which never change: add their index, make them read-only.

    Return the SHA-256 that identifies them, from file name → SHA-256.
    """
    if len(files) > 1:
        write_index(directory / LAYOUT.pretrained_index, files)
    for file in files:
        make_read_only(file.path)
    return joint_digest({file.path.name: digests[file.path.name] for file in files})
