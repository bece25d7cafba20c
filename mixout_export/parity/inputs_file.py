"""Save the test inputs to a file, and read them again.

The file is an `.npz` file of NumPy. A battery is saved as `<number>/<name>/<input>`, with one array
per input. A file whose keys are only names of inputs is one batch, so it is easy to write your own.
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

#: Name of a batch from a file that does not name its batches.
_UNNAMED = "inputs"


def save_inputs(path: Path, batches: Sequence[Batch]) -> None:
    """Write batches to an `.npz` file. The same batches give the same bytes.

    Args:
        path: The file. An existing file is replaced once the new one is complete.
        batches: The batches to write, in order.

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
    """Return each batch's arrays, by its number and name."""
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


def _check_range(path: Path, where: str, values: Array, size: int) -> None:
    if values.min() < 0 or values.max() >= size:
        wrong = int(values.min()) if values.min() < 0 else int(values.max())
        raise DataError(f"{path}: {where} holds {wrong}, the model takes 0 to {size - 1}")


def _check_batch(path: Path, number: int, batch: Batch, interface: ModelInterface) -> None:
    """Check what would make a model fail with an opaque error, or read outside a table."""
    missing = [name for name in interface.inputs if name not in batch.inputs]
    if missing:
        raise DataError(
            f"{path}: batch {number} ({batch.name}) has no {missing[0]!r}, the model takes "
            f"{', '.join(interface.inputs)}"
        )
    for name in interface.inputs:
        values = batch.inputs[name]
        where = f"batch {number} ({batch.name}), input {name!r},"
        if values.size == 0 or values.ndim < 2:
            raise DataError(
                f"{path}: {where} has shape {values.shape}, expected (batch, sequence) and no "
                "empty dimension"
            )
        if interface.image is not None:
            if values.shape[1:] != interface.image:
                raise DataError(
                    f"{path}: {where} has shape {values.shape}, expected (batch, "
                    f"{', '.join(map(str, interface.image))})"
                )
            continue
        if values.dtype.kind == "i" and values.shape != batch.shape:
            raise DataError(f"{path}: {where} has shape {values.shape}, expected {batch.shape}")
        limit = interface.sequence_limit
        if values.dtype.kind == "i" and limit is not None and values.shape[-1] > limit:
            raise DataError(
                f"{path}: {where} has {values.shape[-1]} tokens, the model takes at most {limit}"
            )
    for name, size in (
        ("input_ids", interface.vocabulary_size),
        ("token_type_ids", interface.segments),
    ):
        if name in interface.inputs:
            where = f"batch {number} ({batch.name}), input {name!r},"
            _check_range(path, where, batch.inputs[name], size)


def load_inputs(path: Path, interface: ModelInterface) -> tuple[Batch, ...]:
    """Read batches from an `.npz` file, and check that a model takes them.

    Args:
        path: A file as `save_inputs` writes it, or one whose keys are the inputs' names.
        interface: What both sides take; inputs that they do not take are left out.

    Returns:
        The batches in the order of their numbers.

    Raises:
        DataError: The file cannot be read, or the model does not take what it holds.
    """
    groups = _grouped(path, _read_arrays(path))
    if not groups:
        raise DataError(f"{path}: holds no arrays, expected at least one batch")
    batches = []
    for (number, name), arrays in groups.items():
        batch = Batch(name, arrays)
        _check_batch(path, number, batch, interface)
        kept = {key: arrays[key] for key in interface.inputs}
        batches.append(Batch(name, kept))
    return tuple(batches)
