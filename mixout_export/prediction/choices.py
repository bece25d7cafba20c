"""Answers that are one of several texts."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor

from mixout_export.data.examples import Examples
from mixout_export.data.readers.multiple_choice import Choices
from mixout_export.data.table_writer import Column
from mixout_export.prediction.answers import (
    PROBABILITY,
    Answers,
    Bins,
    Part,
    RowAnswer,
    Setting,
)
from mixout_export.prediction.labels import softmax


class OneChoice(Answers):
    """The number of the choice, from 0, its text and its probability."""

    columns = (Column("predicted", "integer"), Column("predicted_text", "text"), PROBABILITY)

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._rows = self._right = 0
        self._bins = Bins()

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return the logits of each group's choices, shape (choices,)."""
        count = cast(Choices, examples).count
        return list(outputs["logits"].float().reshape(len(indices), count).numpy())

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the most likely choice of each group."""
        groups = cast(Choices, part.examples)
        shares = softmax(np.stack(list(predictions)))
        chosen = shares.argmax(axis=-1)
        likely = shares.max(axis=-1)
        if groups.right is not None:
            self._rows += len(chosen)
            self._right += int((chosen == groups.right).sum())
            self._bins.add(likely, chosen == groups.right)
        made = []
        for row, (place, share, texts) in enumerate(zip(chosen, likely, groups.texts, strict=True)):
            said, expected, error = texts[place], None, 0.0
            if groups.right is not None:
                right = int(groups.right[row])
                expected = texts[right]
                error = 0.0 if right == place else float(1 - shares[row, right])
            values = (int(place), said, float(share))
            made.append(RowAnswer(values, said, float(share), expected, error))
        return made

    def metrics(self) -> dict[str, float] | None:
        """Return the share of right choices."""
        return {"accuracy": self._right / self._rows} if self._rows else None

    def bins(self) -> Bins | None:
        """Return how often answers are right by their probability."""
        return self._bins if self._rows else None
