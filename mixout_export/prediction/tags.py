"""Answers that are one label for each word."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.confusion import LabelScores, label_scores
from mixout_export.data.examples import Examples
from mixout_export.data.readers.entities import EntityCounts, find_entities, has_scheme
from mixout_export.data.readers.token_classification import TaggedWords
from mixout_export.data.table_writer import Column
from mixout_export.prediction.answers import Answers, Part, RowAnswer, Setting

#: The tag of a word without a label, where the labels have one.
_OUTSIDE = "O"


class _Words(NamedTuple):
    """The labels of the words that the model sees, and their probabilities, shape (words,)."""

    ids: NDArray[np.int64]
    shares: NDArray[np.float64]


class Tags(Answers):
    """The label of each word, and the entities that the labels form.

    A word that the model does not see, because the text is too long, gets the label "O", or the
    first label if there is no "O". It counts in no metric.
    """

    columns = (Column("predicted", "texts"), Column("entities", "json"))

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._scheme = has_scheme(setting.labels)
        self._counts = EntityCounts()
        self._right = self._words = 0
        self._said: dict[str, int] = {}

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return the label of each word and its probability."""
        tagged = cast(TaggedWords, examples)
        shares = outputs["logits"].float().softmax(-1).max(-1).values.numpy()
        starts = tagged.encoded.starts(indices)
        ids = tagged.predict(indices, outputs)
        return [
            _Words(chosen, line[start + tagged.places[index]])
            for chosen, line, start, index in zip(ids, shares, starts, indices, strict=True)
        ]

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the labels and entities of each row."""
        tagged = cast(TaggedWords, part.examples)
        return [self._row(tagged, row, found) for row, found in enumerate(predictions)]

    def _row(self, examples: TaggedWords, row: int, found: _Words) -> RowAnswer:
        words, seen = examples.words[row], examples.seen[row]
        outside = _OUTSIDE if _OUTSIDE in self.setting.labels else self.setting.label(0)
        tags, shares = [outside] * len(words), np.ones(len(words))
        for place, index in zip(np.flatnonzero(seen), found.ids, strict=True):
            tags[place] = self.setting.label(int(index))
        shares[seen] = found.shares
        entities = [
            {
                "type": kind,
                "text": " ".join(words[first : last + 1]),
                "first_word": first,
                "last_word": last,
                "probability": round(float(shares[first : last + 1].min()), 6),
            }
            for kind, first, last in sorted(
                find_entities(tags, scheme=self._scheme), key=lambda entity: entity[1:]
            )
        ]
        for entity in entities:
            kind = str(entity["type"])
            self._said[kind] = self._said.get(kind, 0) + 1
        said = _in_words((str(e["type"]), str(e["text"])) for e in entities)
        values = (tags, entities)
        if examples.tags is None:
            return RowAnswer(values, said)
        ids = examples.tags[row]
        right = [self.setting.label(int(index)) for index in ids]
        read = [tag for tag, there in zip(tags, seen, strict=True) if there]
        wrong = self._counts.add(right, read, scheme=self._scheme)
        self._words += len(right)
        self._right += int((ids == found.ids).sum())
        visible = [word for word, there in zip(words, seen, strict=True) if there]
        expected = _in_words(
            (kind, " ".join(visible[first : last + 1]))
            for kind, first, last in sorted(
                find_entities(right, scheme=self._scheme), key=lambda entity: entity[1:]
            )
        )
        return RowAnswer(values, said, None, expected, float(wrong))

    def metrics(self) -> dict[str, float] | None:
        """Return precision, recall and F1 of entities, and the share of right words."""
        if not self._words:
            return None
        return {**self._counts.scores(), "accuracy": self._right / self._words}

    def by_label(self) -> tuple[LabelScores, ...]:
        """Return the figures of each type of entity."""
        counts = self._counts
        return tuple(
            label_scores(
                kind,
                rows=counts.there[kind],
                predicted=counts.found[kind],
                right=counts.right[kind],
            )
            for kind in sorted({*counts.there, *counts.found})
        )

    def said(self) -> dict[str, int]:
        """Return how many entities of each type were found."""
        return dict(sorted(self._said.items()))


def _in_words(entities: Any) -> str:
    """Return entities as text: "PER: Ada Lovelace; LOC: London"."""
    return "; ".join(f"{kind}: {text}" for kind, text in entities) or "no entity"
