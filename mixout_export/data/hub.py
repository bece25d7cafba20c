"""Read data sets of the hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from datasets import (
    Dataset,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_dataset,
)
from datasets.exceptions import DatasetNotFoundError, DatasetsError

from mixout_export.data.tables import Table
from mixout_export.errors import DataError
from mixout_export.quiet import quiet_libraries

_TRAIN, _EVALUATION = "train", ("validation", "dev")


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
    path, _, configuration = name.partition(":")
    try:
        return load_dataset(path, configuration or None)
    except DatasetNotFoundError:
        if configuration or path.count("/") != 1:
            raise
        path, _, configuration = path.partition("/")
        return load_dataset(path, configuration)


def _as_table(name: str, split: str, rows: Dataset) -> Table:
    columns = {column: list(rows[column]) for column in rows.column_names}
    return Table(f"{name}[{split}]", columns, len(rows))


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
    tables = [_as_table(name, split, splits[split]) for split in wanted]
    for table in tables:
        if not table.rows:
            raise DataError(f"{table.name}: has no rows, expected at least one")
    return tables[0], tables[1] if len(tables) > 1 else None
