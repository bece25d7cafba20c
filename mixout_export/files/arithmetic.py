"""Tensors that are computed while they move from file to file, without PyTorch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.files.tensors import DTYPE_SIZES, FLOATING, TensorEntry, same_rows

_NUMPY = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

#: Dtypes that `--dtype` offers, by the names PyTorch gives them.
DTYPE_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def as_array(entry: TensorEntry) -> NDArray[np.generic]:
    """Read a floating-point tensor."""
    return np.frombuffer(entry.read(), _NUMPY[entry.dtype]).reshape(entry.shape)


def squares(entry: TensorEntry, pretrained: TensorEntry) -> tuple[float, float]:
    """Return ‖w - u‖² and ‖u‖², summed in float64, over the rows that both have."""
    if entry.dtype not in FLOATING or not same_rows(entry.shape, pretrained.shape):
        raise CheckpointError(
            f"{pretrained.file}: {pretrained.key!r} is {pretrained.dtype} of shape "
            f"{pretrained.shape}, expected one like the weight's {entry.dtype} {entry.shape}"
        )
    common = min(math.prod(entry.shape), math.prod(pretrained.shape))
    u = as_array(pretrained).astype(np.float64).ravel()[:common]
    difference = as_array(entry).astype(np.float64).ravel()[:common] - u
    return float(difference @ difference), float(u @ u)


@dataclass(frozen=True)
class Converted:
    """A tensor as it lies in a file, in another dtype.

    Attributes:
        entry: Where it lies.
        dtype: The format's name of the dtype to write.
    """

    entry: TensorEntry
    dtype: str

    @property
    def key(self) -> str:
        """Its name."""
        return self.entry.key

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.entry.shape

    @property
    def nbytes(self) -> int:
        """Number of bytes to write."""
        return math.prod(self.shape) * DTYPE_SIZES[self.dtype]

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes in order; refuse a finite value that does not fit the dtype."""
        for values in self._values():
            yield _cast(values, self.dtype, self.entry)

    def _values(self) -> Iterator[NDArray[np.generic]]:
        return _elements(self.entry)


@dataclass(frozen=True)
class Interpolated(Converted):
    """(1 - α)·u + α·w, computed in float64 (WiSE-FT, Wortsman et al. 2022).

    Rows of w that u does not have stay as they are.

    Attributes:
        entry: Where the trained weight w lies.
        dtype: The format's name of the dtype to write.
        pretrained: Where its pretrained value u lies. It has the same shape, or another number of
            rows.
        alpha: α in [0, 1). At 0, u is taken as it is, with the signs of its zeros.
    """

    pretrained: TensorEntry
    alpha: float

    def _values(self) -> Iterator[NDArray[np.generic]]:
        none: NDArray[np.generic] = np.empty(0)
        pieces = _elements(self.pretrained)
        for w in _elements(self.entry):
            mixed = w.astype(np.float64)
            u = next(pieces, none)[: mixed.size].astype(np.float64)
            if self.alpha:
                u = (1.0 - self.alpha) * u + self.alpha * mixed[: u.size]
            mixed[: u.size] = u
            yield mixed


def _elements(entry: TensorEntry, count: int = 1 << 20) -> Iterator[NDArray[np.generic]]:
    """Yield a tensor in pieces of the same number of elements whatever its dtype."""
    dtype = _NUMPY[entry.dtype]
    total = math.prod(entry.shape)
    with entry.file.open("rb") as stream:
        stream.seek(entry.offset)
        for start in range(0, total, count):
            piece = stream.read(min(count, total - start) * dtype.itemsize)
            yield np.frombuffer(piece, dtype)


def _cast(values: NDArray[np.generic], dtype: str, entry: TensorEntry) -> bytes:
    with np.errstate(over="ignore"):
        cast = values.astype(_NUMPY[dtype])
    overflow = np.isinf(cast.astype(np.float64)) & np.isfinite(values.astype(np.float64))
    if overflow.any():
        raise CheckpointError(
            f"{entry.file}: {entry.key!r} holds a value too large for {dtype}; "
            "choose --dtype bfloat16 or float32"
        )
    return cast.tobytes()


def dtype_code(name: str) -> str:
    """Return the format's name of a dtype that a user named, or raise `ArgumentError`."""
    if name not in DTYPE_NAMES:
        raise ArgumentError(f"dtype: got {name!r}, expected one of {', '.join(DTYPE_NAMES)}")
    return DTYPE_NAMES[name]
