"""Read the answers of a table, and compare a predicted answer with them."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mixout_export.data.bad_rows import read_each
from mixout_export.data.labels import as_integer, is_missing, show
from mixout_export.data.table import Table
from mixout_export.errors import RowError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Answer:
    """A correct answer.

    Attributes:
        text: The text.
        start: Position of its first character in the context, from 0.
    """

    text: str
    start: int


def normalize_answer(text: str) -> str:
    """Normalize an answer as SQuAD does: lower case; no punctuation, articles or extra spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(predicted: str, right: str) -> float:
    """Return 1 if two answers are the same after normalization, else 0."""
    return float(normalize_answer(predicted) == normalize_answer(right))


def word_f1(predicted: str, right: str) -> float:
    """Return the F1 of the words that two answers share. No answer equals only no answer."""
    guess, gold = (normalize_answer(text).split() for text in (predicted, right))
    if not guess or not gold:
        return float(guess == gold)
    shared = sum((Counter(guess) & Counter(gold)).values())
    return 2 * shared / (len(guess) + len(gold))


def answer_scores(predicted: Sequence[str], right: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return the mean F1 and exact match, each with the most similar correct answer.

    There is one predicted answer for each question, "" for no answer, and any number of correct
    ones.
    """
    f1 = exact = 0.0
    for guess, answers in zip(predicted, right, strict=True):
        # As in SQuAD, an answer that is empty after normalization is no answer.
        known = [text for text in answers if normalize_answer(text)] or [""]
        f1 += max(word_f1(guess, text) for text in known)
        exact += max(exact_match(guess, text) for text in known)
    count = len(predicted)
    return {"f1": f1 / count, "exact_match": exact / count}


def read_answers(
    table: Table, columns: Sequence[str], contexts: Sequence[str]
) -> list[tuple[Answer, ...]]:
    """Return the correct answers of each row; () for a question without an answer.

    There is one column in SQuAD's format, {"text": [...], "answer_start": [...]} or a list of
    {"text": ..., "answer_start": ...}, or there are two columns: text and start.
    """
    single = len(columns) == 1

    def read(row: int, context: str) -> tuple[Answer, ...]:
        found = _of_cell(table, columns[0], row) if single else _of_two(table, columns, row)
        for answer in found:
            there = context[answer.start : answer.start + len(answer.text)]
            if there != answer.text:
                raise RowError(
                    f"{table.name}: column {columns[0]!r} holds the answer {show(answer.text)} at "
                    f"character {answer.start} in {table.where(row)}, but the context has "
                    f"{show(there)} there; correct it, and count characters from 0",
                    {row: f"has an answer that is not at character {answer.start}"},
                )
        return tuple(found)

    return read_each(contexts, read)


def _of_cell(table: Table, column: str, row: int) -> list[Answer]:
    """Return the answers of a cell in SQuAD's format."""
    value = table.columns[column][row]
    wrong = RowError(
        f"{table.name}: column {column!r} holds {show(value)} in {table.where(row)}, expected "
        '{"text": [...], "answer_start": [...]}, with empty lists for no answer',
        {row: f"has {show(value)} in column {column!r}, expected answers"},
    )
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
    elif isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
        texts = [item.get("text") for item in value]
        starts = [item.get("answer_start") for item in value]
    else:
        raise wrong
    if not isinstance(texts, (list, tuple)) or not isinstance(starts, (list, tuple)):
        raise wrong
    if len(texts) != len(starts):
        raise wrong
    pairs = [(text, as_integer(start)) for text, start in zip(texts, starts, strict=True)]
    if not all(isinstance(text, str) and text and start is not None for text, start in pairs):
        raise wrong
    return [Answer(text, start) for text, start in pairs if start is not None]


def _of_two(table: Table, columns: Sequence[str], row: int) -> list[Answer]:
    """Return the answer from a column of texts and one of starts. An empty text is no answer."""
    text, start = (table.columns[column][row] for column in columns)
    if is_missing(text):
        return []
    place = as_integer(start)
    if not isinstance(text, str) or place is None:
        what, column = (text, columns[0]) if not isinstance(text, str) else (start, columns[1])
        expected = "text" if column == columns[0] else "the number of its first character"
        raise RowError(
            f"{table.name}: column {column!r} holds {show(what)} in {table.where(row)}, expected "
            f"{expected}; correct that row",
            {row: f"has {show(what)} in column {column!r}, expected {expected}"},
        )
    return [Answer(text, place)]
