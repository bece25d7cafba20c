import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mixout_export.checkpoint.torch_tensors import _DTYPES, tensor_of
from mixout_export.errors import CheckpointError
from mixout_export.files.tensors import (
    DTYPE_SIZES,
    digest_files,
    read_tensors,
    write_tensors,
)
from mixout_export.files.writing import TensorFile, write_index

LIBRARY_ONLY = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "C64": torch.complex64,
}


def bits(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of random bits, NaNs and infinities among them."""
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    size = torch.empty((), dtype=dtype).element_size()
    count = torch.Size(shape).numel()
    raw = torch.randint(0, 256, (count * size,), dtype=torch.uint8)
    return raw.view(dtype).reshape(shape) if count else torch.empty(shape, dtype=dtype)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"vector": (5,), "matrix": (3, 7), "scalar": (), "empty": (0, 4), "cube": (2, 1, 3)}
    dtypes = {**_DTYPES, **LIBRARY_ONLY}
    return {
        f"{name}.{code}": bits(shape, dtype)
        for code, dtype in dtypes.items()
        for name, shape in shapes.items()
    }


def raw_bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_every_dtype_of_the_format_is_known(tensors) -> None:
    assert set(DTYPE_SIZES) == {key.split(".")[1] for key in tensors}


def test_reads_what_the_library_writes(tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    entries = read_tensors(tmp_path / "a.safetensors")
    assert entries.keys() == tensors.keys()
    for key, entry in entries.items():
        tensor = tensors[key]
        assert (entry.key, entry.dtype) == (key, key.split(".")[1])
        assert entry.shape == tuple(tensor.shape)
        assert entry.nbytes == tensor.numel() * tensor.element_size()
        assert entry.read() == raw_bytes(tensor)


def test_the_library_reads_what_is_written(tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    entries = list(read_tensors(tmp_path / "a.safetensors").values())[::-1]
    path = tmp_path / "b.safetensors"
    digest = write_tensors(path, entries)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert loaded[key].dtype == tensor.dtype
        assert loaded[key].shape == tensor.shape
        assert raw_bytes(loaded[key]) == raw_bytes(tensor)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    (length,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert (8 + length) % 64 == 0
    assert [e.key for e in read_tensors(path).values() if e.nbytes] == [
        e.key for e in entries if e.nbytes
    ]


def test_a_file_without_tensors(tmp_path: Path) -> None:
    write_tensors(tmp_path / "none.safetensors", [])
    assert read_tensors(tmp_path / "none.safetensors") == {}
    assert load_file(tmp_path / "none.safetensors") == {}


def test_an_existing_file_is_never_rewritten(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("precious")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "a.safetensors", [])
    assert (tmp_path / "a.safetensors").read_text() == "precious"


@pytest.mark.parametrize("code", sorted(_DTYPES))
def test_tensors_come_into_memory_of_their_own(code: str, tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    entries = read_tensors(tmp_path / "a.safetensors")
    for name in ("matrix", "scalar", "empty"):
        tensor = tensor_of(entries[f"{name}.{code}"])
        assert tensor.dtype == _DTYPES[code]
        assert tensor.shape == tensors[f"{name}.{code}"].shape
        assert raw_bytes(tensor) == raw_bytes(tensors[f"{name}.{code}"])
        tensor.zero_()
    assert raw_bytes(load_file(tmp_path / "a.safetensors")[f"matrix.{code}"]) == raw_bytes(
        tensors[f"matrix.{code}"]
    )


def test_a_dtype_without_an_equivalent_is_refused(tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"'matrix\.C64' has the unsupported dtype C64"):
        tensor_of(read_tensors(tmp_path / "a.safetensors")["matrix.C64"])


def test_large_tensors_come_in_pieces(tmp_path: Path) -> None:
    tensor = torch.arange(3_000_001, dtype=torch.int32)
    save_file({"big": tensor}, tmp_path / "a.safetensors")
    entry = read_tensors(tmp_path / "a.safetensors")["big"]
    chunks = list(entry.chunks())
    assert len(chunks) == 3
    assert b"".join(chunks) == raw_bytes(tensor)


def test_equal_bytes(tmp_path: Path) -> None:
    one = torch.arange(6.0)
    other = one.clone()
    other[5] = -1.0
    save_file({"a": one}, tmp_path / "1.safetensors")
    save_file({"x": one, "a": one.clone().reshape(2, 3)}, tmp_path / "2.safetensors")
    save_file({"a": one.view(torch.int32), "b": other}, tmp_path / "3.safetensors")
    a, two, three = (read_tensors(tmp_path / f"{n}.safetensors") for n in (1, 2, 3))
    assert a["a"].same_bytes(two["x"])
    assert not a["a"].same_bytes(two["a"])  # another shape
    assert not a["a"].same_bytes(three["a"])  # another dtype
    assert not a["a"].same_bytes(three["b"])  # another last element


def file_with(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: object, end: object, dtype: object = "F32", shape: object = (1,)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_truncation_at_any_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(4.0), "b": torch.arange(3)}, path)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"a\.safetensors: .*(truncated|too few)"):
            read_tensors(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="holds 41 data bytes, its header describes 40"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        (b"[" * 200_000, b"", "not valid JSON"),
        ([1], b"", "not a JSON object"),
        ({"a": 1}, b"", "entry 'a' is malformed"),
        ({"a": {"dtype": "F32"}}, b"", "entry 'a' is malformed"),
        ({"a": {**entry(0, 4), "data_offsets": [0]}}, b"0000", "entry 'a' is malformed"),
        ({"a": {**entry(0, 4), "data_offsets": 4}}, b"0000", "entry 'a' is malformed"),
        ({"a": entry(0, 4, shape=1)}, b"0000", "entry 'a' is malformed"),
        ({"a": entry(0, 4, shape=["1"])}, b"0000", "entry 'a' is malformed"),
        ({"a": entry(0, 4, shape=[-1, -1])}, b"0000", "entry 'a' is malformed"),
        ({"a": entry(0, 4, shape=[1.0])}, b"0000", "entry 'a' is malformed"),
        ({"a": entry(0, 4, dtype=["F32"])}, b"0000", "entry 'a' is malformed"),
        ({"a": entry(-4, 0)}, b"0000", "entry 'a' is malformed"),
        ({"a": entry(0, 4, dtype="F33")}, b"0000", "unknown dtype 'F33'"),
        ({"a": entry(4, 0)}, b"0000", "takes -4 bytes, expected 4"),
        ({"a": entry(0, 4, shape=[2])}, b"0000", r"takes 4 bytes, expected 8 for F32 of shape"),
        ({"a": entry(0, 8, shape=[2])}, b"0000", "is truncated, 'a' ends at data byte 8"),
        (
            {"a": entry(0, 4), "b": entry(0, 4)},
            b"00000000",
            "'b' begins at data byte 0, expected 4",
        ),
        ({"a": entry(4, 8)}, b"00000000", "'a' begins at data byte 4, expected 0"),
    ],
)
def test_a_malformed_header_is_refused(header, data: bytes, message: str, tmp_path: Path) -> None:
    path = file_with(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [3, 10**7, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(length: int, tmp_path: Path) -> None:
    path = file_with(tmp_path / "bad.safetensors", b"{}", length=length)
    with pytest.raises(CheckpointError, match="truncated or no safetensors file"):
        read_tensors(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be read \(No such file"):
        read_tensors(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Is a directory"):
        read_tensors(tmp_path)
    pointer = tmp_path / "model.safetensors"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        read_tensors(pointer)


def test_a_file_cut_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(4.0)}, path)
    found = read_tensors(path)["a"]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="ends inside 'a'"):
        found.read()


def test_index(tmp_path: Path) -> None:
    for name, key in (("1", "a"), ("2", "b")):
        save_file({key: torch.zeros(int(name))}, tmp_path / f"{name}.safetensors")
    files = [
        TensorFile(path, tuple(read_tensors(path).values()))
        for path in (tmp_path / "2.safetensors", tmp_path / "1.safetensors")
    ]
    write_index(tmp_path / "index.json", files)
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["metadata"] == {"total_size": 12}
    assert list(index["weight_map"].items()) == [("a", "1.safetensors"), ("b", "2.safetensors")]


def test_digest_of_files(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(name)
    digests = {n: hashlib.sha256(n.encode()).hexdigest() for n in ("a", "b")}
    assert digest_files([tmp_path / "a"]) == digests["a"]
    lines = f"{digests['a']}  a\n{digests['b']}  b\n"
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert digest_files([tmp_path / "b", tmp_path / "a"]) == expected
