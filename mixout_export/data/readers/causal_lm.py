"""Reads tables for causal language modeling."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

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
from mixout_export.tasks.causal_lm import CAUSAL_LM
from mixout_export.tasks.masked_lm import MASKED_LM


@dataclass(frozen=True)
class ContinuedText(RunningText):
    """Sequences in which every token but the first is predicted from those before it."""

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Number of tokens to predict, shape (examples,)."""
        return self.lengths - 1

    def shifted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's logits with the token after it."""
        return logits[:, :-1], labels[:, 1:]


class CausalLM(TextReader):
    """Reads texts.

    A text ends with the tokenizer's end token, if there is one, so that the model learns where to
    stop. Batches are padded on the right, so that a text's first token has position 0. The side
    that the tokenizer names is meant for generation.
    """

    task = CAUSAL_LM

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that sees the token that it predicts."""
        if _sees_ahead(model):
            raise CheckpointError(
                f"{type(model).__name__}: sees the tokens that it predicts, so it would learn to "
                f"copy them; set is_decoder in its config.json, or prepare it for {MASKED_LM.name}"
            )

    def read(self, table: Table, columns: ColumnNames, encoding: Encoding) -> ContinuedText:
        """Read rows or blocks of text."""
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
    """Return whether a token's logits depend on the token after it, by running the model.

    An encoder with a language model head (BertLMHeadModel) is causal only if its configuration
    says so, and the name of that option depends on the architecture.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=device)
    training = model.training
    model.eval()  # type: ignore[no-untyped-call]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0].float()
    model.train(training)
    spread = float(logits.std()) or 1.0
    return float((logits[0] - logits[1]).abs().max()) > _NOISE * spread


#: Rounding differences between two rows of a batch, in standard deviations of the logits.
_NOISE = 1e-3
