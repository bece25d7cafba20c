"""Read and write the safetensors format as bytes, without PyTorch.

A file is an unsigned 64-bit little-endian header length, a JSON header that maps each key to its
dtype, shape and byte range, and the tensors' bytes. Moving bytes keeps weights exactly as they
are. It does not need the whole model in memory, and saves the time to import PyTorch.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from mixout_export.errors import CheckpointError
from mixout_export.files.streams import (
    PIECE,
    BackgroundHashing,
    Buffers,
    Piece,
    file_digest,
    output_file,
)

#: Bytes an element takes, by the format's dtype names.
DTYPE_SIZES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E4M3FNUZ": 1,
    "F8_E5M2": 1,
    "F8_E5M2FNUZ": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}

#: Dtypes that can be interpolated or converted.
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})

_CHUNK = 4 << 20
_LENGTH = struct.Struct("<Q")
_MAX_HEADER = 100_000_000


def same_rows(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Tell whether two shapes are equal, or differ in the number of rows only.

    A pretrained value has fewer rows than its weight if the model's embedding was enlarged. The
    new rows have no pretrained value.
    """
    return one == other or (bool(one and other) and one[1:] == other[1:])


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies.

    Attributes:
        key: Its name.
        dtype: Name of its dtype in the format, for example "F32".
        shape: Its shape.
        file: The file that holds it.
        offset: Position of its first byte in that file.
        nbytes: Number of bytes.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the tensor's bytes in pieces of a few megabytes."""
        buffer = memoryview(bytearray(min(_CHUNK, self.nbytes)))
        for piece in self.pieces(lambda: buffer):
            yield bytes(piece)

    def pieces(self, take: Callable[[], memoryview]) -> Iterator[memoryview]:
        """Yield the tensor's bytes in buffers from `take`, which then belong to the caller."""
        with FileIO(self.file) as stream:
            stream.seek(self.offset)
            left = self.nbytes
            while left:
                buffer = take()
                count = stream.readinto(buffer[:left])
                if not count:
                    raise CheckpointError(
                        f"{self.file}: ends inside {self.key!r}; it is truncated, copy it again"
                    )
                left -= count
                yield buffer[:count]

    def renamed(self, key: str) -> "TensorEntry":
        """Return the same tensor under another key."""
        return replace(self, key=key)

    def first_rows(self, count: int | None) -> "TensorEntry":
        """Return the first rows of the tensor; None means all of them."""
        if count is None or not self.shape:
            return self
        size = self.nbytes // self.shape[0]
        return replace(self, shape=(count, *self.shape[1:]), nbytes=count * size)

    def read(self) -> bytes:
        """Return the tensor's bytes."""
        return b"".join(self.chunks())

    def read_into(self, buffer: memoryview) -> None:
        """Read the tensor's bytes into a buffer of `nbytes` bytes, without a copy."""
        done = 0
        for piece in self.pieces(lambda: buffer[done:]):  # noqa: B023 (wants the current value)
            done += len(piece)

    def same_bytes(self, other: "TensorEntry") -> bool:
        """Tell whether two tensors agree in dtype, shape and every byte."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        return all(a == b for a, b in zip(self.chunks(), other.chunks(), strict=True))


class TensorSource(Protocol):
    """Anything that can be written as a tensor: a `TensorEntry`, or a computed value."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def dtype(self) -> str:
        """The format's name of its dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def nbytes(self) -> int:
        """Number of bytes."""

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes in order."""


def _is_counts(value: Any, length: int | None = None) -> bool:
    """Tell whether a JSON value is a list of whole numbers that are not negative."""
    return (
        isinstance(value, list)
        and (length is None or len(value) == length)
        and all(type(number) is int and number >= 0 for number in value)
    )


def _check_entry(path: Path, key: str, value: Any, data_length: int) -> tuple[int, int]:
    if (
        not isinstance(value, dict)
        or not isinstance(value.get("dtype"), str)
        or not _is_counts(value.get("shape"))
        or not _is_counts(value.get("data_offsets"), 2)
    ):
        raise CheckpointError(f"{path}: the header's entry {key!r} is malformed; copy it again")
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPE_SIZES:
        raise CheckpointError(f"{path}: {key!r} has the unknown dtype {dtype!r}")
    if end > data_length:
        raise CheckpointError(
            f"{path}: is truncated, {key!r} ends at data byte {end} and the file has "
            f"{data_length}; copy or download it again"
        )
    expected = math.prod(shape) * DTYPE_SIZES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: {key!r} takes {end - begin} bytes, expected {expected} for {dtype} of shape "
            f"{tuple(shape)}; the file is corrupt"
        )
    return begin, end


def _read_json_header(path: Path, stream: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    raw = stream.read(_LENGTH.size)
    if len(raw) < _LENGTH.size:
        raise CheckpointError(
            f"{path}: has {size} bytes, too few for a safetensors file; copy or download it again"
        )
    (length,) = _LENGTH.unpack(raw)
    start = _LENGTH.size + length
    if length > min(_MAX_HEADER, size - _LENGTH.size):
        raise CheckpointError(
            f"{path}: is truncated or no safetensors file (its header claims {length} bytes, the "
            f"file has {size}); copy or download it again"
        )
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the safetensors header is not valid JSON; copy or download it again"
        ) from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a JSON object")
    return header, start


def _check_coverage(path: Path, entries: Sequence[TensorEntry], start: int, size: int) -> None:
    """Refuse tensors that overlap, and bytes that belong to no tensor."""
    position = start
    for entry in entries:
        if entry.offset != position:
            raise CheckpointError(
                f"{path}: {entry.key!r} begins at data byte {entry.offset - start}, expected "
                f"{position - start} where the tensor before it ends; the file is corrupt, copy or "
                "download it again"
            )
        position += entry.nbytes
    if position != size:
        raise CheckpointError(
            f"{path}: holds {size - start} data bytes, its header describes {position - start}; "
            "the file is corrupt, copy or download it again"
        )


def read_tensors(path: Path) -> dict[str, TensorEntry]:
    """Read a safetensors file's header: key → where its tensor lies, in the order of the bytes.

    A file that is missing, truncated or malformed raises a `CheckpointError`.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            header, start = _read_json_header(path, stream, size)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    header.pop("__metadata__", None)
    entries = []
    for key, value in header.items():
        begin, end = _check_entry(path, key, value, size - start)
        shape = tuple(value["shape"])
        entries.append(TensorEntry(key, value["dtype"], shape, path, start + begin, end - begin))
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_coverage(path, entries, start, size)
    return {entry.key: entry for entry in entries}


def header_of(tensors: Sequence[TensorSource]) -> bytes:
    """Return the header of a file of these tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        header[tensor.key] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padded so that the data begins at a multiple of 64 bytes: memory-mapped weights are aligned.
    text += b" " * (-(len(text) + _LENGTH.size) % 64)
    return _LENGTH.pack(len(text)) + text


def pieces(tensor: TensorSource, buffers: Buffers) -> Iterator[Piece]:
    """Yield a tensor's bytes. The caller gives each piece back to `buffers`."""
    if isinstance(tensor, TensorEntry):
        yield from tensor.pieces(buffers.take)
    else:
        yield from tensor.chunks()


def write_tensors(path: Path, tensors: Sequence[TensorSource]) -> str:
    """Write a safetensors file, which must not exist, and flush it to the disk.

    The tensors are written in the given order, one at a time. Return the file's SHA-256, computed
    on the way.
    """
    buffers, digest = Buffers(), hashlib.sha256()
    hashing = BackgroundHashing(buffers)
    try:
        with output_file(path) as file:
            for piece in chain([header_of(tensors)], *(pieces(t, buffers) for t in tensors)):
                file.write(piece)
                hashing.update(piece, digest)
    finally:
        hashing.finish()
    return digest.hexdigest()


def digest_files(paths: Sequence[Path], piece: int = PIECE) -> str:
    """Return the SHA-256 that identifies a set of files; see `joint_digest`."""
    return joint_digest({path.name: file_digest(path, piece) for path in paths})


def joint_digest(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 that identifies a set of files, from file name → its own.

    One file gives its own SHA-256 (what `sha256sum` prints); several give that of the lines
    "<digest>  <name>" in the order of their names.
    """
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
