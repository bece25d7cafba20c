"""Convert tensors between NumPy and the protocol."""

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mixout_export.errors import ServerError
from mixout_export.printable import one_line

Array = npt.NDArray[Any]

#: The protocol's name of each numeric type. It also has texts, called BYTES, which only labels use.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

#: Types that logits may have.
FLOATING = ("FP16", "BF16", "FP32", "FP64")

#: Types that ids and masks may have.
INTEGERS = ("INT32", "INT64")


def datatype_of(array: Array) -> str:
    """Return the protocol's name of an array's type."""
    return next(name for name, dtype in DATATYPES.items() if dtype == array.dtype)


def _numeric(datatype: object, where: str) -> np.dtype[Any]:
    """Return the NumPy type of a datatype, which must be numeric."""
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise ServerError(
            f"{where} has datatype {one_line(repr(datatype))}, "
            f"expected one of {', '.join(FLOATING)}"
        )
    return DATATYPES[datatype]


def _sizes(shape: object, where: str) -> tuple[int, ...]:
    """Return the shape of a tensor in an answer, which must be a list of sizes."""
    proper = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not proper or not all(type(size) is int and size >= 0 for size in shape):  # type: ignore[attr-defined]
        raise ServerError(f"{where} has shape {one_line(repr(shape))}, expected a list of sizes")
    return tuple(shape)  # type: ignore[arg-type]


def from_bytes(raw: memoryview, datatype: object, shape: object, where: str) -> Array:
    """Read a tensor from little-endian bytes, as many as its type and shape need."""
    dtype, wanted = _numeric(datatype, where), _sizes(shape, where)
    expected = math.prod(wanted) * dtype.itemsize
    if len(raw) != expected:
        raise ServerError(
            f"{where} has {len(raw)} bytes, expected {expected} for {datatype} of shape "
            f"{list(wanted)}"
        )
    little = dtype.newbyteorder("<") if dtype.kind != "V" else dtype
    return np.frombuffer(raw, dtype=little).reshape(wanted).astype(dtype)


def from_numbers(data: object, datatype: object, shape: object, where: str) -> Array:
    """Read a tensor from a JSON list of numbers, flat or nested."""
    dtype, wanted = _numeric(datatype, where), _sizes(shape, where)
    first = data
    while isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, str):  # NumPy would convert texts such as "1" to numbers
        raise ServerError(f"{where} holds texts, expected numbers of type {datatype}")
    try:
        values = np.asarray(data, dtype=np.float64 if dtype.kind in "fV" else dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise ServerError(
            f"{where} cannot be read as numbers of type {datatype} ({error})"
        ) from error
    if values.size != math.prod(wanted):
        raise ServerError(
            f"{where} has {values.size} values, expected {math.prod(wanted)} for shape "
            f"{list(wanted)}"
        )
    with np.errstate(over="ignore", invalid="ignore"):  # values that are too large become infinite
        return values.reshape(wanted).astype(dtype)


def to_bytes(array: Array) -> bytes:
    """Return a tensor as little-endian bytes."""
    dtype = array.dtype
    return np.ascontiguousarray(
        array, dtype.newbyteorder("<") if dtype.kind != "V" else dtype
    ).tobytes()
