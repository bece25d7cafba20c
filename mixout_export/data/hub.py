"""Read data sets of the hub, and those that `datasets` saved on this machine."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Image,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from mixout_export.data.table import ClassValue, Table
from mixout_export.errors import DataError
from mixout_export.quiet import quiet_libraries

_TRAIN, _EVALUATION = "train", ("validation", "dev")

#: Files of the folders that `datasets.save_to_disk` writes: of one split, and of several.
_SAVED_SPLIT, _SAVED_SPLITS = "dataset_info.json", "dataset_dict.json"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loader's reports and progress bars off the terminal."""
    logger = logging.getLogger("datasets")
    level, bars = logger.level, not are_progress_bars_disabled()
    logger.setLevel(logging.CRITICAL)
    disable_progress_bars()
    try:
        with quiet_libraries():
            yield
    finally:
        logger.setLevel(level)
        if bars:
            enable_progress_bars()


def _load(name: str) -> Any:
    """Load all splits of "path:configuration", or of "path/configuration" if that is no path."""
    if is_saved_dataset(Path(name)):
        saved = _load_saved(Path(name))
        return saved if isinstance(saved, DatasetDict) else {_TRAIN: saved}
    path, _, configuration = name.partition(":")
    try:
        return load_dataset(path, configuration or None)
    except DatasetNotFoundError:
        if configuration or path.count("/") != 1:
            raise
        path, _, configuration = path.partition("/")
        return load_dataset(path, configuration)


def _as_table(name: str, rows: Dataset) -> Table:
    for column, feature in rows.features.items():
        if isinstance(feature, Image):  # its files, which are decoded when they are needed
            rows = rows.cast_column(column, Image(decode=False))
    columns = {
        column: _values(rows.features[column], list(rows[column])) for column in rows.column_names
    }
    return Table(name, columns, len(rows))


def _values(feature: Any, values: list[Any]) -> list[Any]:
    """Return the values of a column. Those of a column of classes know the names of the classes."""
    inner = getattr(feature, "feature", None)
    if isinstance(inner, ClassLabel):
        return [value and _values(inner, list(value)) for value in values]
    if not isinstance(feature, ClassLabel):
        return values
    names = feature.names
    return [
        ClassValue(value, names[value]) if value is not None and 0 <= value < len(names) else value
        for value in values
    ]


def is_saved_dataset(folder: Path) -> bool:
    """Return whether `datasets.save_to_disk` wrote a folder."""
    return any((folder / name).is_file() for name in (_SAVED_SPLIT, _SAVED_SPLITS))


def _load_saved(folder: Path) -> Dataset | DatasetDict:
    try:
        with _quiet():
            return load_from_disk(str(folder))
    except (DatasetsError, OSError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{folder}: the saved data set cannot be loaded ({first.rstrip('.')}); save it again "
            "with save_to_disk"
        ) from error


def read_saved_dataset(folder: Path, splits: Sequence[str] = ()) -> Table:
    """Read a folder that `datasets.save_to_disk` wrote.

    Args:
        folder: The folder.
        splits: Names of the split to read, if there are several. The first one that is there is
            read.

    Raises:
        DataError: It cannot be loaded, or it has several splits and none of these names.
    """
    saved = _load_saved(folder)
    if isinstance(saved, Dataset):
        return _as_table(str(folder), saved)
    wanted = [split for split in splits if split in saved] or list(saved)
    if len(wanted) > 1 and wanted[0] not in splits:
        raise DataError(
            f"{folder}: has the splits {', '.join(saved)}; name the folder of one of them, for "
            f"example {folder / wanted[0]}"
        )
    return _as_table(f"{folder}[{wanted[0]}]", saved[wanted[0]])


def read_hub_dataset(name: str) -> tuple[Table, Table | None]:
    """Load the training split of a data set, and its validation split if it has one.

    Args:
        name: Its name, and after a colon its configuration: "nyu-mll/glue:cola". "glue/cola" also
            works.

    Raises:
        DataError: It cannot be loaded, it has no training split, or a split has no rows.
    """
    try:
        with _quiet():
            splits = _load(name)
    # The hub's HTTP errors are OSErrors. A wrong name or configuration is a ValueError.
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().split("\n")[0] or type(error).__name__
        raise DataError(
            f"{name}: the data set cannot be loaded ({first.rstrip('.')}); check the name and the "
            "network connection, or give files with --train-file"
        ) from error
    if _TRAIN not in splits:
        raise DataError(
            f"{name}: has the splits {', '.join(splits)}, expected one named {_TRAIN}; give files "
            "with --train-file"
        )
    evaluation = next((split for split in _EVALUATION if split in splits), None)
    wanted = [_TRAIN] if evaluation is None else [_TRAIN, evaluation]
    tables = [_as_table(f"{name}[{split}]", splits[split]) for split in wanted]
    for table in tables:
        if not table.rows:
            raise DataError(f"{table.name}: has no rows, expected at least one")
    return tables[0], tables[1] if len(tables) > 1 else None
