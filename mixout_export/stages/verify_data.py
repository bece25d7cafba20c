"""The user's own table in a comparison: what is run on it, and what the task makes of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.data.columns import ColumnNames
from mixout_export.data.evaluation import EvaluationData, evaluation_data
from mixout_export.data.tables import read_table
from mixout_export.errors import CheckpointError
from mixout_export.parity.battery import Batch
from mixout_export.parity.decisions import DATA_BATCH
from mixout_export.parity.subject import Candidate, Subject
from mixout_export.tasks import known_task

Arrays = Mapping[str, npt.NDArray[Any]]


def read_data(
    path: Path,
    reference: Subject,
    candidate: Candidate,
    interface: ModelInterface,
    *,
    columns: ColumnNames,
    max_examples: int | None,
) -> EvaluationData:
    """Read a table with the reference's tokenizer and labels, else the candidate's.

    Raises:
        ArgumentError: A column is named that the task does not read.
        CheckpointError: Neither side has a tokenizer, or they take images.
        DataError: The table cannot be read or does not fit.
    """
    if interface.image is not None:
        raise CheckpointError(
            f"{reference.path}: takes images, and --data reads texts; give images of your own with "
            "--inputs FILE.npz"
        )
    tokenizer = reference.tokenizer or candidate.tokenizer
    if tokenizer is None:
        raise CheckpointError(
            f"{reference.path}: has no tokenizer files, which --data needs; put the base's there"
        )
    whole = reference.headless or candidate.headless
    return evaluation_data(
        read_table(path),
        None if whole else known_task(reference.task),
        tokenizer,
        interface,
        labels=reference.labels or candidate.labels or (),
        columns=columns,
        max_examples=max_examples,
    )


def data_batches(data: EvaluationData) -> tuple[Batch, ...]:
    """Return a table's batches as those of a battery."""
    return tuple(Batch(DATA_BATCH, inputs) for inputs in data.batches)


@dataclass
class MetricsOfBoth:
    """Gathers what both sides predict on a table's batches while a battery runs.

    Attributes:
        data: The table.
        first: Number of its first batch in the battery.
    """

    data: EvaluationData
    first: int
    _predictions: tuple[list[Any], list[Any]] = field(default_factory=lambda: ([], []))

    def __call__(self, number: int, reference: Arrays, candidate: Arrays) -> None:
        """Take the outputs of one of the battery's batches."""
        if number >= self.first and self.data.labelled:
            for gathered, outputs in zip(self._predictions, (reference, candidate), strict=True):
                gathered += self.data.predict(number - self.first, outputs)

    def result(self) -> dict[str, tuple[float, float]] | None:
        """Return each metric of the reference and of the candidate; None without labels."""
        if not self.data.labelled or not self._predictions[0]:
            return None
        ours, theirs = (self.data.score(gathered) for gathered in self._predictions)
        return {name: (value, theirs.get(name, np.nan)) for name, value in ours.items()}
