"""What a task decides from an output, and how a report words a decision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

#: "argmax": the largest value along the last axis decides. "sign": each value decides for itself.
Rule = Literal["argmax", "sign"]

#: Why a report marks a token: the decision is about it, or one side decided for it.
Role = Literal["", "place", "reference", "candidate"]


class Words(Protocol):
    """Turns indices into the words that a report shows."""

    def label(self, index: int) -> str:
        """Return the name of a label."""

    def token(self, token_id: int) -> str:
        """Return the text of a token of the vocabulary."""


@dataclass(frozen=True)
class Decision:
    """A decision for one of the labels.

    Attributes:
        rule: How an output becomes a decision.
    """

    rule: Rule = "argmax"

    def answer(self, chosen: int, ids: Sequence[int], words: Words) -> str:
        """Return what was decided.

        Args:
            chosen: Index of the largest value, or 1 for a positive value under the rule "sign".
            ids: Token ids of the input.
            words: Gives the words.
        """
        del ids  # other decisions need them
        return words.label(chosen)

    def place(self, index: Sequence[int], words: Words) -> str:
        """Return what the decision is about; "" if the input has a single decision.

        Args:
            index: Index of the decision among those of its input.
            words: Gives the words.
        """
        del words  # other decisions need them
        return f"token {index[0]}" if index else ""

    def marks(self, index: Sequence[int], reference: int, candidate: int) -> dict[int, Role]:
        """Return the positions of the input's tokens to mark.

        Args:
            index: Index of the decision among those of its input.
            reference: What the reference decides.
            candidate: What the candidate decides.
        """
        del reference, candidate
        return {index[0]: "place"} if index else {}


@dataclass(frozen=True)
class YesOrNo(Decision):
    """A yes or no for each label."""

    rule: Rule = "sign"

    def answer(self, chosen: int, ids: Sequence[int], words: Words) -> str:
        """Return "yes" or "no"."""
        return "yes" if chosen else "no"

    def place(self, index: Sequence[int], words: Words) -> str:
        """Return the label."""
        return words.label(index[0]) if index else ""

    def marks(self, index: Sequence[int], reference: int, candidate: int) -> dict[int, Role]:
        """Mark nothing: the decision is about the whole input."""
        return {}


class Choice(Decision):
    """A decision for one of several texts."""

    def answer(self, chosen: int, ids: Sequence[int], words: Words) -> str:
        """Return the number of the text."""
        return f"choice {chosen}"


class Position(Decision):
    """A decision for one of the input's tokens."""

    def answer(self, chosen: int, ids: Sequence[int], words: Words) -> str:
        """Return the token's position and text."""
        return f"token {chosen}, “{words.token(ids[chosen])}”"

    def marks(self, index: Sequence[int], reference: int, candidate: int) -> dict[int, Role]:
        """Mark both sides' tokens."""
        return {reference: "reference", candidate: "candidate"}


class Token(Decision):
    """A decision for a token of the vocabulary."""

    def answer(self, chosen: int, ids: Sequence[int], words: Words) -> str:
        """Return the token's text."""
        return words.token(chosen)


#: A label, a yes or no for each label, a text, a token of the input, a token of the vocabulary.
LABEL, YES_OR_NO, CHOICE, POSITION, TOKEN = Decision(), YesOrNo(), Choice(), Position(), Token()
