"""Write the page of a prediction: how good it is, what is confused, and the rows to look at."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mixout_export.data.lengths import cut_sentence
from mixout_export.files.output import replaced_file
from mixout_export.prediction.result import PredictionResult
from mixout_export.report.facts import software_versions
from mixout_export.report.page import check_report
from mixout_export.report.skeleton import render
from mixout_export.report.words import count

#: Most labels whose confusion matrix is shown.
_MATRIX_LABELS = 25
#: Shades of a confusion matrix.
_SHADES = 9


@dataclass(frozen=True)
class Cell:
    """A cell of the confusion matrix.

    Attributes:
        count: Number of rows.
        shade: From 0 to 9: its share of the rows with the same right label.
        right: Whether the prediction is right.
    """

    count: int
    shade: int
    right: bool


def confusion_cells(result: PredictionResult) -> list[list[Cell]]:
    """Return the confusion matrix for the page; empty without one, or if it is too large."""
    matrix = result.confusion or ()
    if len(matrix) > _MATRIX_LABELS:
        return []
    return [
        [
            Cell(value, round(_SHADES * value / max(sum(row), 1)), place == column)
            for column, value in enumerate(row)
        ]
        for place, row in enumerate(matrix)
    ]


def _headline(result: PredictionResult) -> str:
    if result.metrics is None:
        return f"{count(result.rows)} rows predicted"
    name, value = next(iter(result.metrics.items()))
    return f"{name} {value:.4f}"


def write_prediction_report(path: Path, result: PredictionResult, *, command: str | None) -> None:
    """Write the page. An existing file is replaced once the new one is complete.

    Raises:
        ArgumentError: The name does not end in .html.
        OutputError: It cannot be written.
    """
    check_report(path)
    page = render(
        "prediction.html.jinja",
        "even",
        result=result,
        headline=_headline(result),
        cells=confusion_cells(result),
        cut=cut_sentence(result.cut),
        versions=software_versions(),
        command=command,
        made=datetime.now(UTC),
    )
    with replaced_file(path) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
