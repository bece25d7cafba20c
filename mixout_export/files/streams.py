"""Write bytes straight to the disk while a second thread hashes them."""

import errno
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import Protocol, TypeVar

from xxhash import xxh3_64

try:
    import fcntl
except ImportError:  # Windows has no such module
    _DIRECT = 0
else:
    _DIRECT = getattr(os, "O_DIRECT", 0)  # only Linux has it

T = TypeVar("T")

#: Bytes to write. A view belongs to a buffer that is used again.
Piece = bytes | memoryview

#: Bytes that are read, hashed and written at a time. They fit into the processor's cache.
PIECE = 1 << 20

_WAITING = 16
_BLOCK = 8 << 20


def in_background(function: Callable[[], T]) -> Future[T]:
    """Run a function in a second thread, which ends with the process.

    This saves time for work that releases the interpreter's lock, such as reading files and hashing
    large pieces.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # raised again where the result is asked for
            future.set_exception(error)

    Thread(target=work, daemon=True).start()
    return future


class Hash(Protocol):
    """A hash function that is given pieces one after the other."""

    def update(self, piece: Piece, /) -> None:
        """Add a piece."""

    def hexdigest(self) -> str:
        """Return the digest of all pieces."""


def quick_hash() -> Hash:
    """Return an XXH3 hash: ten times as fast as SHA-256, and good against damage but not malice."""
    return xxh3_64()


def _hash_files(digest: Hash, paths: Sequence[Path], piece: int = PIECE) -> str:
    buffer = memoryview(bytearray(piece))
    for path in paths:
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                digest.update(buffer[:count])
    return digest.hexdigest()


def file_digest(path: Path, piece: int = PIECE) -> str:
    """Return a file's SHA-256 (what `sha256sum` prints), read `piece` bytes at a time."""
    return _hash_files(hashlib.sha256(), [path], piece)


def data_digest(path: Path) -> str:
    """Return the SHA-256 of a data file, or of the names and contents of a folder's files."""
    if not path.is_dir():
        return file_digest(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file_digest(file)}\n".encode())
    return digest.hexdigest()


def quick_digest(paths: Sequence[Path]) -> str:
    """Return the quick hash of the bytes of several files, one file after the other."""
    return _hash_files(quick_hash(), paths)


class Buffers:
    """A few buffers that are used again, because allocating memory takes longer than filling it."""

    def __init__(self) -> None:
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        for _ in range(_WAITING + 2):
            self._free.put(memoryview(bytearray(PIECE)))

    def take(self) -> memoryview:
        """Return a free buffer; wait until there is one."""
        return self._free.get()

    def give(self, piece: Piece) -> None:
        """Return a buffer, or the used part of one. Other bytes are ignored."""
        if isinstance(piece, memoryview) and isinstance(piece.obj, bytearray):
            self._free.put(memoryview(piece.obj))


class BackgroundHashing:
    """Hash pieces in a second thread, which works because hashlib releases the interpreter's lock.

    At most sixteen pieces wait, so that memory stays bounded. Buffers go back once they are hashed.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._pieces: SimpleQueue[tuple[Piece, tuple[Hash, ...]] | None] = SimpleQueue()
        self._places = Semaphore(_WAITING)
        self._thread = Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while (job := self._pieces.get()) is not None:
            piece, hashes = job
            for each in hashes:
                each.update(piece)
            self._buffers.give(piece)
            self._places.release()

    def update(self, piece: Piece, *hashes: Hash) -> None:
        """Add a piece to some hashes; wait while too many pieces are queued."""
        self._places.acquire()
        self._pieces.put((piece, hashes))

    def finish(self) -> None:
        """Wait until every piece is hashed, and end the thread."""
        self._pieces.put(None)
        self._thread.join()


class OutputFile:
    """A new file that is written once, front to back, without the system's page cache.

    The cache takes memory page by page and is written to the disk later, which slows the process
    down: 1.3 GB took between 0.8 and 5 s through the cache, and takes 1.0 s without it. Files that
    are smaller than a block and the last part of other files still go through the cache, and so
    does everything on file systems without direct writing. While one block is written, the next is
    filled.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # an anonymous map begins at a page boundary, which direct writing needs
        self._block, self._other = (memoryview(mmap.mmap(-1, _BLOCK)) for _ in range(2))
        self._filled = 0
        self._sending: Future[None] | None = None

    def write(self, piece: Piece) -> None:
        """Append a piece."""
        rest = memoryview(piece)
        while rest:
            count = min(len(rest), _BLOCK - self._filled)
            self._block[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            rest = rest[count:]
            if self._filled == _BLOCK:
                self.wait()
                self._set_direct(True)
                self._sending = in_background(partial(self._send, self._block))
                self._block, self._other = self._other, self._block
                self._filled = 0

    def finish(self) -> None:
        """Write what is left, and wait until all is on the disk."""
        self.wait()
        self._set_direct(False)
        self._send(self._block[: self._filled])
        os.fsync(self._descriptor)

    def wait(self) -> None:
        """Wait for the block that is being written, and raise the error if it failed."""
        sending, self._sending = self._sending, None
        if sending is not None:
            sending.result()

    def _send(self, rest: memoryview) -> None:
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._set_direct(False):
                    raise

    def _set_direct(self, direct: bool) -> bool:
        """Turn direct writing on or off; return whether that changed anything."""
        if not _DIRECT:
            return False
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        wanted = flags | _DIRECT if direct else flags & ~_DIRECT
        if wanted == flags:
            return False
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, wanted)
        except OSError:  # for example a file system in memory
            return False
        return True


@contextmanager
def output_file(path: Path) -> Iterator[OutputFile]:
    """Create a file to write, which must not exist, and flush it to the disk at the end."""
    with path.open("xb", buffering=0) as stream:
        file = OutputFile(stream.fileno())
        try:
            yield file
            file.finish()
        except BaseException:
            with suppress(OSError):
                file.wait()  # else the block might be written to the next file with this descriptor
            raise
