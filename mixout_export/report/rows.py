"""Find the row of the user's file that a decision was made on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixout_export.data.evaluation import EvaluationData
from mixout_export.data.source_texts import SourceText, source_texts
from mixout_export.parity.decisions import DATA_BATCH, Flip


@dataclass(frozen=True)
class DataRows:
    """The user's file in a comparison.

    Attributes:
        data: The file as batches.
        first: Number of its first batch among all batches of the comparison.
    """

    data: EvaluationData
    first: int

    @property
    def name(self) -> str:
        """The file's name."""
        return Path(self.data.table.name).name

    def _row(self, flip: Flip) -> int | None:
        number = flip.batch_number - self.first
        return self.data.rows[number][flip.row] if flip.batch == DATA_BATCH else None

    def where(self, flip: Flip) -> str:
        """Return where a flip's row is, as in "row 3 (line 4) of eval.tsv"; "" for other inputs."""
        row = self._row(flip)
        return "" if row is None else f"{self.data.table.where(row)} of {self.name}"

    def texts(self, flip: Flip) -> Iterator[SourceText]:
        """Yield the texts of a flip's row; none for other inputs."""
        row = self._row(flip)
        if row is not None:
            yield from source_texts(self.data.table, self.data.columns, row)
