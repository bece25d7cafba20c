"""Reads tables of texts for language models."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.columns import SINGLES, ColumnNames, find_first, require_columns
from mixout_export.data.encoding import IGNORED, EncodedExamples, Encoding
from mixout_export.data.examples import Examples
from mixout_export.data.labels import list_rows, text_values
from mixout_export.data.reader import Reader
from mixout_export.data.tables import Table
from mixout_export.errors import ArgumentError, DataError
from mixout_export.tasks import Task


class Surprise(NamedTuple):
    """The loss of a sequence.

    Attributes:
        loss: Sum of its tokens' negative log-likelihoods, in nats.
        tokens: How many of its tokens were predicted.
    """

    loss: float
    tokens: int


@dataclass(frozen=True)
class RunningText(Examples):
    """Sequences whose own tokens are predicted.

    Attributes:
        origins: Row of the table in which each sequence begins, shape (examples,).
    """

    origins: NDArray[np.int64]

    #: Every token has as many logits as the vocabulary has words, which fills the memory.
    evaluation_scale: ClassVar[int] = 1

    @property
    def labeled(self) -> bool:
        """Whether there are labels: the text is its own label."""
        return True

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of the table in which each sequence begins, shape (examples,)."""
        return self.origins

    @abstractmethod
    def shifted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Align logits and labels: those at the same position belong together."""

    def predict(self, indices: Sequence[int], outputs: Mapping[str, Tensor]) -> list[Surprise]:
        """Return the loss of each sequence.

        If the model computed a loss, which is the mean over the batch, each sequence gets its
        share of it.
        """
        targets = self.targets[list(indices)].tolist()
        if "loss" in outputs:
            loss = float(outputs["loss"])
            return [Surprise(loss * count, count) for count in targets]
        batch = self.collate(indices)
        logits, labels = self.shifted(outputs["logits"], batch["labels"])
        # Convert only the logits that count: a batch of logits in float32 may fill the memory.
        losses = [
            torch.nn.functional.cross_entropy(
                line[wanted.to(line.device) != IGNORED].float(),
                wanted[wanted != IGNORED].to(line.device),
                reduction="sum",
            )
            for line, wanted in zip(logits, labels, strict=True)
        ]
        return [Surprise(float(loss), count) for loss, count in zip(losses, targets, strict=True)]

    def metrics(self, predictions: Sequence[Surprise]) -> dict[str, float]:
        """Return the mean loss of a token and its exponential, the perplexity."""
        loss = sum(one.loss for one in predictions) / sum(one.tokens for one in predictions)
        try:
            return {"loss": loss, "perplexity": math.exp(loss)}
        except OverflowError:
            return {"loss": loss, "perplexity": math.inf}


class TextReader(Reader):
    """Reads one text per row."""

    uses: ClassVar[frozenset[str]] = frozenset({"pack-sequences"})
    task: ClassVar[Task]

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find the text."""
        for option, name in (("text-pair-column", named.text_pair), ("label-column", named.label)):
            if name is not None:
                raise ArgumentError(
                    f"{option}: {self.task.name} reads one text a row; leave it out"
                )
        if named.text is not None:
            return ColumnNames(require_columns(table, (named.text,), "--text-column")[0])
        found = find_first(table, (), SINGLES, kind="the text", option="--text-column")
        return ColumnNames(found)


@dataclass(frozen=True)
class Sequences:
    """Token ids of rows or blocks of text.

    Attributes:
        ids: Ids of each sequence.
        special: Whether the tokenizer added them, as many.
        origins: Row of the table in which each begins, shape (sequences,).
    """

    ids: Sequence[NDArray[np.int64]]
    special: Sequence[NDArray[np.bool_]]
    origins: NDArray[np.int64]

    def pack(self, encoding: Encoding, *, padding_side: str | None = None) -> EncodedExamples:
        """Return them as a model's inputs."""
        columns = {
            "input_ids": self.ids,
            "attention_mask": [np.ones_like(ids) for ids in self.ids],
            "token_type_ids": [np.zeros_like(ids) for ids in self.ids],
        }
        packed = encoding.pack(columns)
        side = padding_side or packed.padding_side
        return EncodedExamples(packed.columns, None, packed.fill, side)


def read_sequences(
    table: Table, columns: ColumnNames, encoding: Encoding, *, end: int | None = None
) -> Sequences:
    """Tokenize each row, or join the rows and cut them into blocks.

    Args:
        table: The data.
        columns: The column of the text.
        encoding: Says whether to join rows, and the longest sequence.
        end: Id that is added to the end of each text that lacks it; None adds none.

    Raises:
        DataError: A value is missing or is not text.
    """
    texts = text_values(table, columns.first)
    tokens = encoding.tokenize(
        texts,
        truncation=not encoding.pack_sequences,
        max_length=None if encoding.pack_sequences else encoding.max_length,
        return_special_tokens_mask=True,
        verbose=False,  # blocks are for texts longer than the model takes
    )
    ids = [np.array(row, np.int64) for row in tokens["input_ids"]]
    special = [np.array(row, bool) for row in tokens["special_tokens_mask"]]
    if end is not None:
        for row, there in enumerate(ids):
            # A row of the greatest length may have been cut before the end of its text.
            whole = encoding.pack_sequences or len(there) < encoding.max_length
            if whole and (not len(there) or there[-1] != end):
                ids[row], special[row] = np.append(there, end), np.append(special[row], True)
    if not encoding.pack_sequences:
        return Sequences(ids, special, np.arange(len(ids)))
    return _blocks(ids, special, encoding.max_length)


def _blocks(
    ids: Sequence[NDArray[np.int64]], special: Sequence[NDArray[np.bool_]], length: int
) -> Sequences:
    """Join texts and cut them into blocks. The last block may be shorter, down to two tokens."""
    joined, mask = np.concatenate(ids), np.concatenate(special)
    row_of = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    starts = [start for start in range(0, len(joined), length) if start + 1 < len(joined)]
    return Sequences(
        [joined[start : start + length] for start in starts],
        [mask[start : start + length] for start in starts],
        row_of[starts],
    )


def refuse_empty(table: Table, column: str, sequences: Sequences, counts: Sequence[int]) -> None:
    """Refuse sequences without a token to predict.

    Args:
        table: The data.
        column: The column of the text.
        sequences: The tokenized text.
        counts: Number of tokens to predict in each sequence.

    Raises:
        DataError: There is such a sequence. The message names its row.
    """
    empty = [int(row) for row, n in zip(sequences.origins, counts, strict=True) if n < 1]
    if empty or not counts:
        raise DataError(
            f"{table.name}: column {column!r} holds text without a token to predict in "
            f"{list_rows(table, empty)}; remove those rows"
        )
