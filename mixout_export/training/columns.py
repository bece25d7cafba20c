"""Which columns hold the text, the second text and the label."""

from dataclasses import dataclass

from mixout_export.errors import DataError
from mixout_export.training.tables import Table

#: Usual names of a text and its pair; None where the text stands alone.
_TEXTS: tuple[tuple[str, str | None], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text", "text_pair"),
    ("sentence", None),
    ("text", None),
    ("content", None),
    ("review", None),
    ("comment", None),
    ("document", None),
)
_LABELS = ("label", "labels", "target", "class", "category", "score", "stars", "rating")


@dataclass(frozen=True)
class Columns:
    """Names of the columns to read.

    Attributes:
        text: The text.
        text_pair: The second text, None for single texts.
        label: The label.
    """

    text: str
    text_pair: str | None
    label: str


def _require(table: Table, name: str, option: str) -> str:
    table.column(name, option=option)
    return name


def _find_text(table: Table, text: str | None, pair: str | None) -> tuple[str, str | None]:
    if text is not None:
        partner = None if pair is None else _require(table, pair, "--text-pair-column")
        return _require(table, text, "--text-column"), partner
    there = {name.lower(): name for name in table.columns}
    for first, second in _TEXTS:
        if first in there and (second is None or second in there):
            partner = None if second is None else there[second]
            if pair is not None:
                partner = _require(table, pair, "--text-pair-column")
            return there[first], partner
    raise DataError(
        f"{table.name}: no column with a usual name for text, it has {', '.join(table.columns)}; "
        "choose with --text-column"
    )


def _find_label(table: Table, label: str | None) -> str:
    if label is not None:
        return _require(table, label, "--label-column")
    there = {name.lower(): name for name in table.columns}
    found = [there[name] for name in _LABELS if name in there]
    if not found:
        raise DataError(
            f"{table.name}: no column with a usual name for labels, it has "
            f"{', '.join(table.columns)}; choose with --label-column"
        )
    return found[0]


def find_columns(
    table: Table,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
) -> Columns:
    """Find the columns to read: those named, else by the usual names.

    Args:
        table: The data.
        text_column: Column of the text; None finds it.
        text_pair_column: Column of the second text; None finds it.
        label_column: Column of the label; None finds it.

    Raises:
        DataError: A column is missing; the message names those there are.
    """
    text, pair = _find_text(table, text_column, text_pair_column)
    return Columns(text, pair, _find_label(table, label_column))
