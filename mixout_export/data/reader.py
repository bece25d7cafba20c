"""How a task reads a table."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

from transformers import PreTrainedModel

from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import Encoding
from mixout_export.data.examples import Examples
from mixout_export.data.table import Table
from mixout_export.data.texts import TextEncoding
from mixout_export.errors import ArgumentError
from mixout_export.tasks import Task

E = TypeVar("E", bound=Encoding)


class Reader(ABC, Generic[E]):
    """Finds the columns of a task and encodes them.

    Attributes:
        encoding: How it encodes them.
        uses: Options of `train` that only some tasks have and this one supports: "doc-stride",
            "pack-sequences", "choices-column", "label-smoothing" or "class-weights".
        splits: Whether a long text is read in several sequences, so that none is cut.
        draws: Whether the examples draw something anew in each epoch, from the seed of the run.
    """

    encoding: ClassVar[type[Encoding]] = TextEncoding
    uses: ClassVar[frozenset[str]] = frozenset()
    splits: ClassVar[bool] = False
    draws: ClassVar[bool] = False

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that cannot learn the task although it has the right head."""
        del model  # most tasks accept any model

    @abstractmethod
    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find the columns to read: those that are named, else by their usual names in any case.

        Args:
            table: The data.
            named: Columns that the user named.
            labels: The checkpoint's label names.
            labeled: Whether there must be labels; otherwise the column may be None.

        Raises:
            ArgumentError: The user named a column that the task does not read.
            DataError: A column is missing, or there are several.
        """

    def label_values(self, table: Table, named: ColumnNames) -> list[Any]:
        """Return all labels of a table, from which the labels of a new head are taken.

        Raises:
            ArgumentError: The task has no labels.
            DataError: There is no column of labels, or a value is missing.
        """
        raise ArgumentError("labels-from: the task has no labels; leave it out")

    def contents(self, table: Table, columns: ColumnNames) -> list[str]:
        """Return what the model reads of each row, in a form in which equal rows are equal."""
        read = [columns.first, *filter(None, (columns.text_pair,)), *(columns.choices or ())]
        values = [table.columns[name] for name in read]
        return [repr(row) for row in zip(*values, strict=True)]

    def digest(self, table: Table, columns: ColumnNames) -> str:
        """Return a SHA-256 of a table and of what its cells refer to."""
        return table.digest()

    @abstractmethod
    def read(self, table: Table, columns: ColumnNames, encoding: E) -> Examples:
        """Read, check and encode a table.

        Args:
            table: The data.
            columns: The result of `find`. Without a label column, the examples have no labels.
            encoding: How rows become inputs.

        Raises:
            CheckpointError: The tokenizer lacks what the task needs.
            DataError: A value is missing or does not fit. The message names row and column.
        """


def reader_of(task: Task) -> Reader[Any] | None:
    """Import and return a task's reader; None for a task that reads no tables."""
    if task.reader is None:
        return None
    module, _, name = task.reader.partition(":")
    reader: Reader[Any] = getattr(importlib.import_module(module), name)()
    return reader
