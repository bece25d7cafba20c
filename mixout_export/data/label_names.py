"""Take the labels of a new head from the data that it will be trained on."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixout_export.data.columns import ColumnNames
from mixout_export.data.labels import as_number, label_name
from mixout_export.data.reader import reader_of
from mixout_export.data.separated import FieldFormat
from mixout_export.data.table import ClassValue, join_tables
from mixout_export.data.tables import read_table
from mixout_export.errors import ArgumentError, DataError
from mixout_export.tasks import get_task

logger = logging.getLogger(__name__)

#: Number of labels up to which nearly every row may have its own.
_FEW = 50


def labels_of_files(
    files: Sequence[Path],
    task: str | None,
    *,
    label_column: str | None = None,
    fields: FieldFormat | None = None,
) -> list[str]:
    """Return the different labels of training files, in the order of the outputs of a new head.

    Numbers are ordered by value, and names by the alphabet. The classes of a saved data set keep
    their order.

    Raises:
        ArgumentError: The task is not named, or has no labels.
        DataError: The files cannot be read, or the column does not seem to hold labels.
    """
    if task is None:
        raise ArgumentError("labels-from: needs the task; give --task")
    reader = reader_of(get_task(task))
    table = join_tables([read_table(file, fields=fields, splits=("train",)) for file in files])
    named = ColumnNames.named(label=label_column)
    values = [] if reader is None else reader.label_values(table, named)
    names = ordered_names(values)
    if len(names) > max(_FEW, len(values) // 2):
        raise DataError(
            f"{table.name}: has {len(names):,} different labels in {table.rows:,} rows, for "
            f"example {names[0]!r}; choose the column of the labels with --label-column"
        )
    _warn_of_spellings(table.name, names)
    return names


def _warn_of_spellings(where: str, names: Sequence[str]) -> None:
    """Warn of labels that differ only in upper and lower case: they are probably the same."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(name.casefold(), []).append(name)
    same = next((found for found in spellings.values() if len(found) > 1), None)
    if same is not None:
        logger.warning(
            "%s: %s differ only in upper and lower case, and are different labels; if they should "
            "be one, correct the file",
            where,
            " and ".join(map(repr, same)),
        )


def ordered_names(values: Sequence[Any]) -> list[str]:
    """Return the different labels, in order."""
    classes = {int(value): value.name for value in values if isinstance(value, ClassValue)}
    if classes:
        return [classes[number] for number in sorted(classes)]
    names = {label_name(value) for value in values}
    numbers = {name: as_number(name) for name in names}
    if all(number is not None for number in numbers.values()):
        return sorted(names, key=lambda name: numbers[name] or 0)
    return sorted(names)
