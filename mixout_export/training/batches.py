"""Encoded examples, and which of them go into which batch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

#: Batches whose examples are sorted by length together: wide enough to leave little padding,
#: narrow enough that batches still differ from epoch to epoch.
_POOL = 50


@dataclass(frozen=True)
class EncodedExamples:
    """Tokenised examples.

    Attributes:
        columns: Input name → one list of integers per example.
        labels: int64 class ids or float32 values, shape (examples,).
        fill: Input name → the value that pads it.
        padding_side: "right" or "left".
    """

    columns: dict[str, list[list[int]]]
    labels: NDArray[Any]
    fill: dict[str, int]
    padding_side: str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, shape (examples,)."""
        first = next(iter(self.columns.values()))
        return np.fromiter((len(row) for row in first), np.int64, len(first))

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch padded to its longest example.

        Args:
            indices: Which examples.

        Returns:
            Input name → int64 tensor of shape (batch, longest), and "labels" of shape (batch,).
        """
        batch: dict[str, Tensor] = {}
        for name, rows in self.columns.items():
            chosen = [rows[i] for i in indices]
            width = max(len(row) for row in chosen)
            padded = np.full((len(chosen), width), self.fill[name], np.int64)
            for line, row in zip(padded, chosen, strict=True):
                if self.padding_side == "left":
                    line[width - len(row) :] = row
                else:
                    line[: len(row)] = row
            batch[name] = torch.from_numpy(padded)
        batch["labels"] = torch.from_numpy(self.labels[list(indices)])
        return batch


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    labels: NDArray[Any],
    *,
    inputs: Sequence[str],
    max_length: int,
) -> EncodedExamples:
    """Tokenise examples without padding.

    Args:
        tokenizer: The checkpoint's tokenizer.
        texts: One text per example.
        pairs: The second texts, None for single sentences.
        labels: Shape (examples,).
        inputs: Names of the inputs the model takes.
        max_length: Longest sequence in tokens.
    """
    encoded = tokenizer(
        list(texts),
        None if pairs is None else list(pairs),
        truncation=True,
        max_length=max_length,
        padding=False,
    )
    columns = {name: encoded[name] for name in inputs if name in encoded}
    fill = {
        "input_ids": tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        "attention_mask": 0,
        "token_type_ids": tokenizer.pad_token_type_id,
    }
    return EncodedExamples(columns, labels, fill, tokenizer.padding_side)


def training_batches(
    lengths: NDArray[np.int64], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Return an epoch's batches: every example once, examples of similar length together.

    The order depends on nothing but the arguments, so a resumed run sees the same batches.

    Args:
        lengths: Number of tokens of each example, shape (examples,).
        batch_size: Examples per batch; the last one may be smaller.
        seed: Seed of the run.
        epoch: Number of the epoch, from 0.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    pool = batch_size * _POOL
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        part = order[start : start + pool]
        part = part[np.argsort(lengths[part], kind="stable")]
        batches += [part[i : i + batch_size].tolist() for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def evaluation_batches(lengths: NDArray[np.int64], *, batch_size: int) -> list[list[int]]:
    """Return batches of examples sorted by length, longest first, so that memory peaks at once."""
    order = np.argsort(-lengths, kind="stable")
    return [order[i : i + batch_size].tolist() for i in range(0, len(order), batch_size)]


def share_of(batches: Sequence[list[int]], *, rank: int, ranks: int) -> list[list[int]]:
    """Return one process's batches, the same number for every process.

    Where the number does not divide, the last ones take batches from the beginning again.
    """
    rounds = math.ceil(len(batches) / ranks)
    return [batches[(turn * ranks + rank) % len(batches)] for turn in range(rounds)]


def grouped(batches: Sequence[list[int]], size: int) -> Iterator[list[list[int]]]:
    """Yield the batches of each update: `size` of them, the last group fewer."""
    for start in range(0, len(batches), size):
        yield list(batches[start : start + size])
