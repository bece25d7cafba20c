"""Reads tables for multiple choice."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.bad_rows import read_each
from mixout_export.data.columns import (
    ColumnNames,
    find_first,
    find_numbered,
    find_optional_label,
    find_texts,
    require_columns,
    single_column,
)
from mixout_export.data.examples import Examples
from mixout_export.data.labels import as_integer, refuse_missing, require_text, show
from mixout_export.data.metrics import most_frequent
from mixout_export.data.reader import Reader
from mixout_export.data.readers.text_classification import read_texts
from mixout_export.data.table import Table
from mixout_export.data.texts import EncodedTexts, TextEncoding
from mixout_export.errors import RowError

_LISTS = ("choices", "endings", "options")
_STEMS = ("ending", "choice", "option", "answer", "alternative")
#: Usual names of the prompt. It may come with a beginning that all choices share.
_PROMPTS = ("sent1", "ctx", "context", "article", "passage", "premise", "question", "prompt")
_BEGINNINGS = ("sent2", "question")
_LABELS = ("answerkey", "answer", "gold", "correct", "correct_answer")
_OPTION = "--choices-column"


@dataclass(frozen=True)
class Choices(Examples):
    """Groups of sequences, of which one is correct.

    Attributes:
        count: Number of sequences in a group. Those of a group follow one another.
        right: The correct one of each group, from 0, shape (groups,); None without labels.
        texts: The choices of each group.
    """

    encoded: EncodedTexts
    count: int
    right: NDArray[np.int64] | None
    texts: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.encoded) // self.count

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each group's longest sequence, shape (groups,)."""
        longest: NDArray[np.int64] = self.encoded.lengths.reshape(-1, self.count).max(axis=1)
        return longest

    @property
    def cut(self) -> Mapping[int, int]:
        """Group that lost text → the tokens of its longest sequence before it was cut."""
        found: dict[int, int] = {}
        for place, length in self.encoded.cut.items():
            group = place // self.count
            found[group] = max(length, found.get(group, 0))
        return found

    @property
    def labeled(self) -> bool:
        """Whether there are labels."""
        return self.right is not None

    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return inputs of shape (batch, choices, longest), and labels of shape (batch,)."""
        flat = [index * self.count + choice for index in indices for choice in range(self.count)]
        made = self.encoded.collate(flat)
        batch = {name: rows.view(len(indices), self.count, -1) for name, rows in made.items()}
        if self.right is not None:
            batch["labels"] = torch.from_numpy(self.right[list(indices)])
        return batch

    def predict(self, indices: Sequence[int], outputs: Mapping[str, Tensor]) -> list[int]:
        """Return the choice for each group; -1 if the logits are not numbers."""
        logits = outputs["logits"].reshape(len(indices), self.count)
        chosen: list[int] = logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1).tolist()
        return chosen

    def constant_predictions(self) -> list[int]:
        """Return the place that is correct most often."""
        return [most_frequent(np.asarray(self.right))] * len(self)

    def metrics(self, predictions: Sequence[int]) -> dict[str, float]:
        """Return the share of correct choices."""
        chosen = np.array(predictions)
        if (chosen < 0).any():
            return {"accuracy": float("nan")}
        return {"accuracy": float(np.mean(chosen == self.right))}


class MultipleChoice(Reader[TextEncoding]):
    """Reads a prompt, choices, and the number or letter of the correct choice.

    The prompt is the text. The second text begins every choice, like `sent2` in SWAG. Choices are
    a column of lists, or numbered columns (ending0, ending1, …).
    """

    uses: ClassVar[frozenset[str]] = frozenset({"choices-column"})

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find prompt, the beginning of the choices, the choices and the label."""
        choices = _find_choices(table, named)
        label = find_optional_label(table, named, labeled=labeled, others=_LABELS)
        if named.text is not None or named.text_pair is not None:
            text, pair = find_texts(table, named)
            return ColumnNames(text, pair, label, choices)
        text = find_first(table, _PROMPTS, (), kind="the prompt", option="--text-column")
        lower = {name.lower(): name for name in table.columns}
        pairs = (lower[name] for name in _BEGINNINGS if name in lower and lower[name] != text)
        return ColumnNames(text, next(pairs, None), label, choices)

    def read(self, table: Table, columns: ColumnNames, encoding: TextEncoding) -> Choices:
        """Read groups of choices, all of one size."""
        prompts, beginnings = read_texts(table, columns)
        groups, keys = _read_choices(table, columns.choices or ())
        right = None if columns.label is None else _read_labels(table, columns.label, groups, keys)
        count = len(groups[0])
        firsts = [prompt for prompt in prompts for _ in range(count)]
        if beginnings is None:
            seconds = [choice for group in groups for choice in group]
        else:
            pairs = zip(beginnings, groups, strict=True)
            seconds = [f"{beginning} {choice}" for beginning, group in pairs for choice in group]
        return Choices(encoding.texts(firsts, seconds), count, right, groups)


def _find_choices(table: Table, named: ColumnNames) -> tuple[str, ...]:
    if named.choices is not None:
        return require_columns(table, named.choices, _OPTION)
    numbered = find_numbered(table, _STEMS)
    return numbered or (find_first(table, _LISTS, (), kind="choices", option=_OPTION),)


def _read_choices(
    table: Table, columns: Sequence[str]
) -> tuple[list[list[str]], list[list[str] | None]]:
    """Return the choices of each row, and their names in the data, None if they have none."""
    if len(columns) > 1:
        parts = [refuse_missing(table, column) for column in columns]
        return [
            [
                require_text(table, column, row, value, option=_OPTION)
                for column, value in zip(columns, values, strict=True)
            ]
            for row, values in enumerate(zip(*parts, strict=True))
        ], [None] * table.rows
    values = refuse_missing(table, columns[0])
    sizes = [len(texts) for texts in map(_texts_of, values) if isinstance(texts, (list, tuple))]
    count = next((size for size in sizes if size > 1), 0)

    def read(row: int, value: Any) -> tuple[list[str], list[str] | None]:
        names = value.get("label") if isinstance(value, dict) else None  # as in ARC
        texts = _texts_of(value)
        if not isinstance(texts, (list, tuple)) or len(texts) < 2:
            raise RowError(
                f"{table.name}: column {columns[0]!r} holds {show(value)} in {table.where(row)}, "
                f"expected a list of at least two choices; choose another column with {_OPTION}",
                {row: f"has {show(value)} in column {columns[0]!r}, expected choices"},
            )
        if len(texts) != count:
            raise RowError(
                f"{table.name}: column {columns[0]!r} holds {len(texts)} choices in "
                f"{table.where(row)}, expected {count} as in the first row; remove it",
                {row: f"has {len(texts)} choices, expected {count}"},
            )
        group = [require_text(table, columns[0], row, t, option=_OPTION) for t in texts]
        return group, [str(n) for n in names] if isinstance(names, (list, tuple)) else None

    made = read_each(values, read)
    return [group for group, _ in made], [keys for _, keys in made]


def _texts_of(value: Any) -> Any:
    return value.get("text") if isinstance(value, dict) else value


def _read_labels(
    table: Table,
    columns: Sequence[str],
    groups: Sequence[Sequence[str]],
    keys: Sequence[Sequence[str] | None],
) -> NDArray[np.int64]:
    column = single_column(table, columns, "--label-column")
    count = len(groups[0])
    values = refuse_missing(table, column)

    def read(row: int, value: Any) -> int:
        key = keys[row]
        place = _place(value, count, key)
        if place is None:
            last = chr(ord("A") + count - 1)
            expected = f"0 to {count - 1} or A to {last}" if key is None else ", ".join(key)
            raise RowError(
                f"{table.name}: column {column!r} holds {show(value)} in {table.where(row)}, "
                f"expected the correct choice, {expected}; correct it, or choose another column "
                "with --label-column",
                {row: f"has {show(value)} in column {column!r}, expected {expected}"},
            )
        return place

    return np.array(read_each(values, read), np.int64)


def _place(value: Any, count: int, keys: Sequence[str] | None) -> int | None:
    """Return the choice that a label names, or gives as a number or letter; None if unknown."""
    text = str(value).strip()
    number = as_integer(value)
    if keys is not None:
        number = keys.index(text) if text in keys else None
    elif number is None and len(text) == 1 and text.isascii() and text.isalpha():
        number = ord(text.upper()) - ord("A")
    return number if number is not None and number < count else None
