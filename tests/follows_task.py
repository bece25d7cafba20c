"""A made-up task in one module: does the second sentence follow the first one?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from mixout_export.data.columns import ColumnNames, find_first, find_optional_label
from mixout_export.data.examples import Examples
from mixout_export.data.labels import class_ids, text_values
from mixout_export.data.reader import Reader
from mixout_export.data.tables import Table
from mixout_export.data.texts import TextEncoding
from mixout_export.tasks import Metric, Task, Usage
from mixout_export.tasks.decision import Decision, Words

ANSWERS = ("follows", "does not follow")


def answer(chosen: int, ids: Sequence[int], words: Words) -> str:
    return f"“{words.token(ids[-2])}” {ANSWERS[chosen]}"


FOLLOWS = Task(
    name="follows",
    auto_class="AutoModelForNextSentencePrediction",
    architecture_suffixes=("ForNextSentencePrediction",),
    pipeline_tag="text-ranking",
    reader=f"{__name__}:FollowsReader",
    has_labels=False,
    reports=(
        Metric("mistakes", lower_is_better=True, note="mistakes is the number of wrong answers."),
        Metric("share"),
    ),
    decision=Decision(answer=answer),
    usage=Usage(
        text='"the cat", "sleeps"',
        answer='print("follows:", outputs.logits.argmax(-1).item() == 0)',
    ),
)


@dataclass(frozen=True)
class Pairs(Examples):
    @property
    def labeled(self) -> bool:
        return self.encoded.labels is not None

    def predict(self, indices: Sequence[int], outputs: Mapping[str, Tensor]) -> list[int]:
        found: list[int] = outputs["logits"].argmax(-1).tolist()
        return found

    def metrics(self, predictions: Sequence[Any]) -> dict[str, float]:
        wrong = np.array(predictions) != np.asarray(self.encoded.labels)
        return {"mistakes": float(wrong.sum()), "share": float(1 - wrong.mean())}


class FollowsReader(Reader):
    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        first, then = (
            find_first(table, (name,), (), kind=name, option="--text-column")
            for name in ("first", "then")
        )
        label = find_optional_label(table, named, labeled=labeled, others=("order",))
        return ColumnNames(first, then, label)

    def read(self, table: Table, columns: ColumnNames, encoding: TextEncoding) -> Pairs:
        assert columns.text_pair is not None
        texts = [text_values(table, name) for name in (columns.first, columns.text_pair)]
        encoded = encoding.texts(*texts)
        if columns.label is not None:
            labels = class_ids(table, columns.label[0], ("yes", "no"))
            encoded = replace(encoded, labels=labels)
        return Pairs(encoded)
