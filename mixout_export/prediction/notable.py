"""Keep the rows that are worth a look: those that are most wrong, and those that are least sure."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mixout_export.data.source_texts import SourceText, source_texts
from mixout_export.prediction.answers import Part, RowAnswer


@dataclass(frozen=True)
class NotableRow:
    """A row and its answer.

    Attributes:
        row: Number of the row in the file, from 1.
        where: The same in words, as in "row 3 (line 4) of dev.csv".
        predicted: The answer in words.
        expected: The right answer in words; None without labels.
        probability: The model's probability of its answer, in [0, 1]; None if it gives none.
        error: How wrong the answer is, in a measure of the task.
        texts: The texts of the row.
    """

    row: int
    where: str
    predicted: str
    expected: str | None
    probability: float | None
    error: float
    texts: tuple[SourceText, ...]


@dataclass
class Notable:
    """The rows with the largest values of something. Equal rows keep the order of the file.

    Attributes:
        most: Number of rows to keep.
        seen: Number of rows that were candidates.
    """

    most: int
    seen: int = 0
    _heap: list[tuple[float, int, NotableRow]] = field(default_factory=list, repr=False)

    def add(self, value: float, part: Part, row: int, answer: RowAnswer) -> None:
        """Consider a row of a part of the file."""
        self.seen += 1
        table = part.table
        number = row if table.numbers is None else table.numbers[row]
        if len(self._heap) == self.most and (value, -number) <= self._heap[0][:2]:
            return
        kept = NotableRow(
            number + 1,
            f"{table.where(row)} of {Path(table.name).name}",
            answer.said,
            answer.expected,
            answer.probability,
            answer.error,
            tuple(source_texts(table, part.columns, row)),
        )
        push = heapq.heappushpop if len(self._heap) == self.most else heapq.heappush
        push(self._heap, (value, -number, kept))

    @property
    def rows(self) -> tuple[NotableRow, ...]:
        """The rows, that with the largest value first."""
        return tuple(kept for *_, kept in sorted(self._heap, key=lambda item: item[:2])[::-1])


class NotableRows:
    """The rows that are most wrong, and those whose answers are least sure.

    Attributes:
        wrong: Rows with a wrong answer, the worst first.
        unsure: Rows with the lowest probability of their answer.
    """

    def __init__(self, most: int) -> None:
        self.wrong, self.unsure = Notable(most), Notable(most)

    def add(self, part: Part, answers: Sequence[RowAnswer]) -> None:
        """Consider the rows of a part of the file."""
        for row, answer in enumerate(answers):
            if answer.error > 0:
                self.wrong.add(answer.error, part, row, answer)
            if answer.probability is not None:
                self.unsure.add(-answer.probability, part, row, answer)
