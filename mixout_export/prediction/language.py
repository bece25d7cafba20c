"""Answers of language models: the words behind a mask, a text that goes on, and losses."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mixout_export.data.examples import Examples
from mixout_export.data.readers.language_modeling import RunningText, Surprise
from mixout_export.data.table_writer import Column
from mixout_export.prediction.answers import (
    PREDICTED,
    PROBABILITY,
    Answers,
    Part,
    RowAnswer,
    Setting,
)

_LOSS = Column("loss", "number")


class _Losses(Answers):
    """Sums the losses of the rows."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._total = Surprise(0.0, 0)
        self._metrics: dict[str, float] | None = None

    def _add(self, examples: RunningText, surprise: Surprise) -> float:
        """Add a row's loss, and return its mean over the row's tokens."""
        self._total = Surprise(
            self._total.loss + surprise.loss, self._total.tokens + surprise.tokens
        )
        self._metrics = examples.metrics([self._total])
        return surprise.loss / surprise.tokens

    def metrics(self) -> dict[str, float] | None:
        """Return the mean loss of a token and the perplexity."""
        return self._metrics


class _Filled(NamedTuple):
    """The most likely tokens behind the masks of a text, and the probability of all of them."""

    tokens: list[int]
    probability: float


class FilledText(_Losses):
    """The text with the most likely token in place of each mask.

    In a text without a mask, some tokens are hidden as in an evaluation, and it gets a loss.
    """

    columns = (PREDICTED, PROBABILITY, _LOSS)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return cast(PreTrainedTokenizerBase, self.setting.tokenizer)

    def inputs(self, examples: Examples, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch in which only texts without a mask have hidden tokens."""
        batch, plain = examples.collate(indices), examples.encoded.collate(indices)
        masked = self._masks(examples, indices).any(dim=1)
        batch["input_ids"][masked] = plain["input_ids"][masked]
        return batch

    def _masks(self, examples: Examples, indices: Sequence[int]) -> Tensor:
        """Return where the texts themselves have masks, shape (batch, longest)."""
        ids = examples.encoded.collate(indices)["input_ids"]
        found: Tensor = ids == self.tokenizer.mask_token_id
        return found

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return the tokens behind a text's masks, or the loss of a text without masks."""
        found: list[Any] = list(examples.predict(indices, outputs))
        for row, places in enumerate(self._masks(examples, indices)):
            if places.any():
                shares = outputs["logits"][row][places].float().softmax(-1).max(-1)
                found[row] = _Filled(shares.indices.tolist(), float(torch.prod(shares.values)))
        return found

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return the filled texts and the losses."""
        rows = zip(part.texts, predictions, strict=True)
        return [self._row(cast(RunningText, part.examples), *row) for row in rows]

    def _row(self, examples: RunningText, text: str, found: Any) -> RowAnswer:
        if isinstance(found, _Filled):
            for token in found.tokens:
                word = self.setting.token(token).strip()
                text = text.replace(str(self.tokenizer.mask_token), word, 1)
            return RowAnswer((text, found.probability, None), text, found.probability)
        loss = self._add(examples, found)
        return RowAnswer((None, None, loss), f"loss {loss:.3f}", None, None, loss)


class ContinuedText(_Losses):
    """The most likely way in which each text goes on, and the loss of the text itself."""

    columns = (PREDICTED, _LOSS)

    def predict(
        self, examples: Examples, indices: Sequence[int], outputs: Mapping[str, Tensor]
    ) -> list[Any]:
        """Return the loss of each text."""
        return examples.predict(indices, outputs)

    def answer(self, part: Part, predictions: Sequence[Any]) -> list[RowAnswer]:
        """Return how the texts go on, and their losses."""
        generate = self.setting.generate
        texts = [None] * len(part.texts) if generate is None else generate(part.texts)
        made = []
        for text, found in zip(texts, predictions, strict=True):
            loss = self._add(cast(RunningText, part.examples), found)
            said = f"loss {loss:.3f}" if text is None else text
            made.append(RowAnswer((text, loss), said, None, None, loss))
        return made
