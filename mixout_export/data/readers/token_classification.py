"""Reads tables for token classification."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.bad_rows import read_each
from mixout_export.data.columns import (
    ColumnNames,
    find_first,
    find_optional_label,
    single_column,
)
from mixout_export.data.confusion import LabelReport, confusion_matrix, report_of
from mixout_export.data.encoding import IGNORED
from mixout_export.data.examples import Examples
from mixout_export.data.labels import LabelMap, label_ids, refuse_missing, require_text, show
from mixout_export.data.metrics import most_frequent
from mixout_export.data.reader import Reader
from mixout_export.data.readers.entities import entity_scores, has_scheme
from mixout_export.data.table import Table
from mixout_export.data.texts import EncodedTexts, TextEncoding
from mixout_export.errors import ArgumentError, RowError
from mixout_export.tasks.token_classification import TOKEN_CLASSIFICATION

logger = logging.getLogger(__name__)

_WORDS = ("tokens", "words", "text", "sentence")
_TAGS = ("tags", "ner_tags", "ner", "pos_tags", "pos", "upos", "chunk_tags")


@dataclass(frozen=True)
class TaggedWords(Examples):
    """Sentences, the first token of each word, and the labels of the words.

    Attributes:
        places: Positions of the tokens that begin a word, shape (words,) for each example. Words
            that the model does not see are left out.
        tags: Label of each of these words, shape (words,); None without labels.
        names: Label names in the order of the outputs.
        words: The words of each sentence, also those that the model does not see.
        seen: Which of these words the model sees, shape (words,) for each example.
    """

    encoded: EncodedTexts
    places: Sequence[NDArray[np.int64]]
    tags: Sequence[NDArray[np.int64]] | None
    names: tuple[str, ...]
    words: Sequence[Sequence[str]] = ()
    seen: Sequence[NDArray[np.bool_]] = ()

    @property
    def labeled(self) -> bool:
        """Whether there are labels."""
        return self.tags is not None

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Number of words that the model sees, shape (examples,)."""
        return np.array([len(place) for place in self.places], np.int64)

    def predict(
        self, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[NDArray[np.int64]]:
        """Return the label of each word, shape (words,); -1 if the logits are not numbers."""
        logits = outputs["logits"]
        ids = logits.argmax(-1).masked_fill(logits.isnan().any(-1), -1).cpu().numpy()
        starts = self.encoded.starts(indices)
        return [
            line[start + self.places[index]]
            for line, start, index in zip(ids, starts, indices, strict=True)
        ]

    def class_ids(self) -> Sequence[NDArray[np.int64]]:
        """Return the labels of each sentence's words, shape (words,)."""
        return self.tags or ()

    def constant_predictions(self) -> list[NDArray[np.int64]]:
        """Return the most frequent label for each word."""
        tags = self.tags or ()
        label = most_frequent(np.concatenate(list(tags)))
        return [np.full_like(sentence, label) for sentence in tags]

    def label_report(self, predictions: Sequence[NDArray[np.int64]]) -> LabelReport | None:
        """Return the figures of each word's label; None if the logits are not numbers."""
        guesses, right = np.concatenate(list(predictions)), np.concatenate(list(self.tags or ()))
        if (guesses < 0).any():
            return None
        return report_of(confusion_matrix(right, guesses, len(self.names)), self.names)

    def metrics(self, predictions: Sequence[NDArray[np.int64]]) -> dict[str, float]:
        """Return precision, recall and F1 of entities, and the share of correct words.

        If the names of the labels have no scheme, every word but "O" is an entity.
        """
        tags = self.tags or ()
        guesses, right = np.concatenate(list(predictions)), np.concatenate(list(tags))
        if (guesses < 0).any():
            return dict.fromkeys(TOKEN_CLASSIFICATION.metrics, float("nan"))
        expected, predicted = (
            [[self.names[index] for index in sentence] for sentence in sentences]
            for sentences in (tags, predictions)
        )
        scores = entity_scores(expected, predicted, scheme=has_scheme(self.names))
        return {**scores, "accuracy": float(np.mean(guesses == right))}


class TokenClassification(Reader[TextEncoding]):
    """Reads words and as many labels: lists, or texts separated by spaces.

    Words are joined with spaces and tokenized as running text. That is what a trained model is
    given later, and it works with every fast tokenizer. A word's first token has its label.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"label-smoothing", "class-weights"})

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find words and labels."""
        if named.text_pair is not None:
            raise ArgumentError(
                f"text-pair-column: {TOKEN_CLASSIFICATION.name} reads one text a row; leave it out"
            )
        text = find_first(table, _WORDS, (), kind="words", option="--text-column", named=named.text)
        label = find_optional_label(table, named, labeled=labeled, others=_TAGS)
        return ColumnNames(text, None, label)

    def label_values(self, table: Table, named: ColumnNames) -> list[Any]:
        """Return the labels of all words."""
        columns = find_optional_label(table, named, labeled=True, others=_TAGS) or ()
        values = refuse_missing(table, single_column(table, columns, "--label-column"))
        lists = (value.split() if isinstance(value, str) else value for value in values)
        return [tag for tags in lists for tag in (tags if isinstance(tags, list) else [tags])]

    def read(self, table: Table, columns: ColumnNames, encoding: TextEncoding) -> TaggedWords:
        """Read words and tokenize them. Words beyond the longest sequence are not read."""
        encoding.require_offsets(TOKEN_CLASSIFICATION.name)
        words = _word_lists(table, columns.first)
        tags: list[NDArray[np.int64]] | None = None
        if columns.label is not None:
            column = single_column(table, columns.label, "--label-column")
            tags = _tag_lists(table, columns.first, column, words, LabelMap(encoding.labels))
        texts = [" ".join(sentence) for sentence in words]
        tokens = encoding.tokenize(texts, return_offsets_mapping=True)
        encoded = encoding.pack(tokens, cut=encoding.find_cut(tokens["input_ids"], texts))
        firsts = [
            _first_tokens(sentence, offsets)
            for sentence, offsets in zip(words, tokens["offset_mapping"], strict=True)
        ]
        _refuse_unseen(table, columns.first, words, firsts, encoded.cut)
        places = [first[first >= 0] for first in firsts]
        if tags is not None:
            tags = [tag[first >= 0] for tag, first in zip(tags, firsts, strict=True)]
            rows = [np.full(length, IGNORED, np.int64) for length in encoded.lengths]
            for row, place, tag in zip(rows, places, tags, strict=True):
                row[place] = tag
            encoded = encoded.with_token_labels(rows)
        seen = [first >= 0 for first in firsts]
        return TaggedWords(encoded, places, tags, encoding.labels, words, seen)


def _word_lists(table: Table, column: str) -> list[list[str]]:
    """Return each row's words."""

    def read(row: int, value: Any) -> list[str]:
        words = value.split() if isinstance(value, str) else value
        if not isinstance(words, (list, tuple)):
            raise RowError(
                f"{table.name}: column {column!r} holds {show(value)} in {table.where(row)}, "
                "expected a list of words, or words separated by spaces; choose another column "
                "with --text-column",
                {row: f"has {show(value)} in column {column!r}, expected words"},
            )
        texts = [require_text(table, column, row, word) for word in words]
        if not texts or not all(word.strip() for word in texts):
            raise RowError(
                f"{table.name}: column {column!r} holds {show(value)} in {table.where(row)}, "
                "expected at least one word and no empty one; correct that row",
                {row: f"has no word, or an empty one, in column {column!r}"},
            )
        return texts

    return read_each(refuse_missing(table, column), read)


def _tag_lists(
    table: Table, text: str, column: str, words: Sequence[Sequence[str]], labels: LabelMap
) -> list[NDArray[np.int64]]:
    """Return the label of each word."""

    def read(row: int, value: Any) -> list[Any]:
        tags = value.split() if isinstance(value, str) else value
        is_list = isinstance(tags, (list, tuple))
        if not is_list or len(tags) != len(words[row]):
            found = f"{len(tags)} labels" if is_list else show(value)
            raise RowError(
                f"{table.name}: column {column!r} holds {found} in {table.where(row)}, "
                f"expected {len(words[row])}, one for each word of {text!r}; correct that row",
                {row: f"has {found}, expected {len(words[row])}, one for each word"},
            )
        return list(tags)

    made = read_each(refuse_missing(table, column), read)
    rows = [row for row, tags in enumerate(made) for _ in tags]
    ids = label_ids(table, column, labels, rows, [tag for tags in made for tag in tags])
    return np.split(ids, np.cumsum([len(tags) for tags in made])[:-1])


def _first_tokens(words: Sequence[str], offsets: Sequence[Any]) -> NDArray[np.int64]:
    """Return the first token of each word; -1 for a word that the model does not see.

    The offsets are the start and end of each token in the words joined with spaces.
    """
    lengths = np.array([len(word) for word in words])
    word_of = np.repeat(np.arange(len(words)), lengths + 1)  # the word of each character
    word_of[np.cumsum(lengths + 1) - 1] = -1  # the spaces between them
    first = np.full(len(words), -1, np.int64)
    for token, (start, end) in enumerate(offsets):
        inside = word_of[start:end]  # some tokenizers add the space to the next token
        inside = inside[inside >= 0]
        if inside.size and first[inside[0]] < 0:
            first[inside[0]] = token
    return first


def _refuse_unseen(
    table: Table,
    column: str,
    words: Sequence[Sequence[str]],
    firsts: Sequence[NDArray[np.int64]],
    cut: Collection[int],
) -> None:
    """Refuse rows of which the model sees no word, and warn about other words that it misses.

    The words that rows lost because they were cut are counted elsewhere.
    """

    def check(row: int, first: NDArray[np.int64]) -> None:
        if (first < 0).all():
            raise RowError(
                f"{table.name}: column {column!r} holds {show(' '.join(words[row]))} in "
                f"{table.where(row)}, which the tokenizer turns into no tokens; remove that row",
                {row: "has no token"},
            )

    read_each(firsts, check)
    whole = [first for row, first in enumerate(firsts) if row not in cut]
    unseen = sum(int((first < 0).sum()) for first in whole)
    if unseen:
        logger.warning(
            "%s: %d of %d words are not read, because the tokenizer turns them into no tokens",
            table.name,
            unseen,
            sum(len(first) for first in whole),
        )
