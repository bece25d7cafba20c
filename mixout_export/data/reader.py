"""How a task reads a table: which columns, and what becomes of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.data.columns import ColumnNames
from mixout_export.data.encoded import EncodedExamples, Row, encode, fill_values
from mixout_export.data.examples import Examples
from mixout_export.data.tables import Table
from mixout_export.errors import CheckpointError


@dataclass(frozen=True)
class Encoding:
    """How texts become a model's inputs.

    Attributes:
        tokenizer: The checkpoint's tokenizer.
        interface: What the model takes.
        max_length: Longest sequence in tokens.
        labels: The checkpoint's label names in the order of its outputs.
        doc_stride: Tokens that neighbouring windows of a long context share; None takes a third
            of `max_length`.
        pack_sequences: Whether texts are joined and cut into blocks of `max_length`.
        seed: Of what is drawn anew in each epoch.
    """

    tokenizer: PreTrainedTokenizerBase
    interface: ModelInterface
    max_length: int
    labels: tuple[str, ...] = ()
    doc_stride: int | None = None
    pack_sequences: bool = False
    seed: int = 0

    @property
    def fill(self) -> dict[str, int]:
        """What pads each input; the padding id is the model's, which heads and positions use."""
        return fill_values(self.tokenizer, self.interface.pad_token_id)

    def texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> EncodedExamples:
        """Tokenise texts, or pairs of texts, without padding and without labels."""
        return encode(
            self.tokenizer,
            texts,
            pairs,
            None,
            inputs=self.interface.inputs,
            max_length=self.max_length,
            pad_token_id=self.interface.pad_token_id,
        )

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, **options: Any
    ) -> BatchEncoding:
        """Return what the tokenizer makes of texts cut to the longest sequence, without padding.

        Args:
            texts: One text per example.
            pairs: The second texts, None for single texts.
            options: The tokenizer's own.
        """
        settings = {"truncation": True, "max_length": self.max_length, "padding": False, **options}
        seconds = None if pairs is None else list(pairs)
        encoded: BatchEncoding = self.tokenizer(list(texts), seconds, **settings)
        return encoded

    def pack(self, columns: Mapping[str, Sequence[Row]]) -> EncodedExamples:
        """Return those columns that are inputs of the model, without labels."""
        inputs = {name: columns[name] for name in self.interface.inputs if name in columns}
        return EncodedExamples(inputs, None, self.fill, self.tokenizer.padding_side)

    def require_offsets(self, task: str) -> None:
        """Refuse a tokenizer that does not tell where in the text its tokens lie.

        Raises:
            CheckpointError: It is one of the slow ones.
        """
        if not self.tokenizer.is_fast:
            raise CheckpointError(
                f"{type(self.tokenizer).__name__}: does not tell where its tokens lie in the text, "
                f"which {task} needs; convert it to a tokenizer.json"
            )


class Reader(ABC):
    """A task's way to read a table.

    Attributes:
        uses: Which of the settings that only some tasks have are the task's: "doc-stride",
            "pack-sequences" or "choices-column".
    """

    uses: ClassVar[frozenset[str]] = frozenset()

    def check(self, model: PreTrainedModel) -> None:
        """Refuse a model that cannot learn the task, whatever its head is called.

        Raises:
            CheckpointError: It cannot.
        """
        del model  # any will do for most tasks

    @abstractmethod
    def find(
        self,
        table: Table,
        named: ColumnNames,
        labels: Sequence[str],
        *,
        labelled: bool = True,
    ) -> ColumnNames:
        """Find the columns to read: those named, else by their usual names in any case.

        Args:
            table: The data.
            named: Columns that the user named.
            labels: The checkpoint's label names.
            labelled: Whether labels must be there; else the column may stay None.

        Raises:
            ArgumentError: A column is named that the task does not read.
            DataError: A column is missing, or several may be meant.
        """

    @abstractmethod
    def read(self, table: Table, columns: ColumnNames, encoding: Encoding) -> Examples:
        """Read, check and encode a table.

        Args:
            table: The data.
            columns: From `find`; without a label column the examples have no labels.
            encoding: How texts become inputs.

        Raises:
            CheckpointError: The tokenizer lacks what the task needs.
            DataError: A value is missing or does not fit; the message names row and column.
        """
