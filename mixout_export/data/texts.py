"""From texts to token ids, and from sequences to padded batches."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.interface import (
    ModelInterface,
    describe_interface,
    is_decoder,
    settle_pad_token,
)
from mixout_export.checkpoint.padding import padding_side, settle_padding
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.checkpoint.tokenizer import trained_doc_stride, trained_max_length
from mixout_export.checkpoint.vocabulary import RESIZE, require_rows, vocabulary_rows
from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoding import IGNORED, EncodedRows, Encoding, EncodingOptions
from mixout_export.data.examples import Examples
from mixout_export.data.lengths import CutRows, choose_max_length
from mixout_export.errors import CheckpointError, DataError

logger = logging.getLogger(__name__)

#: One value for each token of an example, for example its ids.
Row = Sequence[int] | NDArray[Any]


def _pad(rows: Sequence[Row], *, fill: int, side: str) -> NDArray[np.int64]:
    """Pad rows to the longest, shape (examples, longest). Side is "right" or "left"."""
    width = max(1, *(len(row) for row in rows))
    padded = np.full((len(rows), width), fill, np.int64)
    for line, row in zip(padded, rows, strict=True):
        if side == "left":
            line[width - len(row) :] = row
        else:
            line[: len(row)] = row
    return padded


@dataclass(frozen=True)
class EncodedTexts(EncodedRows):
    """Tokenized texts.

    Attributes:
        columns: Input name → one row of integers per example.
        labels: int64 class ids or float32 values, shape (examples,) or (examples, labels); None
            if there are none, or if they are one of the columns.
        fill: Input name → the value of its padding.
        padding_side: "right" or "left".
        cut: Number of each sequence that was cut → the tokens that it had before.
    """

    columns: Mapping[str, Sequence[Row]]
    labels: NDArray[Any] | None
    fill: Mapping[str, int]
    padding_side: str
    cut: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each example, shape (examples,)."""
        return np.array([len(row) for row in next(iter(self.columns.values()))], np.int64)

    def starts(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return the position of each example's first token in a padded batch, shape (batch,)."""
        first = next(iter(self.columns.values()))
        lengths = np.array([len(first[i]) for i in indices])
        starts: NDArray[np.int64] = max(1, lengths.max()) - lengths
        return starts if self.padding_side == "left" else np.zeros_like(lengths)

    def with_token_labels(self, rows: Sequence[Row]) -> "EncodedTexts":
        """Return them with a label for each token; the loss ignores the padding."""
        columns, fill = {**self.columns, "labels": rows}, {**self.fill, "labels": IGNORED}
        return replace(self, columns=columns, fill=fill)

    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return some examples as a batch, padded to the longest.

        Each input is int64, shape (batch, longest). "labels", if there are any, has the shape
        (batch,) or (batch, labels).
        """
        batch = {
            name: torch.from_numpy(
                _pad([rows[i] for i in indices], fill=self.fill[name], side=self.padding_side)
            )
            for name, rows in self.columns.items()
        }
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[list(indices)])
        return batch


def _finds_end(model: PreTrainedModel) -> bool:
    """Return whether a classifier reads the last token that is not padding."""
    return is_decoder(model) and type(model).__name__.endswith("ForSequenceClassification")


@dataclass(frozen=True)
class TextEncoding(Encoding):
    """How texts become a model's inputs.

    Attributes:
        tokenizer: The checkpoint's tokenizer.
        interface: What the model takes.
        max_length: Longest sequence in tokens.
        labels: The checkpoint's label names in the order of its outputs.
        doc_stride: Tokens that neighboring windows of a long context share; None takes a third
            of `max_length`.
        pack_sequences: Whether texts are joined and cut into blocks of `max_length`.
        seed: Seed of what is drawn anew in each epoch.
    """

    missing: ClassVar[str] = "has no tokenizer files"
    uses: ClassVar[frozenset[str]] = frozenset({"max-length", "text-column", "text-pair-column"})

    tokenizer: PreTrainedTokenizerBase
    interface: ModelInterface
    max_length: int
    labels: tuple[str, ...] = ()
    doc_stride: int | None = None
    pack_sequences: bool = False
    seed: int = 0

    @staticmethod
    def preprocessor_of(artifact: Artifact) -> PreTrainedTokenizerBase | None:
        """Return the tokenizer of a model."""
        return artifact.tokenizer

    @staticmethod
    def require_preprocessor(artifact: LocalArtifact) -> PreTrainedTokenizerBase:
        """Return the tokenizer of a folder."""
        return artifact.require_tokenizer()

    @staticmethod
    def settle_for_training(
        folder: PlainCheckpoint, model: PreTrainedModel
    ) -> tuple[PreTrainedTokenizerBase, ModelInterface]:
        """Load the tokenizer, and give it and the model the same padding."""
        tokenizer = folder.require_tokenizer()
        if tokenizer.pad_token is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token  # decoders often have none
        require_rows(folder.path, tokenizer, vocabulary_rows(model))
        settle_pad_token(model, tokenizer)
        interface = describe_interface(model, folder.require_task(), tokenizer)
        if interface.pad_token_id is None and _finds_end(model):
            raise CheckpointError(
                f"{folder.path}: {type(model).__name__} finds the end of a text by its padding, "
                "but the tokenizer has neither a padding token nor one for the end of a text; name "
                "a token of its vocabulary as pad_token in tokenizer_config.json"
            )
        if tokenizer.padding_side == "left":
            interface = settle_padding(model, interface)
            if not interface.left_padding:
                logger.warning(
                    "the tokenizer pads on the left, and the model's answer to a text would then "
                    "depend on the other texts of its batch; texts are padded on the right instead"
                )
        return tokenizer, interface

    @staticmethod
    def traits(preprocessor: PreTrainedTokenizerBase) -> Hashable:
        """Return the tokenizer's padding."""
        return preprocessor.pad_token, preprocessor.padding_side

    @classmethod
    def create(
        cls,
        preprocessor: PreTrainedTokenizerBase,
        interface: ModelInterface,
        labels: Sequence[str],
        options: EncodingOptions,
        columns: ColumnNames,
    ) -> Self:
        """Create the encoding of these columns, with the longest sequence that fits the model."""
        paired = columns.text_pair is not None or columns.choices is not None
        longest = choose_max_length(
            options.max_length,
            interface,
            preprocessor,
            default=options.default_length,
            special=preprocessor.num_special_tokens_to_add(pair=paired),
        )
        stride = options.doc_stride
        if stride is None:
            recorded = trained_doc_stride(preprocessor)
            stride = recorded if recorded is not None and recorded < longest else None
        return cls(
            preprocessor,
            interface,
            longest,
            labels=tuple(labels),
            doc_stride=stride,
            pack_sequences=options.pack_sequences,
            seed=options.seed,
        )

    def count_cut(self, examples: Examples, *, rows: int, name: str) -> CutRows:
        """Count which of the table's rows were cut."""
        return CutRows(
            name,
            len(examples.cut),
            rows,
            max(examples.cut.values(), default=0),
            self.max_length,
            self.interface.sequence_limit,
            trained_max_length(self.tokenizer) == self.max_length,
        )

    def texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> EncodedTexts:
        """Tokenize texts, or pairs of texts, without padding and without labels."""
        tokens = self.tokenize(texts, pairs)
        return self.pack(tokens, cut=self.find_cut(tokens["input_ids"], texts, pairs))

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, **options: Any
    ) -> BatchEncoding:
        """Tokenize texts, or pairs of texts, cut to the longest sequence, without padding.

        The options are the tokenizer's own.
        """
        settings = {"truncation": True, "max_length": self.max_length, "padding": False, **options}
        seconds = None if pairs is None else list(pairs)
        encoded: BatchEncoding = self.tokenizer(list(texts), seconds, **settings)
        return encoded

    def find_cut(
        self, rows: Sequence[Row], texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> dict[int, int]:
        """Return which of the rows that `tokenize` made of texts were cut.

        Only rows of the greatest length can be. They are tokenized once more, whole.

        Returns:
            Number of each such row, from 0 → the tokens that it had before.
        """
        full = [number for number, row in enumerate(rows) if len(row) >= self.max_length]
        if not full:
            return {}
        whole = self.tokenizer(
            [texts[number] for number in full],
            None if pairs is None else [pairs[number] for number in full],
            truncation=False,
            padding=False,
            verbose=False,
        )["input_ids"]
        lengths = zip(full, map(len, whole), strict=True)
        return {number: length for number, length in lengths if length > self.max_length}

    def pack(
        self, columns: Mapping[str, Sequence[Row]], *, cut: Mapping[int, int] | None = None
    ) -> EncodedTexts:
        """Return those columns that are inputs of the model, without labels.

        The padding id is the model's own, which heads and positions use, else the tokenizer's.
        `cut` is the result of `find_cut`; None for rows that lose nothing.
        """
        inputs = {name: columns[name] for name in self.interface.inputs if name in columns}
        self._require_known(inputs.get("input_ids", ()))
        ids = (self.interface.pad_token_id, self.tokenizer.pad_token_id, 0)
        fill = {
            "input_ids": next(value for value in ids if value is not None),
            "attention_mask": 0,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        side = padding_side(self.tokenizer.padding_side, self.interface)
        return EncodedTexts(inputs, None, fill, side, cut or {})

    def _require_known(self, rows: Sequence[Row]) -> None:
        """Refuse ids that the model has no embedding for: its lookup would fail later."""
        size = self.interface.vocabulary_size
        highest = max((int(max(row)) for row in rows if len(row)), default=0)
        if size and highest >= size:
            raise DataError(
                f"the tokenizer gives the id {highest} for "
                f"{self.tokenizer.convert_ids_to_tokens(highest)!r}, but the model has ids below "
                f"{size}; {RESIZE}"
            )

    def require_offsets(self, task: str) -> None:
        """Refuse a slow tokenizer, which does not report where its tokens lie in the text."""
        if not self.tokenizer.is_fast:
            raise CheckpointError(
                f"{type(self.tokenizer).__name__}: is a slow tokenizer, which does not report "
                f"where its tokens lie in the text; {task} needs that, so convert it to a "
                "tokenizer.json"
            )
