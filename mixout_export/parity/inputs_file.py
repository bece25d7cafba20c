"""Save the inputs of a battery in a file, and read them again.

The file is an `.npz` file of NumPy. Each input of a batch is an array named
`<number>/<batch>/<input>`. If the names are those of inputs only, the file is a single batch, so it
is easy to make your own.
"""

import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.errors import DataError, OutputError
from mixout_export.files.output import replaced_file

Array = npt.NDArray[Any]

_KEY = re.compile(r"(?:(?P<number>\d+)/(?P<name>[^/]+)/)?(?P<input>[^/]+)")

#: Name of the batch in a file that does not name its batches.
_UNNAMED = "inputs"


def save_inputs(path: Path, batches: Sequence[Batch]) -> None:
    """Write batches to an `.npz` file. The same batches give the same bytes.

    Raises:
        OutputError: The file cannot be written.
    """
    if path.suffix != ".npz":
        raise OutputError(f"{path}: expected a name ending in .npz for saved inputs; rename it")
    arrays = {
        f"{number:05d}/{batch.name}/{name}": value
        for number, batch in enumerate(batches)
        for name, value in batch.inputs.items()
    }
    with replaced_file(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **arrays)  # type: ignore[arg-type]


def _read_arrays(path: Path) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; check --inputs")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: is not a file of arrays ({str(error).splitlines()[0]}); expected an .npz "
            "file as --save-inputs writes it"
        ) from error


def _typed(path: Path, key: str, value: Array) -> Array:
    """Return integers as int64 and floating-point numbers as float32."""
    if value.dtype.kind in "iub":
        return value.astype(np.int64)
    if value.dtype.kind == "f":
        return value.astype(np.float32)
    raise DataError(f"{path}: {key!r} holds {value.dtype}, expected numbers")


def _grouped(path: Path, arrays: Mapping[str, Array]) -> dict[tuple[int, str], dict[str, Array]]:
    """Return (number, name) of each batch → its arrays."""
    groups: dict[tuple[int, str], dict[str, Array]] = {}
    for key, value in arrays.items():
        found = _KEY.fullmatch(key)
        if found is None:
            raise DataError(
                f"{path}: {key!r} is no key of an inputs file, expected an input's name or "
                "<number>/<batch>/<input>"
            )
        group = int(found["number"] or 0), found["name"] or _UNNAMED
        groups.setdefault(group, {})[found["input"]] = _typed(path, key, value)
    return dict(sorted(groups.items()))


def _check_batch(path: Path, number: int, batch: Batch, interface: ModelInterface) -> None:
    """Check what would make a model fail with an unclear error or read outside of a table."""
    where = f"{path}: batch {number} ({batch.name})"
    missing = [name for name in interface.inputs if name not in batch.inputs]
    if missing:
        raise DataError(
            f"{where} has no {missing[0]!r}, the model takes {', '.join(interface.inputs)}"
        )
    sizes = {"input_ids": interface.vocabulary_size, "token_type_ids": interface.segments}
    for name in interface.inputs:
        values = batch.inputs[name]
        problem = _shape_problem(values, batch.shape, interface)
        if problem:
            raise DataError(f"{where}, input {name!r}, {problem}")
        if name in sizes and (values.min() < 0 or values.max() >= sizes[name]):
            wrong = int(values.min() if values.min() < 0 else values.max())
            raise DataError(
                f"{where}, input {name!r}, holds {wrong}, the model takes 0 to {sizes[name] - 1}"
            )


def _shape_problem(values: Array, shape: tuple[int, ...], interface: ModelInterface) -> str:
    """Return what is wrong with an input's shape, "" if nothing; `shape` is that of the ids."""
    found = f"has shape {values.shape}, expected"
    if values.size == 0 or values.ndim < 2:
        return f"{found} (batch, sequence) and no empty dimension"
    if interface.image is not None:
        expected = f"{found} (batch, {', '.join(map(str, interface.image))})"
        return "" if values.shape[1:] == interface.image else expected
    if values.dtype.kind != "i":
        return ""
    if values.shape != shape:
        return f"{found} {shape}"
    limit = interface.sequence_limit
    if limit is not None and values.shape[-1] > limit:
        return f"has {values.shape[-1]} tokens, the model takes at most {limit}"
    return ""


def load_inputs(path: Path, interface: ModelInterface) -> tuple[Batch, ...]:
    """Read batches from an `.npz` file and check that a model accepts them.

    Args:
        path: A file from `save_inputs`, or one whose arrays are named after inputs.
        interface: The inputs that both sides take. Other inputs are left out.

    Raises:
        DataError: The file cannot be read, or the model does not accept its contents.
    """
    groups = _grouped(path, _read_arrays(path))
    if not groups:
        raise DataError(f"{path}: holds no arrays, expected at least one batch")
    batches = []
    for (number, name), arrays in groups.items():
        _check_batch(path, number, Batch(name, arrays), interface)
        batches.append(Batch(name, {key: arrays[key] for key in interface.inputs}))
    return tuple(batches)
