"""What a task decides from an output, and how a report words a decision."""

from collections.abc import Callable, Sequence
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


def _label(chosen: int, ids: Sequence[int], words: Words) -> str:
    del ids  # other decisions need them
    return words.label(chosen)


@dataclass(frozen=True)
class Decision:
    """A decision. An input may have several: for each token, or for each label.

    Attributes:
        rule: How an output becomes a decision.
        answer: Words what was decided. It is given the index of the largest value (or 0 or 1 under
            the rule "sign"), the token ids of the input, and what gives the words.
        about: What the index of a decision names, if an input has several decisions.
        marks_answers: Whether the answers are tokens of the input, which a report then marks.
    """

    rule: Rule = "argmax"
    answer: Callable[[int, Sequence[int], Words], str] = _label
    about: Literal["token", "label"] = "token"
    marks_answers: bool = False

    def place(self, index: Sequence[int], words: Words) -> str:
        """Return what a decision is about; "" if the input has a single decision."""
        if not index:
            return ""
        return words.label(index[0]) if self.about == "label" else f"token {index[0]}"

    def marks(self, index: Sequence[int], reference: int, candidate: int) -> dict[int, Role]:
        """Return the positions of the input's tokens to mark, from what both sides decide."""
        if self.marks_answers:
            return {reference: "reference", candidate: "candidate"}
        return {index[0]: "place"} if index and self.about == "token" else {}


#: One of the labels.
LABEL = Decision()
#: Yes or no for each label.
YES_OR_NO = Decision("sign", lambda chosen, *_: "yes" if chosen else "no", about="label")
#: One of several texts.
CHOICE = Decision(answer=lambda chosen, *_: f"choice {chosen}")
#: One of the input's tokens.
POSITION = Decision(
    answer=lambda chosen, ids, words: f"token {chosen}, “{words.token(ids[chosen])}”",
    marks_answers=True,
)
#: A token of the vocabulary.
TOKEN = Decision(answer=lambda chosen, _, words: words.token(chosen))
