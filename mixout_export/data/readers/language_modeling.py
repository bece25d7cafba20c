"""Reads tables of texts for causal and masked language models."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.data.columns import SINGLES, ColumnNames, find_first
from mixout_export.data.encoding import IGNORED
from mixout_export.data.examples import Examples
from mixout_export.data.labels import list_rows, text_values
from mixout_export.data.reader import Reader
from mixout_export.data.table import Table
from mixout_export.data.texts import EncodedTexts, TextEncoding
from mixout_export.errors import ArgumentError, CheckpointError, RowError
from mixout_export.tasks import Task
from mixout_export.tasks.causal_lm import CAUSAL_LM
from mixout_export.tasks.masked_lm import MASKED_LM

#: Share of a sequence's tokens that are predicted. Of these, the shares that are replaced by the
#: mask and by a random token; the rest stay unchanged (Devlin et al., 2019, section 3.1).
_CHOSEN, _MASKED, _REPLACED = 0.15, 0.8, 0.1
#: Last numbers of the seeds, which make these draws independent of each other and of the batches.
_TRAINING, _EVALUATION = 1, 2
#: Rounding differences between two rows of a batch, in standard deviations of the logits.
_NOISE = 1e-3


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

    encoded: EncodedTexts
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

    def constant_predictions(self) -> None:
        """Return None: a pretrained model starts far above any model that ignores the text."""
        return

    def metrics(self, predictions: Sequence[Surprise]) -> dict[str, float]:
        """Return the mean loss of a token and its exponential, the perplexity."""
        loss = sum(one.loss for one in predictions) / sum(one.tokens for one in predictions)
        try:
            return {"loss": loss, "perplexity": math.exp(loss)}
        except OverflowError:
            return {"loss": loss, "perplexity": math.inf}


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
        first: Number of the first example, if they are a part of a file.
    """

    places: Sequence[NDArray[np.int64]]
    mask_token_id: int
    vocabulary: int
    seed: int
    first: int = 0

    @cached_property
    def targets(self) -> NDArray[np.int64]:
        """Number of tokens to predict, shape (examples,)."""
        return np.array([_hidden_count(len(places)) for places in self.places], np.int64)

    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return a padded batch with tokens hidden, and those tokens as labels."""
        batch = self.encoded.collate(indices)
        ids = batch["input_ids"].numpy()  # the same memory
        labels = np.full_like(ids, IGNORED)
        starts = self.encoded.starts(indices)
        for line, label, start, index in zip(ids, labels, starts, indices, strict=True):
            number = self.first + index
            seed = (0, 0, number, _EVALUATION)
            if epoch is not None:
                seed = (self.seed, epoch, number, _TRAINING)
            chosen, inputs = self._hide(line[start:], self.places[index], seed)
            label[start + chosen] = line[start + chosen]
            line[start + chosen] = inputs
        return {**batch, "labels": torch.from_numpy(labels)}

    def _hide(
        self, ids: NDArray[np.int64], places: NDArray[np.int64], seed: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the positions of the hidden tokens, and the ids that replace them."""
        rng = np.random.default_rng(seed)
        chosen = rng.permutation(places)[: _hidden_count(len(places))]
        fate = rng.random(len(chosen))
        anything = rng.integers(0, self.vocabulary, len(chosen))
        shown = np.where(fate < _MASKED + _REPLACED, anything, ids[chosen])
        return chosen, np.where(fate < _MASKED, self.mask_token_id, shown)

    def shifted(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return both unchanged: a token is predicted at its own position."""
        return logits, labels


def _hidden_count(tokens: int) -> int:
    """Return how many of some tokens are hidden: 15 %, at least one."""
    return max(1, round(_CHOSEN * tokens)) if tokens else 0


class TextReader(Reader[TextEncoding]):
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
        kind, option = "the text", "--text-column"
        return ColumnNames(
            find_first(table, (), SINGLES, kind=kind, option=option, named=named.text)
        )


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

    def read(self, table: Table, columns: ColumnNames, encoding: TextEncoding) -> ContinuedText:
        """Read rows or blocks of text."""
        sequences = _read_sequences(
            table, columns.first, encoding, end=encoding.tokenizer.eos_token_id
        )
        _refuse_empty(table, columns.first, sequences, [len(ids) - 1 for ids in sequences.ids])
        encoded = encoding.pack(sequences.columns(), cut=sequences.cut)
        encoded = encoded.with_token_labels(sequences.ids)
        return ContinuedText(replace(encoded, padding_side="right"), sequences.origins)


class MaskedLM(TextReader):
    """Reads texts, whose tokens are then hidden."""

    task = MASKED_LM
    draws: ClassVar[bool] = True

    def read(self, table: Table, columns: ColumnNames, encoding: TextEncoding) -> MaskedText:
        """Read rows or blocks of text."""
        mask = encoding.tokenizer.mask_token_id
        if mask is None:
            raise CheckpointError(
                f"{type(encoding.tokenizer).__name__}: has no mask token, which masked-lm needs; "
                "prepare it for causal-lm, or use the tokenizer of a model that has one"
            )
        sequences = _read_sequences(table, columns.first, encoding, end=None)
        places = [np.flatnonzero(~special) for special in sequences.special]
        _refuse_empty(table, columns.first, sequences, [len(place) for place in places])
        vocabulary = min(len(encoding.tokenizer), encoding.interface.vocabulary_size)
        encoded = encoding.pack(sequences.columns(), cut=sequences.cut)
        return MaskedText(
            encoded, sequences.origins, places, mask, vocabulary, encoding.seed, table.first
        )


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


@dataclass(frozen=True)
class _Sequences:
    """Token ids of rows or blocks of text.

    Attributes:
        ids: Ids of each sequence.
        special: For each id, whether the tokenizer added it.
        origins: Row of the table in which each begins, shape (sequences,).
        cut: Number of each sequence that was cut → the tokens that it had before.
    """

    ids: Sequence[NDArray[np.int64]]
    special: Sequence[NDArray[np.bool_]]
    origins: NDArray[np.int64]
    cut: Mapping[int, int] = field(default_factory=dict)

    def columns(self) -> dict[str, Sequence[NDArray[np.int64]]]:
        """Return all inputs that a model may take."""
        return {
            "input_ids": self.ids,
            "attention_mask": [np.ones_like(ids) for ids in self.ids],
            "token_type_ids": [np.zeros_like(ids) for ids in self.ids],
        }


def _read_sequences(
    table: Table, column: str, encoding: TextEncoding, *, end: int | None
) -> _Sequences:
    """Tokenize each row, or join the rows and cut them into blocks.

    The id `end` is added to each text that lacks it, unless it is None.
    """
    texts = text_values(table, column)
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
        cut = encoding.find_cut(tokens["input_ids"], texts)
        return _Sequences(ids, special, np.arange(len(ids)), cut)
    return _blocks(ids, special, encoding.max_length)


def _blocks(
    ids: Sequence[NDArray[np.int64]], special: Sequence[NDArray[np.bool_]], length: int
) -> _Sequences:
    """Join texts and cut them into blocks. The last block may be shorter, down to two tokens."""
    joined, mask = np.concatenate(ids), np.concatenate(special)
    row_of = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
    starts = [start for start in range(0, len(joined), length) if start + 1 < len(joined)]
    return _Sequences(
        [joined[start : start + length] for start in starts],
        [mask[start : start + length] for start in starts],
        row_of[starts],
    )


def _refuse_empty(table: Table, column: str, sequences: _Sequences, counts: Sequence[int]) -> None:
    """Refuse sequences without a token to predict. `counts` are the numbers of such tokens."""
    empty = [int(row) for row, n in zip(sequences.origins, counts, strict=True) if n < 1]
    if empty or not counts:
        raise RowError(
            f"{table.name}: column {column!r} holds text without a token to predict in "
            f"{list_rows(table, empty)}; remove those rows",
            dict.fromkeys(empty or range(table.rows), "has no token to predict"),
        )
