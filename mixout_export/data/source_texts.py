"""The texts of a row as they are in the user's file, and the names of images, to be shown."""

from collections.abc import Iterator
from typing import NamedTuple

from mixout_export.data.columns import ColumnNames
from mixout_export.data.table import Table

#: Characters of a text that are shown.
SHOWN_CHARACTERS = 2000


class SourceText(NamedTuple):
    """One text of a row, as it is in its column of the file; shortened if it is very long."""

    column: str
    text: str


def source_texts(table: Table, columns: ColumnNames, row: int) -> Iterator[SourceText]:
    """Yield the texts of a row of a table."""
    for column in (columns.text, columns.text_pair, *(columns.choices or ()), columns.image):
        value = None if column is None else table.columns[column][row]
        if column == columns.image and not isinstance(value, str):
            value = value.get("path") if isinstance(value, dict) else None  # not its bytes
        if column is not None and value is not None:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            more = "…" if len(text) > SHOWN_CHARACTERS else ""
            yield SourceText(column, text[:SHOWN_CHARACTERS] + more)
