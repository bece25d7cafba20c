"""How a task reads a table: which columns, and what becomes of them."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from transformers import PreTrainedModel

from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import Encoding
from mixout_export.data.examples import Examples
from mixout_export.data.tables import Table
from mixout_export.tasks import Task


class Reader(ABC):
    """A task's way to read a table.

    Attributes:
        uses: Which of the settings that only some tasks have are the task's: "doc-stride",
            "pack-sequences" or "choices-column".
    """

    uses: ClassVar[frozenset[str]] = frozenset()

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that cannot learn the task, whatever its head is called.

        Raises:
            CheckpointError: It cannot.
        """
        del model  # any will do for most tasks

    @abstractmethod
    def find(
        self,
        table: Table,
        named: ColumnNames,
        labels: Sequence[str],
        *,
        labelled: bool = True,
    ) -> ColumnNames:
        """Find the columns to read: those named, else by their usual names in any case.

        Args:
            table: The data.
            named: Columns that the user named.
            labels: The checkpoint's label names.
            labelled: Whether labels must be there; else the column may stay None.

        Raises:
            ArgumentError: A column is named that the task does not read.
            DataError: A column is missing, or several may be meant.
        """

    @abstractmethod
    def read(self, table: Table, columns: ColumnNames, encoding: Encoding) -> Examples:
        """Read, check and encode a table.

        Args:
            table: The data.
            columns: From `find`; without a label column the examples have no labels.
            encoding: How texts become inputs.

        Raises:
            CheckpointError: The tokenizer lacks what the task needs.
            DataError: A value is missing or does not fit; the message names row and column.
        """


def reader_of(task: Task) -> Reader | None:
    """Import and return a task's reader; None for a task that reads no tables."""
    if task.reader is None:
        return None
    module, _, name = task.reader.partition(":")
    reader: Reader = getattr(importlib.import_module(module), name)()
    return reader
