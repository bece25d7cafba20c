"""Which columns hold the text, the second text and the label."""

from collections.abc import Sequence
from dataclasses import dataclass

from mixout_export.errors import DataError
from mixout_export.training.tables import Table

#: Usual names of a text and its second text.
_PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("query", "passage"),
    ("text", "text_pair"),
)
#: Usual names of a text that stands alone.
_SINGLES = (
    *("sentence", "text", "content", "review", "comment", "document"),
    *("sentence1", "text1", "premise", "question", "question1", "query"),
)
#: Usual names of a label. The first two win; of the others there may be only one.
_LABELS = ("label", "labels")
_OTHER_LABELS = ("target", "class", "category", "score", "stars", "rating")


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


def _not_one(table: Table, found: Sequence[str], kind: str, option: str) -> DataError:
    """Return the error for columns of which none, or more than one, may be meant."""
    what = (
        f"several columns may hold {kind} ({', '.join(found)})"
        if found
        else (f"no column has a usual name for {kind}")
    )
    return DataError(
        f"{table.name}: {what}, it has {', '.join(table.columns)}; choose with {option}"
    )


def _by_lower_name(table: Table) -> dict[str, str]:
    """Return lower-case name → name; of two that differ in case, the lower-case one wins."""
    there = {name.lower(): name for name in table.columns}
    return there | {name: name for name in table.columns if name == name.lower()}


def _find_text(table: Table, pair: str | None) -> tuple[str, str | None]:
    """Find the text, and its second text unless `pair` names it."""
    there = _by_lower_name(table)
    pairs = [(there[a], there[b]) for a, b in _PAIRS if a in there and b in there]
    if pair is not None:
        pairs = [couple for couple in pairs if couple[1] == pair]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        found = [" + ".join(couple) for couple in pairs]
        raise _not_one(table, found, "a pair of texts", "--text-column and --text-pair-column")
    singles = [there[name] for name in _SINGLES if name in there and there[name] != pair]
    if len(singles) != 1:
        raise _not_one(table, singles, "the text", "--text-column")
    return singles[0], pair


def _find_label(table: Table) -> str:
    there = _by_lower_name(table)
    first = [there[name] for name in _LABELS if name in there][:1]
    found = first or [there[name] for name in _OTHER_LABELS if name in there]
    if len(found) != 1:
        raise _not_one(table, found, "labels", "--label-column")
    return found[0]


def find_texts(
    table: Table, *, text_column: str | None = None, text_pair_column: str | None = None
) -> tuple[str, str | None]:
    """Find the columns of the text and of the second text, None for single texts.

    Args:
        table: The data.
        text_column: Column of the text; None finds it. Where it is named, a second text is read
            only if that is named too.
        text_pair_column: Column of the second text; None finds it.

    Raises:
        DataError: A column is missing, or several may be meant; the message names those there
            are. Or the text and the second text are the same column.
    """
    if text_pair_column is not None:
        _require(table, text_pair_column, "--text-pair-column")
    if text_column is not None:
        text, pair = _require(table, text_column, "--text-column"), text_pair_column
    else:
        text, pair = _find_text(table, text_pair_column)
    if text == pair:
        raise DataError(
            f"{table.name}: column {text!r} is given as the text and as the second text; choose "
            "another with --text-pair-column"
        )
    return text, pair


def find_columns(
    table: Table,
    *,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
) -> Columns:
    """Find the columns to read: those named, else by the usual names in any case.

    Args:
        table: The data.
        text_column: As in `find_texts`.
        text_pair_column: As in `find_texts`.
        label_column: Column of the label; None finds it.

    Raises:
        DataError: As in `find_texts`; the same for the label.
    """
    text, pair = find_texts(table, text_column=text_column, text_pair_column=text_pair_column)
    if label_column is not None:
        return Columns(text, pair, _require(table, label_column, "--label-column"))
    return Columns(text, pair, _find_label(table))
