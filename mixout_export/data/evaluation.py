"""A table as batches for any runtime, and the task's metrics of the outputs.

`verify --data` and calibration use `evaluation_data`. It makes NumPy batches for a graph or a
model, and computes the task's metrics of the outputs if the table has labels::

    data = evaluation_data(table, task, preprocessor, interface, labels=labels)
    outputs = [run(batch) for batch in data.batches]     # for example {"logits": array of float}
    data.metrics(outputs)                                # {"accuracy": 0.9, ...}, or None
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import Encoding, EncodingOptions
from mixout_export.data.examples import Examples
from mixout_export.data.labels import is_missing
from mixout_export.data.lengths import CutRows
from mixout_export.data.reader import Reader, reader_of
from mixout_export.data.table import Table
from mixout_export.errors import ArgumentError
from mixout_export.tasks import Task
from mixout_export.tasks.text_classification import TEXT_CLASSIFICATION

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class EvaluationData:
    """A table as batches, and its metrics.

    Attributes:
        examples: The encoded table.
        interface: What the model takes.
        members: The examples of each batch.
        batches: Inputs of each batch: input name → int64 array `(batch, longest)`, with choices
            `(batch, choices, longest)`; or the images alone, float32 `(batch, channels, height,
            width)`; every input of the interface and nothing else.
        columns: The columns that were read; its `label` is None where there were no labels.
        table: The rows that were read.
        cut: How many of them were cut; None for rows that are no sequences.
    """

    examples: Examples
    interface: ModelInterface
    members: tuple[tuple[int, ...], ...]
    batches: tuple[dict[str, NDArray[Any]], ...]
    columns: ColumnNames
    table: Table
    cut: CutRows | None

    @property
    def labeled(self) -> bool:
        """Whether the table has labels. For language models, the text is its own label."""
        return self.examples.labeled

    @property
    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Row of the table, from 0, for each row of each batch."""
        rows = self.examples.rows
        return tuple(tuple(int(rows[index]) for index in batch) for batch in self.members)

    def metrics(self, outputs: Iterable[Arrays]) -> dict[str, float] | None:
        """Return the task's metrics; None if the table has no labels.

        Args:
            outputs: Outputs of each batch, in the batches' order: output name → float array whose
                first dimension is the batch. The names are the interface's. Batches are read one by
                one, so a generator keeps only one batch of logits in memory.

        Returns:
            Metric name → value; NaN where outputs were not numbers.

        Raises:
            ArgumentError: The number of outputs is not that of the batches, or a size differs.
        """
        if not self.labeled:
            return None
        numbered = zip(range(len(self.members)), outputs, strict=False)
        batches = [self.predict(number, found) for number, found in numbered]
        if len(batches) != len(self.members):
            raise ArgumentError(
                f"metrics: got outputs of {len(batches)} batches, expected {len(self.members)}"
            )
        predictions = [prediction for batch in batches for prediction in batch]
        return self.examples.metrics(predictions)

    def predict(self, number: int, outputs: Arrays) -> list[Any]:
        """Return the task's predictions from one batch's outputs; see `metrics`."""
        batch = self.members[number]
        rows = {len(values) for values in outputs.values()}
        if rows != {len(batch)}:
            raise ArgumentError(
                f"metrics: got outputs of {sorted(rows)} rows for batch {number}, expected "
                f"{len(batch)}"
            )
        tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in outputs.items()}
        return self.examples.predict(batch, tensors)


@dataclass(frozen=True)
class TableReading:
    """How a table is read, and all parts of a file alike.

    Attributes:
        reader: The task's reader.
        encoding: How rows become inputs.
        columns: The columns to read.
        named_label: Whether the user named the column of the labels.
    """

    reader: Reader[Any]
    encoding: Encoding
    columns: ColumnNames
    named_label: bool

    def has_labels(self, table: Table) -> bool:
        """Return whether a table has labels: not if they are empty or -1 in every row."""
        if self.columns.label is None:
            return False
        return self.named_label or not _has_no_labels(table, self.columns.label)

    def without_labels(self) -> "TableReading":
        """Return the same without labels."""
        return replace(self, columns=replace(self.columns, label=None))

    def read(self, table: Table) -> Examples:
        """Read, check and encode a table."""
        return self.reader.read(table, self.columns, self.encoding)

    def count_cut(self, examples: Examples, table: Table) -> CutRows | None:
        """Count the rows of a table that were cut when its examples were read."""
        name = f"rows of {table.short_name}"
        return self.encoding.count_cut(examples, rows=table.rows, name=name)


def reader_for(task: Task | None) -> Reader[Any]:
    """Return the reader of a task; None stands for a model without a head, which is given texts.

    Raises:
        ArgumentError: The task reads no tables.
    """
    reader = reader_of(task or TEXT_CLASSIFICATION)
    if reader is None:
        raise ArgumentError(
            f"data: tables cannot be read for the task {task.name if task else ''}; run the "
            "command without --data"
        )
    return reader


def settle_reading(
    table: Table,
    task: Task | None,
    preprocessor: Any,
    interface: ModelInterface,
    *,
    labels: Sequence[str] = (),
    columns: ColumnNames | None = None,
    options: EncodingOptions | None = None,
) -> TableReading:
    """Find the columns of a table, or of the first part of a file; see `evaluation_data`."""
    named = columns or ColumnNames()
    reader = reader_for(task)
    options = options or EncodingOptions()
    reader.encoding.refuse_unused(task or TEXT_CLASSIFICATION, named, options)
    found = reader.find(table, named, tuple(labels), labeled=False)
    encoding = reader.encoding.create(preprocessor, interface, labels, options, found)
    if task is None:
        found = replace(found, label=None)
    return TableReading(reader, encoding, found, named_label=named.label is not None)


def evaluation_data(
    table: Table,
    task: Task | None,
    preprocessor: Any,
    interface: ModelInterface,
    *,
    labels: Sequence[str] = (),
    columns: ColumnNames | None = None,
    max_examples: int | None = None,
    options: EncodingOptions | None = None,
    batch_size: int = 32,
) -> EvaluationData:
    """Read a table as `train` does, for any runtime.

    Labels are optional. They are in a column that is named or has a usual name. A column that is
    empty or -1 in every row, as in a test set, holds no labels.

    Args:
        table: The data.
        task: The model's task; None for a model without a head, which is given texts.
        preprocessor: The model's tokenizer, or whatever the encoding of the task's reader needs.
        interface: What the model takes.
        labels: The label names in the order of its outputs.
        columns: Columns that the user named; None finds all by their usual names.
        max_examples: Most rows of the table to read; None reads all.
        options: The user's options for the encoding; None takes the defaults.
        batch_size: Rows in a batch; one if the model takes only single rows.

    Raises:
        ArgumentError: The task reads no table, the user named a column that it does not read, or
            the model takes an input that a table does not give.
        CheckpointError: The preprocessor lacks what the task needs.
        DataError: A column or a value is missing, or a value does not fit. The message names the
            row.
    """
    table = table.head(max_examples)
    reading = settle_reading(
        table,
        task,
        preprocessor,
        interface,
        labels=labels,
        columns=columns,
        options=options,
    )
    if not reading.has_labels(table):
        reading = reading.without_labels()
    examples = reading.read(table)
    size = batch_size if interface.takes_batches else 1
    members = tuple(
        tuple(range(start, min(start + size, len(examples))))
        for start in range(0, len(examples), size)
    )
    batches = tuple(model_inputs(examples.collate(batch), interface) for batch in members)
    cut = reading.count_cut(examples, table)
    return EvaluationData(examples, interface, members, batches, reading.columns, table, cut)


def _has_no_labels(table: Table, columns: Sequence[str]) -> bool:
    """Return whether the label columns are empty or -1 in every row."""
    cells = [value for column in columns for value in table.columns[column]]
    return all(is_missing(cell) or cell in (-1, "-1") for cell in cells)


def model_inputs(batch: Mapping[str, Tensor], interface: ModelInterface) -> dict[str, NDArray[Any]]:
    """Return a batch's inputs, with those that a tokenizer does not make."""
    made = {name: value.numpy() for name, value in batch.items()}
    if "input_ids" in made:
        made = {**_implied(made), **made}
    unknown = [name for name in interface.inputs if name not in made]
    if unknown:
        raise ArgumentError(
            f"data: the model takes the input {unknown[0]!r}, which a table does not give; run the "
            "command without --data"
        )
    return {name: made[name] for name in interface.inputs}


def _implied(made: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the inputs that follow from padded token ids."""
    ids = made["input_ids"]
    mask = made.get("attention_mask", np.ones_like(ids))
    # Padding on the left takes no positions: the first token has position 0.
    positions = np.maximum(np.cumsum(mask, axis=-1) - 1, 0)
    return {
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(ids),
        "position_ids": positions,
    }
