"""Answers that are a part of a text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor

from mixout_export.data.examples import Examples
from mixout_export.data.readers.answers import answer_scores
from mixout_export.data.readers.question_answering import Questions
from mixout_export.data.table_writer import Column
from mixout_export.prediction.answers import PREDICTED, Answers, Part, RowAnswer, Setting

_NONE = "no answer"


class Spans(Answers):
    """The part of the context that answers each question.

    The score is the logit of the answer's first token plus that of its last one, minus the same for
    "no answer". "No answer" is predicted only if the file has questions without an answer, and the
    score is below 0.
    """

    columns = (PREDICTED, Column("start", "integer"), Column("score", "number"))

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._f1 = self._exact = 0.0
        self._rows = 0

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return the best span of each window."""
        return examples.predict(indices, outputs)

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the best span of each question."""
        questions = cast(Questions, part.examples)
        may_be_none = self.setting.has_unanswerable
        texts = questions.texts(predictions, may_be_none=may_be_none)
        best = questions.best(predictions)
        return [
            self._row(questions, row, text, guess.start, guess.score - null)
            for row, (text, (guess, null)) in enumerate(zip(texts, best, strict=True))
        ]

    def _row(
        self, questions: Questions, row: int, text: str, start: int, score: float
    ) -> RowAnswer:
        shown = round(score, 6) if math.isfinite(score) else None
        values = (text, start if text else None, shown)
        if questions.answers is None:
            return RowAnswer(values, text or _NONE)
        right = [answer.text for answer in questions.answers[row]]
        scores = answer_scores([text], [right])
        self._rows += 1
        self._f1 += scores["f1"]
        self._exact += scores["exact_match"]
        expected = " / ".join(dict.fromkeys(right)) or _NONE
        # Among answers that share no word with the right one, a surer one is worse.
        error = 1 - scores["f1"] + (max(score, 0.0) * 1e-3 if scores["f1"] < 1 else 0.0)
        return RowAnswer(values, text or _NONE, None, expected, error)

    def metrics(self) -> dict[str, float] | None:
        """Return F1 and exact match over all questions."""
        if not self._rows:
            return None
        return {"f1": self._f1 / self._rows, "exact_match": self._exact / self._rows}
