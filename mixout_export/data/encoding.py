"""How the rows of a table become a model's inputs, whatever the rows hold."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from mixout_export.checkpoint.artifact import Artifact, LocalArtifact
from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.plain import PlainCheckpoint
from mixout_export.errors import ArgumentError
from mixout_export.tasks import Task

if TYPE_CHECKING:
    from mixout_export.data.columns import ColumnNames
    from mixout_export.data.examples import Examples
    from mixout_export.data.lengths import CutRows

#: Label that the loss ignores, in PyTorch and transformers.
IGNORED = -100


class EncodedRows(ABC):
    """Rows as the model takes them.

    Attributes:
        labels: int64 class ids or float32 values, shape (examples,) or (examples, labels); None
            if there are none, or if they are one of the inputs.
        cut: Number of each example that was cut → the tokens that it had before.
    """

    labels: NDArray[Any] | None
    cut: Mapping[int, int]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """Length of each example, by which similar ones share a batch, shape (examples,)."""

    @abstractmethod
    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return some examples as a batch: input name → tensor `(batch, …)`.

        What is drawn anew in each epoch depends on its number; None means evaluation.
        """


@dataclass(frozen=True)
class EncodingOptions:
    """What a user asks of an encoding. Each kind of rows uses its own part.

    Attributes:
        max_length: Longest sequence in tokens; None takes that of the model's training, else
            `default_length`, or the model's limit if that is lower.
        default_length: Longest sequence without a request and without a record of the training.
        doc_stride: Tokens that neighboring windows of a long context share; None takes what the
            model's training chose, else a third of the longest sequence.
        pack_sequences: Whether texts are joined and cut into blocks of the longest sequence.
        augment: "standard" changes training images at random in each epoch, "none" does not; None
            is "standard".
        seed: Seed of what is drawn anew in each epoch.
    """

    max_length: int | None = None
    default_length: int = 512
    doc_stride: int | None = None
    pack_sequences: bool = False
    augment: str | None = None
    seed: int = 0


class Encoding(ABC):
    """How rows become a model's inputs, with what its folder has for that: the preprocessor.

    Attributes:
        interface: What the model takes.
        labels: The checkpoint's label names in the order of its outputs.
        max_length: Longest sequence in tokens; None for rows that are no sequences.
        doc_stride: Tokens that neighboring windows of a long context share; None takes a third of
            the longest sequence.
        missing: What a folder without a preprocessor lacks, to follow its name.
        uses: Options, without hyphens at the front, that only some encodings have and this one
            supports: "max-length", "augment", or the option of a column.
    """

    missing: ClassVar[str]
    uses: ClassVar[frozenset[str]]
    interface: ModelInterface
    labels: tuple[str, ...]
    max_length: int | None
    doc_stride: int | None

    @staticmethod
    @abstractmethod
    def preprocessor_of(artifact: Artifact) -> Any:
        """Return the preprocessor of a model; None if the model has none."""

    @staticmethod
    @abstractmethod
    def require_preprocessor(artifact: LocalArtifact) -> Any:
        """Return the preprocessor of a folder.

        Raises:
            CheckpointError: The folder has none.
        """

    @staticmethod
    @abstractmethod
    def settle_for_training(
        folder: PlainCheckpoint, model: PreTrainedModel
    ) -> tuple[Any, ModelInterface]:
        """Load the preprocessor, make model and preprocessor agree, and return what they take.

        Raises:
            CheckpointError: The folder has no preprocessor, or it does not fit the model.
        """

    @staticmethod
    @abstractmethod
    def traits(preprocessor: Any) -> Hashable:
        """Return what an encoding depends on that is not in the preprocessor's files."""

    @classmethod
    def refuse_unused(cls, task: Task, named: "ColumnNames", options: EncodingOptions) -> None:
        """Refuse options and columns that a user gave and that have no effect.

        Raises:
            ArgumentError: There is one.
        """
        given = {
            "max-length": options.max_length,
            "augment": options.augment,
            "text-column": named.text,
            "text-pair-column": named.text_pair,
            "image-column": named.image,
        }
        for name, value in given.items():
            if value is not None and name not in cls.uses:
                raise ArgumentError(f"{name}: has no effect for {task.name}; leave it out")

    @classmethod
    @abstractmethod
    def create(
        cls,
        preprocessor: Any,
        interface: ModelInterface,
        labels: Sequence[str],
        options: EncodingOptions,
        columns: "ColumnNames",
    ) -> Self:
        """Create the encoding of these columns.

        Raises:
            ArgumentError: The model cannot do what the user asks for.
            CheckpointError: The preprocessor does not fit the model.
        """

    def count_cut(self, examples: "Examples", *, rows: int, name: str) -> "CutRows | None":
        """Count which of the table's rows were cut; None for rows that are no sequences.

        Args:
            examples: What was read from the table.
            rows: Number of rows of the table.
            name: The rows in words, for example "rows of dev.csv".
        """
        return None
