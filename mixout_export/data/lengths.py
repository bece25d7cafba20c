"""How long sequences may be, and how many rows were cut because they are longer."""

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from mixout_export.checkpoint.interface import ModelInterface
from mixout_export.checkpoint.tokenizer import trained_max_length
from mixout_export.errors import ArgumentError

#: Longest sequence in tokens that `train` reads unless the user asks for another.
TRAINING_LENGTH = 128


def choose_max_length(
    requested: int | None,
    interface: ModelInterface,
    tokenizer: PreTrainedTokenizerBase,
    *,
    default: int,
    special: int = 0,
) -> int:
    """Return the longest sequence in tokens.

    What the user asks for takes precedence. Otherwise texts are read as in the model's training.

    Args:
        requested: What the user asked for; None takes the length that the model was trained with,
            which its tokenizer knows, else `default`, or the model's limit if that is lower.
        interface: Says the model's limit.
        tokenizer: The model's tokenizer.
        default: Length without a request and without a record of the training.
        special: Tokens of each sequence that the tokenizer adds.

    Raises:
        ArgumentError: The model does not take so many tokens, or no room is left for text.
    """
    limit = interface.sequence_limit
    if requested is None:
        wanted = trained_max_length(tokenizer) or default
        return min(wanted, limit or wanted)
    if limit is not None and requested > limit:
        raise ArgumentError(
            f"max-length: got {requested}, but the model takes at most {limit} tokens; lower it"
        )
    if requested <= special:
        raise ArgumentError(
            f"max-length: got {requested}, which leaves no room for text next to the {special} "
            "special tokens; raise it"
        )
    return requested


@dataclass(frozen=True)
class CutRows:
    """How many rows were cut because they have more tokens than a sequence may have.

    Attributes:
        name: The rows in words, for example "rows of dev.csv".
        cut: Number of rows that were cut.
        rows: Number of all rows.
        longest: Tokens of the longest one before it was cut; 0 if none was.
        max_length: Longest sequence in tokens.
        limit: The most tokens that the model takes; None where there is no limit.
        as_trained: Whether the model was trained on sequences of at most `max_length` tokens.
    """

    name: str
    cut: int
    rows: int
    longest: int
    max_length: int
    limit: int | None
    as_trained: bool

    def joined(self, other: "CutRows") -> "CutRows":
        """Return the counts of both, which are parts of one file."""
        return replace(
            self,
            cut=self.cut + other.cut,
            rows=self.rows + other.rows,
            longest=max(self.longest, other.longest),
        )

    @property
    def amount(self) -> str:
        """How many rows were cut, for example "3 of 40 rows of dev.csv"."""
        return f"{self.cut:,} of {self.rows:,} {self.name}"

    @property
    def remedy(self) -> str:
        """How to read more of the rows."""
        if self.limit is None or self.longest <= self.limit:
            return f"to read them whole, give --max-length {self.longest}"
        if self.max_length < self.limit:
            return f"to read more of them, give --max-length {self.limit}, the model's limit"
        return "the model takes no more tokens, so split long texts"


def cut_sentence(*found: CutRows | None) -> str | None:
    """Return a sentence on the rows that were cut; None if there are none.

    Args:
        found: The counts of one or several files, all read with the same length. None is left out.
    """
    there = [each for each in found if each is not None and each.cut]
    if not there:
        return None
    longest = max(there, key=lambda each: each.longest)
    some = " and ".join(each.amount for each in there)
    how = ", as in the model's training" if longest.as_trained else ""
    said = f"{some} have more than {longest.max_length} tokens, so their ends were cut off{how}"
    return f"{said}; the longest has {longest.longest:,}; {longest.remedy}"
