"""Find the columns that hold texts, images and labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mixout_export.data.table import Table
from mixout_export.errors import DataError

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
#: Usual names of a single text.
SINGLES = (
    *("sentence", "text", "content", "review", "comment", "document"),
    *("sentence1", "text1", "premise", "question", "question1", "query"),
)
#: Usual names of a label. The first two take precedence; only one of the others may be present.
_LABELS = ("label", "labels")
_OTHER_LABELS = ("target", "class", "category", "score", "stars", "rating")

#: What to do about a csv or tsv file without a header.
_HEADER = ", or write the names of the columns on the first line if they are not there"


@dataclass(frozen=True)
class ColumnNames:
    """Columns that a user named or that a task found. `None` means not set.

    Attributes:
        text: The text; for some tasks the question, the words or the prompt.
        text_pair: The second text.
        label: The label, in one or several columns.
        choices: Choices, in one column of lists or in several columns.
        image: The image.
    """

    text: str | None = None
    text_pair: str | None = None
    label: tuple[str, ...] | None = None
    choices: tuple[str, ...] | None = None
    image: str | None = None

    @classmethod
    def named(
        cls,
        *,
        text: str | None = None,
        text_pair: str | None = None,
        label: str | None = None,
        choices: str | None = None,
        image: str | None = None,
    ) -> "ColumnNames":
        """Build it from what a user writes. Commas separate several columns."""
        return cls(
            text,
            text_pair,
            None if label is None else (label,),
            None if choices is None else (choices,),
            image,
        )

    @property
    def first(self) -> str:
        """Column of the text or of the image, after `find`."""
        return self.text or self.image or ""

    def identity(self) -> dict[str, str | None]:
        """Return the columns as JSON-ready values, to compare them with those of another run."""
        label, choices = (
            None if names is None else ",".join(names) for names in (self.label, self.choices)
        )
        return {
            "text_column": self.text,
            "text_pair_column": self.text_pair,
            "label_column": label,
            "choices_column": choices,
            "image_column": self.image,
        }


def require_columns(table: Table, names: Sequence[str], option: str) -> tuple[str, ...]:
    """Check and return the columns that were named: one name, or several separated by commas."""
    if len(names) == 1 and names[0] not in table.columns and "," in names[0]:
        names = [name.strip() for name in names[0].split(",")]
    for name in names:
        table.column(name, option=option)
    return tuple(names)


def find_first(
    table: Table,
    names: Sequence[str],
    others: Sequence[str],
    *,
    kind: str,
    option: str,
    named: str | None = None,
) -> str:
    """Return the column that the user named, or find it by its usual names in any case.

    Args:
        table: The data.
        names: Usual names. The first one that is present is taken.
        others: Less clear names. One is taken only if no other one is present.
        kind: What the column holds, for the message.
        option: The option that names the column, for the message.
        named: The column that the user named.

    Raises:
        DataError: There is no such column, or there are several. The message lists them.
    """
    if named is not None:
        return require_columns(table, (named,), option)[0]
    there = _by_lower_name(table)
    found = [there[name] for name in names if name in there][:1]
    found = found or [there[name] for name in others if name in there]
    if len(found) != 1:
        raise _not_one(table, found, kind, option)
    return require_columns(table, found, option)[0]


def find_numbered(table: Table, stems: Sequence[str]) -> tuple[str, ...]:
    """Find numbered columns (ending0, ending1, …) or columns with letters (ending_a, …).

    The stems are the names without the number. Those of the first stem that has at least two
    columns are returned in their order; () if no stem has.
    """
    for stem in stems:
        pattern = re.compile(rf"{stem}[_ ]?(\d+|[a-h])", re.IGNORECASE)
        matches = [(m[1], name) for name in table.columns if (m := pattern.fullmatch(name))]
        if len(matches) > 1:
            matches.sort(key=lambda match: (len(match[0]), match[0].lower()))
            return tuple(name for _, name in matches)
    return ()


def _not_one(table: Table, found: Sequence[str], kind: str, option: str) -> DataError:
    """Return the error for a column that was not found, or not clearly."""
    what = (
        f"several columns may hold {kind} ({', '.join(found)})"
        if found
        else f"no column has a usual name for {kind}; its columns are {table.described()}"
    )
    has_header = table.lines is not None and table.lines[:1] > [1]
    header = _HEADER if has_header and not found else ""
    return DataError(f"{table.name}: {what}; choose one with {option}{header}")


def _by_lower_name(table: Table) -> dict[str, str]:
    """Return lower-case name → name. If two names differ only in case, the lower-case one wins."""
    names = [*table.columns, *table.unreadable]
    there = {name.lower(): name for name in names}
    return there | {name: name for name in names if name == name.lower()}


def _find_text(table: Table, pair: str | None) -> tuple[str, str | None]:
    """Find the text, and the second text unless `pair` names it."""
    there = _by_lower_name(table)
    pairs = [(there[a], there[b]) for a, b in _PAIRS if a in there and b in there]
    if pair is not None:
        pairs = [couple for couple in pairs if couple[1] == pair]
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        found = [" + ".join(couple) for couple in pairs]
        raise _not_one(table, found, "a pair of texts", "--text-column and --text-pair-column")
    singles = [there[name] for name in SINGLES if name in there and there[name] != pair]
    if len(singles) != 1:
        raise _not_one(table, singles, "the text", "--text-column")
    return singles[0], pair


def find_texts(table: Table, named: ColumnNames) -> tuple[str, str | None]:
    """Find the columns of the text and of the second text, None for single texts.

    If the user named the text, a second text is read only if that is named too.
    """
    if named.text_pair is not None:
        table.column(named.text_pair, option="--text-pair-column")
    if named.text is not None:
        table.column(named.text, option="--text-column")
        text, pair = named.text, named.text_pair
    else:
        text, pair = _find_text(table, named.text_pair)
        for name in filter(None, (text, pair)):
            table.column(name, option="--text-column")
    if text == pair:
        raise DataError(
            f"{table.name}: column {text!r} is both the text and the second text; choose another "
            "column with --text-pair-column"
        )
    return text, pair


def find_optional_label(
    table: Table, named: ColumnNames, *, labeled: bool, others: Sequence[str] = _OTHER_LABELS
) -> tuple[str, ...] | None:
    """Find the column of the label, or return the columns that were named.

    If there need not be labels, the result is None if no column, or no single one, is found.
    `others` are further usual names, of which only one may be present.
    """
    if named.label is not None:
        return require_columns(table, named.label, "--label-column")
    try:
        return (find_first(table, _LABELS, others, kind="labels", option="--label-column"),)
    except DataError:
        if labeled:
            raise
        return None


def single_column(table: Table, names: Sequence[str], option: str) -> str:
    """Return the only column, and refuse several."""
    if len(names) != 1:
        raise DataError(
            f"{table.name}: {option} names {len(names)} columns ({', '.join(names)}), expected one"
        )
    return names[0]
