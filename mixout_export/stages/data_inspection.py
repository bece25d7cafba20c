"""`inspect FILE`: what is in a data file, before hours are spent on it."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.tokenizer import trained_max_length
from mixout_export.data.bad_rows import BadRows
from mixout_export.data.columns import ColumnNames
from mixout_export.data.label_names import ordered_names
from mixout_export.data.labels import is_missing, label_name
from mixout_export.data.lengths import TRAINING_LENGTH
from mixout_export.data.reader import Reader, reader_of
from mixout_export.data.separated import FieldFormat
from mixout_export.data.table import Table
from mixout_export.data.tables import read_table
from mixout_export.data.texts import TextEncoding
from mixout_export.errors import ArgumentError, CheckpointError, DataError
from mixout_export.tasks.text_classification import TEXT_CLASSIFICATION

#: Training steps that three epochs should have at least, and the batch sizes to choose from.
_STEPS, _EPOCHS, _BATCH_SIZES = 200, 3, (32, 16, 8)

#: Words, characters that are words of their own, and punctuation.
_PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|[^\w\s]")
#: Tokens of a piece on average, and special tokens of a sequence. A guess without a tokenizer.
_TOKENS_PER_PIECE, _SPECIAL = 1.25, 2


@dataclass(frozen=True)
class DataInspection:
    """The description of a data file.

    Attributes:
        path: The file.
        rows: Number of rows that can be read.
        columns: What is read ("text", "second text", "label") → the columns.
        tokens: "median", "95 %" and "longest" → tokens of a row.
        counted: Whether a tokenizer has counted them. Otherwise they are estimated.
        max_length: Longest sequence in tokens.
        cut: Number of longer rows, which would be cut.
        split: Number of longer rows, which would be read in several windows, so that none is cut.
        labels: Label → number of rows, or of words; empty without labels.
        duplicates: Number of rows whose text has occurred before.
        contradictions: Number of texts that occur with different labels.
        batch_size: Batch size to start with.
        bad_rows: Number of rows that cannot be read.
        bad: These rows in words.
    """

    path: Path
    rows: int
    columns: dict[str, str]
    tokens: dict[str, int]
    counted: bool
    max_length: int
    cut: int
    labels: dict[str, int]
    duplicates: int
    contradictions: int
    batch_size: int
    split: int = 0
    bad_rows: int = 0
    bad: str = ""
    kind: str = field(default="data", init=False)


def inspect_data(
    path: Path,
    *,
    model: Path | None = None,
    max_length: int | None = None,
    columns: ColumnNames | None = None,
    fields: FieldFormat | None = None,
) -> DataInspection:
    """Describe a data file.

    Args:
        path: The file, or a folder that `datasets.save_to_disk` wrote.
        model: A checkpoint that will read it: its task finds the columns, and its tokenizer counts
            tokens. None reads texts and labels, and estimates the tokens.
        max_length: Longest sequence in tokens; None takes 128, or that of the model's training.
        columns: Columns that the user named.
        fields: How the fields of a csv or tsv file are separated and quoted.

    Raises:
        ArgumentError: `max_length` is not positive.
        CheckpointError: `model` has no tokenizer, or its task reads no tables.
        DataError: The file cannot be read.
    """
    if max_length is not None and max_length < 1:
        raise ArgumentError(f"max-length: got {max_length}, expected 1 or more")
    checkpoint = None if model is None else open_checkpoint(model)
    reader = _reader(checkpoint)
    if reader.encoding is not TextEncoding:
        raise CheckpointError(
            f"{model}: is a model of images, but inspect describes data of texts; run train, which "
            "checks every image before its first step"
        )
    tokenizer = None if checkpoint is None else _tokenizer(checkpoint)
    limit = max_length or _usual_length(tokenizer)
    bad = BadRows(limit=0)
    table = read_table(path, fields=fields, bad=bad, splits=("train",))
    named = columns or ColumnNames()
    labels = () if checkpoint is None else tuple(checkpoint.labels or ())
    found = reader.find(table, named, labels, labeled=False)
    read = [found.first, *filter(None, (found.text_pair,)), *(found.choices or ())]
    lengths = _lengths(table, found, tokenizer)
    longer = int((lengths > limit).sum())
    rows = reader.contents(table, found)
    return DataInspection(
        path=path,
        rows=table.rows,
        columns=_described(found),
        tokens={
            "median": int(np.median(lengths)),
            "95 %": int(np.quantile(lengths, 0.95)),
            "longest": int(lengths.max()),
        },
        counted=tokenizer is not None,
        max_length=limit,
        cut=0 if reader.splits else longer,
        split=longer if reader.splits else 0,
        labels=_label_counts(reader, table, found),
        duplicates=table.rows - len(set(rows)),
        contradictions=_contradictions(rows, table, found),
        batch_size=_batch_size(table.rows),
        bad_rows=len(bad) + _empty_rows(table, read),
        bad=bad.listed() if len(bad) else "",
    )


def _reader(checkpoint: PlainCheckpoint | None) -> Reader[Any]:
    task = TEXT_CLASSIFICATION if checkpoint is None else checkpoint.require_task()
    reader = reader_of(task)
    if reader is None:
        raise CheckpointError(f"the task {task.name} reads no data files; leave --model out")
    return reader


def _tokenizer(checkpoint: PlainCheckpoint) -> PreTrainedTokenizerBase:
    if checkpoint.tokenizer is None:
        raise CheckpointError(f"{checkpoint.path}: has no tokenizer files; choose another --model")
    return checkpoint.tokenizer


def _usual_length(tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Return the longest sequence that `train` would read without `--max-length`."""
    if tokenizer is None:
        return TRAINING_LENGTH
    return min(trained_max_length(tokenizer) or TRAINING_LENGTH, tokenizer.model_max_length)


def _described(columns: ColumnNames) -> dict[str, str]:
    """Return the columns that are read, in words."""
    found = {
        "text": columns.text,
        "second text": columns.text_pair,
        "choices": ", ".join(columns.choices or ()),
        "label": ", ".join(columns.label or ()),
    }
    return {name: column for name, column in found.items() if column}


def _as_text(value: Any) -> str:
    """Return a cell as the text of which the model reads tokens."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return "" if value is None else str(value)


def _seconds(table: Table, columns: ColumnNames) -> list[str] | None:
    """Return what follows each row's text: its second text, then its longest choice.

    None if the table has neither.
    """
    parts = []
    if columns.text_pair is not None:
        parts.append([_as_text(value) for value in table.columns[columns.text_pair]])
    if columns.choices is not None:
        rows = zip(*(table.columns[name] for name in columns.choices), strict=True)
        parts.append([max(map(_as_text, _choices(row)), key=len, default="") for row in rows])
    return [" ".join(texts) for texts in zip(*parts, strict=True)] if parts else None


def _choices(cells: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the choices of a row: one in each cell, or all in a single one."""
    whole = cells[0].get("text") if isinstance(cells[0], dict) else cells[0]
    return tuple(whole) if len(cells) == 1 and isinstance(whole, (list, tuple)) else cells


def _lengths(
    table: Table, columns: ColumnNames, tokenizer: PreTrainedTokenizerBase | None
) -> NDArray[np.int64]:
    """Return the tokens of each row's longest sequence, shape (rows,)."""
    texts = [_as_text(value) for value in table.columns[columns.first]]
    pairs = _seconds(table, columns)
    if tokenizer is None:
        joined = texts if pairs is None else map(" ".join, zip(texts, pairs, strict=True))
        pieces = [len(_PIECE.findall(text)) for text in joined]
        return np.array([round(n * _TOKENS_PER_PIECE) + _SPECIAL for n in pieces], np.int64)
    ids = tokenizer(texts, pairs, truncation=False, verbose=False)["input_ids"]
    return np.array([len(row) for row in ids], np.int64)


def _label_counts(reader: Reader[Any], table: Table, columns: ColumnNames) -> dict[str, int]:
    """Return how often each label occurs; {} if there are none, or they are numbers."""
    if columns.label is None:
        return {}
    rows = [
        row
        for row in range(table.rows)
        if not any(is_missing(table.columns[column][row]) for column in columns.label)
    ]
    kept = table.without(set(range(table.rows)) - set(rows))
    try:
        values = reader.label_values(kept, columns)
    except (ArgumentError, DataError):
        return {}
    counts = Counter(map(label_name, values))
    return {name: counts[name] for name in ordered_names(values) if name in counts}


def _contradictions(rows: list[str], table: Table, columns: ColumnNames) -> int:
    """Return how many texts occur with different labels."""
    if columns.label is None:
        return 0
    labels = zip(*(table.columns[column] for column in columns.label), strict=True)
    known: dict[str, set[str]] = {}
    for row, label in zip(rows, labels, strict=True):
        known.setdefault(row, set()).add(repr(label))
    return sum(len(different) > 1 for different in known.values())


def _empty_rows(table: Table, columns: list[str]) -> int:
    """Return how many rows have an empty text."""
    cells = zip(*(table.columns[column] for column in columns), strict=True)
    return sum(any(map(is_missing, row)) for row in cells)


def _batch_size(rows: int) -> int:
    """Return the largest usual batch size with enough steps in three epochs."""
    enough = (size for size in _BATCH_SIZES if rows * _EPOCHS >= _STEPS * size)
    return next(enough, _BATCH_SIZES[-1])
