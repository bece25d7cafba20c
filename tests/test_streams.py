import hashlib
import os
import random
import threading
from pathlib import Path

import pytest
import torch
from cli_runs import small_files
from safetensors.torch import save_file

from mixout_export.errors import CheckpointError
from mixout_export.files.streams import (
    PIECE,
    BackgroundHashing,
    Buffers,
    OutputFile,
    file_digest,
    in_background,
    output_file,
)
from mixout_export.files.tensors import digest_files, read_tensors, write_tensors

DATA = random.Random(0).randbytes(3 * PIECE + 12_345)


def test_a_result_comes_from_another_thread() -> None:
    assert in_background(lambda: threading.current_thread().name).result() != "MainThread"


def test_an_error_comes_back_where_the_result_is_asked_for() -> None:
    def fail() -> None:
        raise CheckpointError("a file is damaged")

    background = in_background(fail)
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
    hashing, digest, expected = BackgroundHashing(buffers), hashlib.sha256(), hashlib.sha256()
    for number in range(200):
        buffer = buffers.take()
        buffer[:] = bytes([number]) * len(buffer)
        hashing.update(buffer[: number + 1], digest)
        expected.update(bytes([number]) * (number + 1))
        hashing.update(b"header", digest)
        expected.update(b"header")
    hashing.finish()
    assert digest.hexdigest() == expected.hexdigest()


SIZES = [0, 1, 4096, 8 * PIECE - 1, 8 * PIECE, 8 * PIECE + 1, 17 * PIECE + 4097]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [PIECE, 1_234_567])
def test_a_file_is_written_whole(size: int, piece: int, tmp_path: Path) -> None:
    data = (DATA * 8)[:size]
    with output_file(tmp_path / "a") as file:
        for start in range(0, size, piece):
            file.write(data[start : start + piece])
    assert (tmp_path / "a").read_bytes() == data


def test_a_file_system_that_cannot_go_past_its_cache() -> None:
    """Files in memory refuse it: when they are told to, or when they are written to."""
    data = DATA * 4
    descriptor = os.memfd_create("file")
    try:
        file = OutputFile(descriptor)
        file.write(data)
        file.finish()
        assert os.pread(descriptor, len(data) + 1, 0) == data
    finally:
        os.close(descriptor)


def test_a_write_that_is_refused_past_the_cache_goes_through_it(tmp_path: Path) -> None:
    """After an odd number of bytes, no block lies where the disk wants it."""
    descriptor = os.open(tmp_path / "a", os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, b"odd")
        file = OutputFile(descriptor)
        file.write(DATA * 4)
        file.finish()
    finally:
        os.close(descriptor)
    assert (tmp_path / "a").read_bytes() == b"odd" + DATA * 4


def test_a_full_disk_is_said_to_be_full(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="File too large"),
        small_files(9 * PIECE + 5),
        output_file(tmp_path / "a") as file,
    ):
        file.write(DATA * 6)


def test_a_file_cut_while_it_is_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(PIECE)}, path)
    entries = list(read_tensors(path).values())
    path.write_bytes(path.read_bytes()[: 2 * PIECE])
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match="ends inside 'a'; it is truncated"):
        write_tensors(tmp_path / "b.safetensors", entries)
    assert threading.active_count() == threads
