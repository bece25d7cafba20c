"""Decisions that differ, in words: what each side decides, where, and on which text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.decisions import DATA_BATCH, Flip

#: Tokens of a text that are shown; the rest is counted.
SHOWN_TOKENS = 128

Role = Literal["", "place", "reference", "candidate"]


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: The part.
        role: What happens there: the decision is about this token ("place"), or this token is what
            a side decided for; "" for the text between.
    """

    text: str
    role: Role = ""


@dataclass(frozen=True)
class Text:
    """One sequence of an input.

    Attributes:
        title: Which of the row's sequences, "" where it has one.
        pieces: The text; empty where there is no tokenizer.
        ids: The token ids.
        before: Tokens that are left out before it.
        after: Tokens that are left out after it.
    """

    title: str
    pieces: tuple[Piece, ...]
    ids: tuple[int, ...]
    before: int
    after: int


@dataclass(frozen=True)
class FlipFacts:
    """A flip in words.

    Attributes:
        flip: The flip.
        place: What was decided about, "" where the row has one decision.
        reference: What the reference decides.
        candidate: What the candidate decides.
        texts: The row's sequences of tokens.
    """

    flip: Flip
    place: str
    reference: str
    candidate: str
    texts: tuple[Text, ...]


def _nested(values: list[Any]) -> list[list[Any]]:
    """Return a row as a list of sequences: one, one a choice, or none."""
    return values if values and isinstance(values[0], list) else [values] if values else []


def _sequences(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Return a row's sequences of token ids, without the padding at their end."""
    sequences = _nested(inputs.get("input_ids", []))
    masks = _nested(inputs.get("attention_mask", [])) or [[1] * len(ids) for ids in sequences]
    return [
        ids[: max((place + 1 for place, real in enumerate(mask) if real), default=len(ids))]
        for ids, mask in zip(sequences, masks, strict=True)
    ]


class FlipReader:
    """Says flips in words, with the names of the labels and the texts of the tokens."""

    def __init__(
        self,
        *,
        task: str | None,
        labels: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        """Start reading.

        Args:
            task: Name of the task.
            labels: Names of its labels, in the order of the outputs.
            tokenizer: What made the ids of texts; None leaves ids as they are.
        """
        self._task = task
        self._labels = labels
        self._tokenizer = tokenizer

    def read(self, output: OutputDifference, *, generated: bool = False) -> tuple[FlipFacts, ...]:
        """Return an output's flips in words: those on the user's own data first.

        Args:
            output: The output.
            generated: Whether its decisions are the tokens that are generated one by one.
        """
        flips = sorted(output.flip_examples, key=lambda flip: flip.batch != DATA_BATCH)
        return tuple(self._read(flip, generated) for flip in flips)

    def _read(self, flip: Flip, generated: bool) -> FlipFacts:
        sequences = _sequences(flip.inputs)
        titles = [f"choice {i}" for i in range(len(sequences))] if len(sequences) > 1 else [""]
        marks = {} if generated or len(sequences) != 1 else self._marks(flip)
        return FlipFacts(
            flip=flip,
            place=self._place(flip, generated),
            reference=self._decided(flip, flip.reference),
            candidate=self._decided(flip, flip.candidate),
            texts=tuple(
                self._text(title, ids, marks) for title, ids in zip(titles, sequences, strict=False)
            ),
        )

    def _marks(self, flip: Flip) -> dict[int, Role]:
        """Return the tokens that the decision is about, or that were decided for."""
        if self._task == "question-answering":
            return {flip.reference: "reference", flip.candidate: "candidate"}
        if flip.index and self._task != "multi-label":
            return {flip.index[0]: "place"}
        return {}

    def _place(self, flip: Flip, generated: bool) -> str:
        if not flip.index:
            return ""
        if self._task == "multi-label":
            return self._label(flip.index[0])
        if generated:
            return f"generated token {flip.index[0]}"
        return f"token {flip.index[0]}"

    def _decided(self, flip: Flip, chosen: int) -> str:
        if self._task == "multi-label":
            return "yes" if chosen else "no"
        if self._task == "multiple-choice":
            return f"choice {chosen}"
        if self._task == "question-answering":
            (ids,) = _sequences(flip.inputs)
            return f"token {chosen}, “{self._token(ids[chosen])}”"
        if self._task in ("masked-lm", "causal-lm"):
            return self._token(chosen)
        return self._label(chosen)

    def _label(self, index: int) -> str:
        return self._labels[index] if index < len(self._labels) else f"label {index}"

    def _token(self, token: int) -> str:
        text = self._decode([token])
        return text if text.strip() else f"token id {token}"

    def _decode(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None or not ids:
            return ""
        return str(self._tokenizer.decode(list(ids)))

    def _text(self, title: str, ids: Sequence[int], marks: Mapping[int, Role]) -> Text:
        """Return a sequence with its marks, cut around the first of them where it is long."""
        start = 0
        if len(ids) > SHOWN_TOKENS:
            wanted = min(marks, default=0) - SHOWN_TOKENS // 2
            start = max(0, min(wanted, len(ids) - SHOWN_TOKENS))
        stop = min(len(ids), start + SHOWN_TOKENS)
        pieces: list[Piece] = []
        done = start
        for position in sorted(p for p in marks if start <= p < stop):
            pieces.append(Piece(self._decode(ids[done:position])))
            pieces.append(Piece(self._token(ids[position]), marks[position]))
            done = position + 1
        pieces.append(Piece(self._decode(ids[done:stop])))
        return Text(
            title=title,
            pieces=() if self._tokenizer is None else tuple(p for p in pieces if p.text),
            ids=tuple(ids[start:stop]),
            before=start,
            after=len(ids) - stop,
        )
