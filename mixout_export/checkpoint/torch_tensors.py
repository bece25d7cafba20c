"""Read and write single PyTorch tensors in safetensors files."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mixout_export.errors import CheckpointError
from mixout_export.files.tensors import TensorEntry

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def tensor_of(entry: TensorEntry) -> Tensor:
    """Read one tensor into memory of its own."""
    if entry.dtype not in _DTYPES:
        raise CheckpointError(
            f"{entry.file}: {entry.key!r} has the unsupported dtype {entry.dtype}"
        )
    value = torch.empty(entry.shape, dtype=_DTYPES[entry.dtype])
    entry.read_into(value.reshape(-1).view(torch.uint8).numpy().data)
    return value


def dtype_code(dtype: torch.dtype) -> str | None:
    """Return the safetensors name of a PyTorch dtype; None if the format has no such dtype."""
    return next((name for name, known in _DTYPES.items() if known == dtype), None)


class TensorInMemory:
    """A tensor in memory, to be written. Its dtype must be one of `_DTYPES`."""

    def __init__(self, key: str, value: Tensor) -> None:
        code = dtype_code(value.dtype)
        if code is None:
            raise CheckpointError(f"{key!r} has the unsupported dtype {value.dtype}")
        self.key = key
        self.dtype = code
        self.shape = tuple(value.shape)
        self._value = value
        self.nbytes = value.numel() * value.element_size()

    def renamed(self, key: str) -> "TensorInMemory":
        """Return the same tensor under another key."""
        return TensorInMemory(key, self._value)

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes."""
        flat = self._value.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
        yield flat.numpy().tobytes()
