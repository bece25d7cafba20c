"""The result of predicting a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixout_export.data.confusion import Confused, LabelScores
from mixout_export.data.lengths import CutRows
from mixout_export.files.json_files import fields_as_json
from mixout_export.prediction.notable import NotableRow


@dataclass(frozen=True)
class SurenessRange:
    """A range of the probability that the model gives its answers.

    Attributes:
        low: Lowest probability in it.
        high: Its end.
        rows: Number of answers.
        right: How many of them are right.
    """

    low: float
    high: float
    rows: int
    right: int


@dataclass(frozen=True)
class PredictionResult:
    """What was predicted, and how well.

    Attributes:
        model: Path or address of the model.
        kind: What the model is, in words.
        runs_in: What computed the outputs, in words.
        task: The task.
        labels: Label names in the order of the outputs.
        file: The data.
        out: The file that was written.
        columns: The columns that were added.
        rows: Number of rows that were predicted.
        skipped: Number of rows that were left out because they cannot be read.
        max_length: Longest sequence in tokens; None for rows that are no sequences.
        cut: How many rows were cut there; None for the same rows.
        seconds: Time of reading, running and writing, in seconds.
        metrics: The task's metrics; None without labels.
        notes: What metrics mean, by name.
        predicted: How often each answer was given, if there are few different ones.
        by_label: The figures of each label; empty without labels.
        confusion: How often each label (row) was predicted as each other one (column); None if the
            task has none, or without labels.
        confused: Which labels are confused most often.
        sureness: How often answers are right, by their probability; empty without labels.
        wrong: Number of rows with a wrong answer; None without labels.
        most_wrong: The worst of them. For language models, the rows with the largest losses.
        least_sure: The rows whose answers have the lowest probability.
        report: The report; None if none was asked for.
    """

    model: str
    kind: str
    runs_in: str
    task: str
    labels: tuple[str, ...]
    file: Path
    out: Path
    columns: tuple[str, ...]
    rows: int
    skipped: int
    max_length: int | None
    cut: CutRows | None
    seconds: float
    metrics: dict[str, float] | None
    notes: Mapping[str, str]
    predicted: dict[str, int]
    by_label: tuple[LabelScores, ...]
    confusion: tuple[tuple[int, ...], ...] | None
    confused: tuple[Confused, ...]
    sureness: tuple[SurenessRange, ...]
    wrong: int | None
    most_wrong: tuple[NotableRow, ...]
    least_sure: tuple[NotableRow, ...]
    report: Path | None = None

    @property
    def rows_per_second(self) -> float:
        """Rows divided by the time."""
        return self.rows / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return fields_as_json(self, "rows_per_second")
