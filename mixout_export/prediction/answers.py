"""What the outputs of a task become: new columns of each row, and scores of all rows.

Files are read in parts, and one object of a subclass of `Answers` sees all of them. It keeps only
counts and sums, so that its size does not depend on the number of rows.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.columns import ColumnNames
from mixout_export.data.confusion import Confused, LabelScores
from mixout_export.data.examples import Examples
from mixout_export.data.table import Table
from mixout_export.data.table_writer import Column
from mixout_export.tasks import Task
from mixout_export.tasks.decision import LABEL, Decision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Number of equal ranges of the probability in which right answers are counted.
BINS = 10


PREDICTED = Column("predicted", "text")
PROBABILITY = Column("probability", "number")


@dataclass(frozen=True)
class RowAnswer:
    """The answer to one row.

    Attributes:
        values: The values of the new columns.
        said: The answer in words.
        probability: The model's probability of its answer, in [0, 1]; None if it gives none.
        expected: The right answer in words; None without labels.
        error: How wrong the answer is: 0 if it is right, and larger if it is worse.
    """

    values: tuple[Any, ...]
    said: str
    probability: float | None = None
    expected: str | None = None
    error: float = 0.0


@dataclass(frozen=True)
class Part:
    """A part of the file.

    Attributes:
        table: Its rows.
        columns: The columns that are read.
        examples: The rows as the model takes them.
    """

    table: Table
    columns: ColumnNames
    examples: Examples

    @property
    def texts(self) -> list[str]:
        """The text of each row."""
        return self.table.columns[self.columns.first]


@dataclass(frozen=True)
class Setting:
    """What is known about a model when its outputs are read.

    Attributes:
        task: Its task.
        labels: Its label names in the order of the outputs.
        tokenizer: Its tokenizer; None if it reads no texts.
        labeled: Whether the file has labels.
        has_unanswerable: Whether the file has questions that have no answer.
        generate: Continues texts; None if the model does not generate.
    """

    task: Task
    labels: tuple[str, ...]
    tokenizer: "PreTrainedTokenizerBase | None"
    labeled: bool
    has_unanswerable: bool = False
    generate: Callable[[Sequence[str]], list[str]] | None = None

    def label(self, index: int) -> str:
        """Return the name of a label, or its number if it has no name."""
        return self.labels[index] if index < len(self.labels) else str(index)

    def token(self, token_id: int) -> str:
        """Return the text of a token, or its id without a tokenizer."""
        return str(token_id if self.tokenizer is None else self.tokenizer.decode([token_id]))


class Bins:
    """How often answers are right, by the probability that the model gives them.

    Attributes:
        rows: Number of answers in each range of the probability, shape (BINS,).
        right: How many of them are right, shape (BINS,).
    """

    def __init__(self) -> None:
        self.rows = np.zeros(BINS, np.int64)
        self.right = np.zeros(BINS, np.int64)

    def add(self, probabilities: NDArray[Any], right: NDArray[np.bool_]) -> None:
        """Count answers, given their probabilities and whether each is right."""
        places = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
        self.rows += np.bincount(places, minlength=BINS)
        self.right += np.bincount(places[right], minlength=BINS)


class Answers(ABC):
    """Turns the outputs of a task into answers, and scores them if there are labels.

    Attributes:
        columns: The columns that it adds.
    """

    columns: ClassVar[tuple[Column, ...]] = (PREDICTED, PROBABILITY)

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def inputs(self, examples: Examples, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return some examples as a padded batch."""
        return examples.collate(indices)

    @abstractmethod
    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return what to keep of a batch's outputs, one value for each example."""

    @abstractmethod
    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the answer to each row of a part of the file, and score it.

        There is one prediction for each example, in their order.
        """

    def metrics(self) -> dict[str, float] | None:
        """Return the task's metrics over all rows so far; None where there are none."""
        return None

    def by_label(self) -> tuple[LabelScores, ...]:
        """Return the figures of each label; empty without labels."""
        return ()

    def confused(self, count: int) -> tuple[Confused, ...]:
        """Return which labels are confused most often, at most `count`."""
        return ()

    def confusion(self) -> NDArray[np.int64] | None:
        """Return how often each label was predicted as each other one; None if unknown."""
        return None

    def said(self) -> dict[str, int]:
        """Return how often each answer was given, if there are few different ones."""
        return {}

    def bins(self) -> Bins | None:
        """Return how often answers are right by their probability; None if unknown."""
        return None


class DecidedAnswers(Answers):
    """The answers of a task that has no class of its own here: what it decides, without scores."""

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return the decision in words and its probability."""
        logits = outputs[self.setting.task.outputs[0]].float()
        shares = logits.softmax(-1)
        chosen = logits.argmax(-1)
        ids = examples.collate(indices)["input_ids"]
        decision: Decision = self.setting.task.decision or LABEL
        return [
            (decision.answer(int(place), row.tolist(), self.setting), float(share[place]))
            for place, share, row in zip(chosen, shares, ids, strict=True)
        ]

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the decisions."""
        return [RowAnswer((said, share), said, share) for said, share in predictions]


def answers_of(setting: Setting) -> Answers:
    """Import and create what reads the outputs of a task."""
    if setting.task.answers is None:
        return DecidedAnswers(setting)
    module, _, name = setting.task.answers.partition(":")
    made: Answers = getattr(importlib.import_module(module), name)(setting)
    return made
