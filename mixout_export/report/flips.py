"""Describe decisions that differ: what each side decides, where, and on which text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from mixout_export.data.source_texts import SourceText
from mixout_export.parity.compare import OutputDifference
from mixout_export.parity.decisions import Flip
from mixout_export.report.rows import DataRows
from mixout_export.tasks import known_task
from mixout_export.tasks.decision import LABEL, Role

#: Characters of a text that are shown where a flip has one line.
_LINE = 80

#: Tokens of a sequence that are shown.
SHOWN_TOKENS = 128


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: The part.
        role: "place" if the decision is about this token, "reference" or "candidate" if that side
            chose this token, "" otherwise.
    """

    text: str
    role: Role = ""


@dataclass(frozen=True)
class Text:
    """One sequence of tokens.

    Attributes:
        title: Which of the row's sequences it is; "" if there is only one.
        pieces: The decoded text; empty without a tokenizer.
        ids: The token ids.
        before: Number of tokens that are left out before it.
        after: Number of tokens that are left out after it.
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
        place: The place of the decision in the row; "" if the row has one decision.
        reference: The decision of the reference.
        candidate: The decision of the candidate.
        texts: The row's sequences of tokens.
        where: The row of the user's file; "" for other inputs.
        sources: The texts of that row, as they stand in the file.
    """

    flip: Flip
    place: str
    reference: str
    candidate: str
    texts: tuple[Text, ...]
    where: str = ""
    sources: tuple[SourceText, ...] = ()

    @property
    def sentence(self) -> str:
        """The flip on one line: where, what each side decides, and the beginning of the text."""
        where = self.where or f"row {self.flip.row} of the {self.flip.batch!r} test inputs"
        place = f", {self.place}" if self.place else ""
        own = " / ".join(source.text for source in self.sources)
        text = own or "".join(piece.text for text in self.texts for piece in text.pieces)
        line = " ".join(text.split())
        shown = line[:_LINE] + "…" if len(line) > _LINE else line
        return f"{where}{place}: {self.reference}, then {self.candidate}" + (
            f": {shown}" if shown else ""
        )

    @property
    def has_marks(self) -> bool:
        """Whether single tokens are marked, which the texts of the file do not show."""
        return any(piece.role for text in self.texts for piece in text.pieces)


def _nested(values: list[Any]) -> list[list[Any]]:
    """Return a row as a list of sequences: one, one for each choice, or none."""
    return values if values and isinstance(values[0], list) else [values] if values else []


def _sequences(inputs: Mapping[str, Any]) -> list[list[int]]:
    """Return the sequences of token ids of a row, without padding at their end."""
    sequences = _nested(inputs.get("input_ids", []))
    masks = _nested(inputs.get("attention_mask", [])) or [[1] * len(ids) for ids in sequences]
    return [
        ids[: max((place + 1 for place, real in enumerate(mask) if real), default=len(ids))]
        for ids, mask in zip(sequences, masks, strict=True)
    ]


class FlipReader:
    """Describes flips with the names of labels and the texts of tokens."""

    def __init__(
        self,
        *,
        task: str | None,
        labels: Sequence[str],
        tokenizer: PreTrainedTokenizerBase | None,
        rows: DataRows | None = None,
    ) -> None:
        """Create a reader. Without a tokenizer, it shows ids instead of texts."""
        self._rows = rows
        known = known_task(task)
        self._decision = (known and known.decision) or LABEL
        self._labels = labels
        self._tokenizer = tokenizer

    def read(self, output: OutputDifference, *, generated: bool = False) -> tuple[FlipFacts, ...]:
        """Return the flips of an output in words, those on the user's own data first.

        `generated` says whether its decisions are tokens that are generated one by one.
        """
        return tuple(self._read(flip, generated) for flip in output.flip_examples)

    def _read(self, flip: Flip, generated: bool) -> FlipFacts:
        sequences = _sequences(flip.inputs)
        titles = [f"choice {i}" for i in range(len(sequences))] if len(sequences) > 1 else [""]
        ids = sequences[0] if sequences else []
        decision = self._decision
        marks: dict[int, Role] = {}
        if not generated and len(sequences) == 1:
            marks = decision.marks(flip.index, flip.reference, flip.candidate)
        return FlipFacts(
            flip=flip,
            place=f"generated token {flip.index[0]}"
            if generated and flip.index
            else decision.place(flip.index, self),
            reference=decision.answer(flip.reference, ids, self),
            candidate=decision.answer(flip.candidate, ids, self),
            texts=tuple(
                self._text(title, ids, marks) for title, ids in zip(titles, sequences, strict=False)
            ),
            where="" if self._rows is None else self._rows.where(flip),
            sources=() if self._rows is None else tuple(self._rows.texts(flip)),
        )

    def label(self, index: int) -> str:
        """Return the name of a label, or its number if it has no name."""
        return self._labels[index] if index < len(self._labels) else f"label {index}"

    def token(self, token: int) -> str:
        """Return the text of a token, or its id if the text shows nothing."""
        text = self._decode([token])
        return text if text.strip() else f"token id {token}"

    def _decode(self, ids: Sequence[int]) -> str:
        if self._tokenizer is None or not ids:
            return ""
        return str(self._tokenizer.decode(list(ids)))

    def _text(self, title: str, ids: Sequence[int], marks: Mapping[int, Role]) -> Text:
        """Return a sequence with its marks. A long one is cut around the first mark."""
        start = 0
        if len(ids) > SHOWN_TOKENS:
            wanted = min(marks, default=0) - SHOWN_TOKENS // 2
            start = max(0, min(wanted, len(ids) - SHOWN_TOKENS))
        stop = min(len(ids), start + SHOWN_TOKENS)
        pieces: list[Piece] = []
        done = start
        for position in sorted(p for p in marks if start <= p < stop):
            pieces.append(Piece(self._decode(ids[done:position])))
            pieces.append(Piece(self.token(ids[position]), marks[position]))
            done = position + 1
        pieces.append(Piece(self._decode(ids[done:stop])))
        return Text(
            title=title,
            pieces=() if self._tokenizer is None else tuple(p for p in pieces if p.text),
            ids=tuple(ids[start:stop]),
            before=start,
            after=len(ids) - stop,
        )
