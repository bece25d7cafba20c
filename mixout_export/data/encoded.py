"""Encoded examples and padded batches of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: Tokens of one example: ids, or whatever else there is one of per token.
Row = Sequence[int] | NDArray[Any]


def pad(rows: Sequence[Row], *, fill: int, side: str) -> NDArray[np.int64]:
    """Pad rows to the longest.

    Args:
        rows: One row of integers per example.
        fill: What pads.
        side: "right" or "left".

    Returns:
        Shape (examples, longest).
    """
    width = max(1, *(len(row) for row in rows))
    padded = np.full((len(rows), width), fill, np.int64)
    for line, row in zip(padded, rows, strict=True):
        if side == "left":
            line[width - len(row) :] = row
        else:
            line[: len(row)] = row
    return padded


@dataclass(frozen=True)
class EncodedExamples:
    """Tokenised examples.

    Attributes:
        columns: Input name → one row of integers per example.
        labels: int64 class ids or float32 values, shape (examples,) or (examples, labels); None
            where there are none, or where they are one of the columns.
        fill: Input name → the value that pads it.
        padding_side: "right" or "left".
    """

    columns: Mapping[str, Sequence[Row]]
    labels: NDArray[Any] | None
    fill: Mapping[str, int]
    padding_side: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, shape (examples,)."""
        first = next(iter(self.columns.values()))
        return np.fromiter((len(row) for row in first), np.int64, len(first))

    def starts(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return where in a batch's rows each example's first token stands, shape (batch,)."""
        first = next(iter(self.columns.values()))
        lengths = np.array([len(first[i]) for i in indices])
        return (
            max(1, lengths.max()) - lengths
            if self.padding_side == "left"
            else np.zeros_like(lengths)
        )

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch padded to its longest example.

        Args:
            indices: Which examples.

        Returns:
            Input name → int64 tensor of shape (batch, longest), and "labels" of shape (batch,) or
            (batch, labels) if there are any.
        """
        batch = {
            name: torch.from_numpy(
                pad([rows[i] for i in indices], fill=self.fill[name], side=self.padding_side)
            )
            for name, rows in self.columns.items()
        }
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[list(indices)])
        return batch


def fill_values(
    tokenizer: PreTrainedTokenizerBase, pad_token_id: int | None = None
) -> dict[str, int]:
    """Return what pads each input.

    Args:
        tokenizer: The checkpoint's tokenizer.
        pad_token_id: The model's own padding id; None takes the tokenizer's, or 0.
    """
    ids = (pad_token_id, tokenizer.pad_token_id, 0)
    return {
        "input_ids": next(value for value in ids if value is not None),
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
    }


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: NDArray[Any] | None,
    *,
    inputs: Sequence[str],
    max_length: int,
    pad_token_id: int | None = None,
) -> EncodedExamples:
    """Tokenise examples without padding.

    Args:
        tokenizer: The checkpoint's tokenizer.
        texts: One text per example.
        pairs: The second texts, None for single sentences.
        labels: Shape (examples,) or (examples, labels); None if there are none.
        inputs: Names of the inputs the model takes.
        max_length: Longest sequence in tokens.
        pad_token_id: The model's own padding id; None takes the tokenizer's.
    """
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        truncation=True,
        max_length=max_length,
        padding=False,
    )
    columns = {name: encoded[name] for name in inputs if name in encoded}
    fill = fill_values(tokenizer, pad_token_id)
    return EncodedExamples(columns, labels, fill, tokenizer.padding_side)
