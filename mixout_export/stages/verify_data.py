"""Compare both sides on the user's own table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.artifact import Artifact
from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import EncodingOptions
from mixout_export.data.evaluation import EvaluationData, evaluation_data, reader_for
from mixout_export.data.separated import FieldFormat
from mixout_export.data.tables import EVALUATION_SPLITS, read_table
from mixout_export.errors import CheckpointError
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.tasks import known_task

Arrays = Mapping[str, npt.NDArray[Any]]


def read_data(
    path: Path,
    reference: Artifact,
    candidate: Artifact,
    interface: ModelInterface,
    *,
    columns: ColumnNames,
    max_examples: int | None,
    max_length: int | None = None,
    fields: FieldFormat | None = None,
) -> EvaluationData:
    """Read a table with the preprocessor and labels of the reference, or else of the candidate.

    Raises:
        ArgumentError: The user named a column that the task does not read, or the model does not
            take sequences of `max_length` tokens.
        CheckpointError: Neither side has a tokenizer, or whatever the data need.
        DataError: The table cannot be read or does not fit.
    """
    headless = reference.headless or candidate.headless
    task = None if headless else known_task(reference.task_name)
    encoding = reader_for(task).encoding
    found = map(encoding.preprocessor_of, (reference, candidate))
    preprocessor = next((each for each in found if each is not None), None)
    if preprocessor is None:
        raise CheckpointError(
            f"{reference.where}: {encoding.missing}, which --data needs; copy those of the base "
            "into it"
        )
    return evaluation_data(
        read_table(path, fields=fields, splits=EVALUATION_SPLITS),
        task,
        preprocessor,
        interface,
        labels=reference.labels or candidate.labels or (),
        columns=columns,
        max_examples=max_examples,
        options=EncodingOptions(max_length=max_length),
    )


def data_batches(data: EvaluationData) -> tuple[Batch, ...]:
    """Return the batches of a table as batches of the battery."""
    return tuple(Batch(DATA_BATCH, inputs) for inputs in data.batches)


@dataclass
class MetricsOfBoth:
    """Collects the predictions of both sides on the table while the battery runs."""

    data: EvaluationData
    first: int  # number of the table's first batch in the battery
    _predictions: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))

    def __call__(self, number: int, reference: Arrays, candidate: Arrays) -> None:
        """Take the outputs of one batch of the battery."""
        if number >= self.first and self.data.labeled:
            for gathered, outputs in zip(self._predictions, (reference, candidate), strict=True):
                gathered += self.data.predict(number - self.first, outputs)

    def result(self) -> dict[str, tuple[float, float]] | None:
        """Return each metric for the reference and for the candidate; None without labels."""
        if not self.data.labeled or not self._predictions[0]:
            return None
        ours, theirs = (self.data.examples.metrics(gathered) for gathered in self._predictions)
        return {name: (value, theirs.get(name, np.nan)) for name, value in ours.items()}
