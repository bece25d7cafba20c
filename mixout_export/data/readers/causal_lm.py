"""Causal language modelling: the next word of a text."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import Encoding
from mixout_export.data.readers.running_text import (
    IGNORED,
    RunningText,
    TextReader,
    read_sequences,
    refuse_empty,
)
from mixout_export.data.tables import Table
from mixout_export.errors import CheckpointError
from mixout_export.tasks.causal_lm import CAUSAL_LM


@dataclass(frozen=True)
class ContinuedText(RunningText):
    """Sequences of which every token but the first is predicted from those before it."""

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Number of tokens to predict, shape (examples,)."""
        return self.lengths - 1

    def shifted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's logits with the token after it."""
        return logits[:, :-1], labels[:, 1:]


class CausalLM(TextReader):
    """Reads texts to continue.

    A text ends with the tokenizer's end token, if it has one, so that the model learns where to
    stop. Batches are padded on the right whatever the tokenizer says, which is for generating: a
    text's first token has the first position.
    """

    task = CAUSAL_LM

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that sees the word it is to predict."""
        if _sees_ahead(model):
            raise CheckpointError(
                f"{type(model).__name__}: sees the words after the one that it predicts, so it "
                "would learn to copy them; set is_decoder in its config.json, or prepare it for "
                "masked-lm"
            )

    def read(self, table: Table, columns: ColumnNames, encoding: Encoding) -> ContinuedText:
        """Read rows or blocks."""
        sequences = read_sequences(table, columns, encoding, end=encoding.tokenizer.eos_token_id)
        refuse_empty(table, columns.first, sequences, [len(ids) - 1 for ids in sequences.ids])
        encoded = sequences.pack(encoding, padding_side="right")
        encoded = replace(
            encoded,
            columns={**encoded.columns, "labels": sequences.ids},
            fill={**encoded.fill, "labels": IGNORED},
        )
        return ContinuedText(encoded, sequences.origins)


@torch.no_grad()
def _sees_ahead(model: PreTrainedModel) -> bool:
    """Tell whether a token's logits depend on the token after it, by trying it out.

    An encoder with a head for language models (BertLMHeadModel) is causal only if its
    configuration says so, under a name that is not the same in all architectures.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=device)
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].float()
    model.train(training)
    spread = float(logits.std()) or 1.0
    return float((logits[0] - logits[1]).abs().max()) > _NOISE * spread


#: Differences of rounding between two rows of a batch, in standard deviations of the logits.
_NOISE = 1e-3
