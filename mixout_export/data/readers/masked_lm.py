"""Reads tables for masked language modeling."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import IGNORED, Encoding
from mixout_export.data.readers.running_text import (
    RunningText,
    TextReader,
    read_sequences,
    refuse_empty,
)
from mixout_export.data.tables import Table
from mixout_export.errors import CheckpointError
from mixout_export.tasks.masked_lm import MASKED_LM

#: Share of a sequence's tokens that are predicted. Of these, the shares that are replaced by the
#: mask and by a random token; the rest stay unchanged (Devlin et al., 2019, section 3.1).
_CHOSEN, _MASKED, _REPLACED = 0.15, 0.8, 0.1
#: Last numbers of the seeds, which make these draws independent of each other and of the batches.
_TRAINING, _EVALUATION = 1, 2


@dataclass(frozen=True)
class MaskedText(RunningText):
    """Sequences with hidden tokens: 15 % of each, at least one, drawn anew in each epoch.

    The number of hidden tokens depends on the length alone. Which tokens are hidden depends on
    seed, epoch and example, not on the batch, so a resumed run and several processes hide the same
    ones. Evaluations do not depend on the seed, so that their losses can be compared.

    Attributes:
        places: Positions of the tokens of each example that may be hidden. Those that the
            tokenizer added are left out.
        mask_token_id: Id of the mask.
        vocabulary: Random tokens are drawn from the ids below this one.
        seed: Seed of the run.
    """

    places: Sequence[NDArray[np.int64]]
    mask_token_id: int
    vocabulary: int
    seed: int

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Number of tokens to predict, shape (examples,)."""
        return np.array([hidden_count(len(places)) for places in self.places], np.int64)

    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return a padded batch with tokens hidden, and those tokens as labels."""
        batch = self.encoded.collate(indices)
        ids = batch["input_ids"].numpy()  # the same memory
        labels = np.full_like(ids, IGNORED)
        starts = self.encoded.starts(indices)
        for line, label, start, index in zip(ids, labels, starts, indices, strict=True):
            seed = (0, 0, index, _EVALUATION)
            if epoch is not None:
                seed = (self.seed, epoch, index, _TRAINING)
            chosen, inputs = self._hide(line[start:], self.places[index], seed)
            label[start + chosen] = line[start + chosen]
            line[start + chosen] = inputs
        return {**batch, "labels": torch.from_numpy(labels)}

    def _hide(
        self, ids: NDArray[np.int64], places: NDArray[np.int64], seed: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of the hidden tokens, and the ids that replace them."""
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(places)[: hidden_count(len(places))]
        fate = rng.random(len(chosen))
        anything = rng.integers(0, self.vocabulary, len(chosen))
        shown = np.where(fate < _MASKED + _REPLACED, anything, ids[chosen])
        return chosen, np.where(fate < _MASKED, self.mask_token_id, shown)

    def shifted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return both unchanged: a token is predicted at its own position."""
        return logits, labels


def hidden_count(tokens: int) -> int:
    """Return how many of some tokens are hidden: 15 %, at least one."""
    return max(1, round(_CHOSEN * tokens)) if tokens else 0


class MaskedLM(TextReader):
    """Reads texts, whose tokens are then hidden."""

    task = MASKED_LM

    def read(self, table: Table, columns: ColumnNames, encoding: Encoding) -> MaskedText:
        """Read rows or blocks of text."""
        mask = encoding.tokenizer.mask_token_id
        if mask is None:
            raise CheckpointError(
                f"{type(encoding.tokenizer).__name__}: has no mask token, which masked-lm needs; "
                "prepare it for causal-lm, or use the tokenizer of a model that has one"
            )
        sequences = read_sequences(table, columns, encoding)
        places = [np.flatnonzero(~special) for special in sequences.special]
        refuse_empty(table, columns.first, sequences, [len(place) for place in places])
        vocabulary = min(len(encoding.tokenizer), encoding.interface.vocabulary_size)
        encoded = sequences.pack(encoding)
        return MaskedText(encoded, sequences.origins, places, mask, vocabulary, encoding.seed)
