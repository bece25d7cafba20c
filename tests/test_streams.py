import hashlib
import random
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mixout_export.checkpoint.streams import (
    PIECE,
    Background,
    BackgroundDigest,
    Buffers,
    OutputFile,
    file_digest,
    output_file,
)
from mixout_export.checkpoint.tensors import digest_files, read_tensors, write_tensors
from mixout_export.errors import CheckpointError

DATA = random.Random(0).randbytes(3 * PIECE + 12_345)


def test_a_result_comes_from_another_thread() -> None:
    assert Background(lambda: threading.current_thread().name).result() != "MainThread"


def test_an_error_comes_back_where_the_result_is_asked_for() -> None:
    def fail() -> None:
        raise CheckpointError("a file is damaged")

    background = Background(fail)
    with pytest.raises(CheckpointError, match="a file is damaged"):
        background.result()


@pytest.mark.parametrize("piece", [7919, PIECE, 16 * PIECE])
def test_a_files_digest(piece: int, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    expected = hashlib.sha256(DATA).hexdigest()
    assert file_digest(tmp_path / "a", piece) == expected
    assert digest_files([tmp_path / "a"], piece) == expected


def test_buffers_are_used_again_only_after_they_were_hashed() -> None:
    """More pieces than buffers: one that came back too early would be overwritten."""
    buffers = Buffers()
    digest, expected = BackgroundDigest(buffers), hashlib.sha256()
    for number in range(200):
        buffer = buffers.take()
        buffer[:] = bytes([number]) * len(buffer)
        digest.update(buffer[: number + 1])
        expected.update(bytes([number]) * (number + 1))
        digest.update(b"header")
        expected.update(b"header")
    assert digest.finish() == expected.hexdigest()


class _Reluctant:
    """A stream that takes as little as a pipe or a nearly full disk may."""

    def __init__(self) -> None:
        self.taken = b""

    def write(self, data: memoryview) -> int:
        self.taken += bytes(data[:1000])
        return min(1000, len(data))


def test_a_write_that_takes_less_than_it_is_given_goes_on() -> None:
    stream = _Reluctant()
    OutputFile(stream).write(DATA[:123_456])  # type: ignore[arg-type]
    assert stream.taken == DATA[:123_456]


def test_a_large_file_is_written_whole(tmp_path: Path) -> None:
    with output_file(tmp_path / "a") as file:
        for _ in range(20):
            file.write(DATA)
    assert (tmp_path / "a").read_bytes() == DATA * 20


def test_a_file_cut_while_it_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(PIECE)}, path)
    entries = list(read_tensors(path).values())
    path.write_bytes(path.read_bytes()[: 2 * PIECE])
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match="ends inside 'a'; it is truncated"):
        write_tensors(tmp_path / "b.safetensors", entries)
    assert threading.active_count() == threads
