"""Reads tables for extractive question answering."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchEncoding

from mixout_export.data.columns import ColumnNames, find_first, require_columns
from mixout_export.data.examples import Examples
from mixout_export.data.labels import list_rows, text_values
from mixout_export.data.reader import Reader
from mixout_export.data.readers.answers import Answer, answer_scores, read_answers
from mixout_export.data.table import Table
from mixout_export.data.texts import EncodedTexts, Row, TextEncoding
from mixout_export.errors import ArgumentError, DataError, RowError
from mixout_export.tasks.question_answering import QUESTION_ANSWERING

_QUESTIONS = ("question", "query")
_CONTEXTS = ("context", "passage", "paragraph", "document")
_ANSWERS, _TEXT_AND_START = "answers", ("answer_text", "answer_start")

#: Longest answer in tokens. This is the usual limit: without it, an answer could reach from one
#: sentence to another one far away.
_LONGEST_ANSWER = 30
#: Rows that are tokenized together. The offsets of a whole data set would fill the memory.
_ROWS = 512


class Guess(NamedTuple):
    """The best span of one window.

    Attributes:
        score: Logit of its start plus logit of its end; -inf if there is no span.
        null: The same for the token that stands for no answer.
        start: Its first character in the context.
        end: The character after its last one.
    """

    score: float
    null: float
    start: int
    end: int


@dataclass(frozen=True)
class Window:
    """A question with a part of its context.

    Attributes:
        row: Row of the table.
        first: Position of the first token of the context.
        offsets: Position of the first character of each token of the context, and of the character
            after its last, shape (tokens, 2).
        null: The token that stands for no answer: the first special one, as in BERT, else 0.
        target: First and last token of the answer; the null token twice if this window holds no
            complete answer; None without labels.
    """

    row: int
    first: int
    offsets: NDArray[np.int32]
    null: int
    target: tuple[int, int] | None

    def characters(self, first: int, last: int) -> tuple[int, int]:
        """Return the characters of a span of tokens; (0, 0) outside of the context."""
        if first < self.first or last >= self.first + len(self.offsets):
            return 0, 0
        return int(self.offsets[first - self.first, 0]), int(self.offsets[last - self.first, 1])


@dataclass(frozen=True)
class Questions(Examples):
    """Questions with windows over their contexts. Each window is an example.

    Attributes:
        windows: The window of each example.
        contexts: The context of each row of the table.
        answers: The correct answers of each row; None without labels.
    """

    encoded: EncodedTexts
    windows: Sequence[Window]
    contexts: Sequence[str]
    answers: Sequence[tuple[Answer, ...]] | None

    @property
    def labeled(self) -> bool:
        """Whether there are answers."""
        return self.answers is not None

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of the table that each window comes from, shape (examples,)."""
        return np.array([window.row for window in self.windows], np.int64)

    def collate(self, indices: Sequence[int], *, epoch: int | None = None) -> dict[str, Tensor]:
        """Return a padded batch, with the answers' first and last tokens if there are answers."""
        batch = self.encoded.collate(indices)
        targets = [self.windows[index].target for index in indices]
        if self.labeled:
            starts = self.encoded.starts(indices)
            places = np.array([target or (0, 0) for target in targets]) + starts[:, None]
            batch["start_positions"] = torch.from_numpy(places[:, 0].copy())
            batch["end_positions"] = torch.from_numpy(places[:, 1].copy())
        return batch

    def predict(self, indices: Sequence[int], outputs: Mapping[str, Tensor]) -> list[Guess]:
        """Return the best span of each window. Its score is NaN if the logits are not numbers."""
        start, end = outputs["start_logits"].float(), outputs["end_logits"].float()
        windows = [self.windows[index] for index in indices]
        begins = self.encoded.starts(indices)
        inside = torch.zeros(start.shape, dtype=torch.bool)
        for line, begin, window in zip(inside, begins, windows, strict=True):
            line[begin + window.first : begin + window.first + len(window.offsets)] = True
        scores, firsts, lasts = (
            value.tolist() for value in best_spans(start, end, inside.to(start.device))
        )
        nulls = torch.from_numpy(begins + np.array([window.null for window in windows]))
        null = (start + end).cpu()[torch.arange(len(windows)), nulls].tolist()
        return [
            Guess(score, none, *window.characters(first - begin, last - begin))
            for window, begin, score, none, first, last in zip(
                windows, begins.tolist(), scores, null, firsts, lasts, strict=True
            )
        ]

    def constant_predictions(self) -> list[Guess]:
        """Return no answer to every question, the only one that fits all contexts."""
        return [Guess(0.0, 1.0, 0, 0)] * len(self)

    def metrics(self, predictions: Sequence[Guess]) -> dict[str, float]:
        """Return F1 and exact match over the questions, each with the best answer of its windows.

        "No answer" is predicted only if the table has questions without an answer, and if its
        score, the lowest of the windows, is above that of the best span.
        """
        answers = self.answers or ()
        if any(np.isnan([guess.score, guess.null]).any() for guess in predictions):
            return dict.fromkeys(QUESTION_ANSWERING.metrics, float("nan"))
        may_be_none = any(not known for known in answers)
        predicted = self.texts(predictions, may_be_none=may_be_none)
        return answer_scores(predicted, [[a.text for a in known] for known in answers])

    def texts(self, predictions: Sequence[Guess], *, may_be_none: bool) -> list[str]:
        """Return the answer to each question from the guesses for its windows; "" for no answer."""
        best = self.best(predictions)
        return [
            ""
            if may_be_none and null > guess.score
            else self.contexts[row][guess.start : guess.end].strip()
            for row, (guess, null) in enumerate(best)
        ]

    def best(self, predictions: Sequence[Guess]) -> list[tuple[Guess, float]]:
        """Return the best guess for each question, and the lowest score of "no answer"."""
        best: dict[int, Guess] = {}
        nulls: dict[int, float] = {}
        for window, guess in zip(self.windows, predictions, strict=True):
            if window.row not in best or guess.score > best[window.row].score:
                best[window.row] = guess
            nulls[window.row] = min(guess.null, nulls.get(window.row, guess.null))
        return [(best[row], nulls[row]) for row in range(len(self.contexts))]


def best_spans(start: Tensor, end: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best span of each row, of at most 30 tokens.

    Among equally good spans, the shortest one wins, then the first one.

    Args:
        start: Logits, shape (rows, tokens).
        end: Logits, shape (rows, tokens).
        inside: Tokens that may be part of an answer, shape (rows, tokens).

    Returns:
        Score, first and last token, each of shape (rows,); the score is -inf if there is no span.
    """
    start, end = (values.masked_fill(~inside, -torch.inf) for values in (start, end))
    best = torch.full_like(start[:, 0], -torch.inf)
    first = torch.zeros(len(start), dtype=torch.long, device=start.device)
    last = first.clone()
    width = start.shape[1]
    for length in range(min(_LONGEST_ANSWER, width)):
        score, place = (start[:, : width - length] + end[:, length:]).max(dim=1)
        better = (score > best) | score.isnan()
        best = torch.where(better, score, best)
        first = torch.where(better, place, first)
        last = torch.where(better, place + length, last)
    return best, first, last


class QuestionAnswering(Reader[TextEncoding]):
    """Reads a question, its context, and answers.

    A long context is cut into windows that overlap. The first token stands for "no answer": it is
    the label of every window without a complete answer.
    """

    uses: ClassVar[frozenset[str]] = frozenset({"doc-stride"})
    splits: ClassVar[bool] = True

    def find(
        self, table: Table, named: ColumnNames, labels: Sequence[str], *, labeled: bool = True
    ) -> ColumnNames:
        """Find the question (the text), the context (the second text) and the answers."""
        text = find_first(
            table, _QUESTIONS, (), kind="questions", option="--text-column", named=named.text
        )
        option = "--text-pair-column"
        pair = find_first(
            table, _CONTEXTS, (), kind="contexts", option=option, named=named.text_pair
        )
        if text == pair:
            raise DataError(
                f"{table.name}: column {text!r} is both the question and the context; choose "
                f"another column with {option}"
            )
        return ColumnNames(text, pair, _find_answers(table, named, labeled=labeled))

    def read(self, table: Table, columns: ColumnNames, encoding: TextEncoding) -> Questions:
        """Read questions, cut contexts into windows, and find the answers' tokens."""
        encoding.require_offsets(QUESTION_ANSWERING.name)
        stride = _stride(encoding)
        questions = text_values(table, columns.first)
        contexts = text_values(table, columns.text_pair or "")
        answers = None if columns.label is None else read_answers(table, columns.label, contexts)
        rooms = _rooms(table, columns.first, questions, encoding)
        made: list[tuple[Window, dict[str, Row]]] = []
        for rows, overlap in _groups(rooms, stride):
            tokens = encoding.tokenize(
                [questions[row] for row in rows],
                [contexts[row] for row in rows],
                truncation="only_second",
                stride=overlap,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for place, sample in enumerate(tokens["overflow_to_sample_mapping"]):
                row = rows[sample]
                known = None if answers is None else answers[row]
                window = _window(tokens, place, row, known, encoding.tokenizer.cls_token_id)
                inputs: dict[str, Row] = {
                    name: np.array(tokens[name][place], np.int32)
                    for name in encoding.interface.inputs
                    if name in tokens
                }
                made.append((window, inputs))
        made.sort(key=lambda pair: pair[0].row)  # stable, so a row's windows keep their order
        encoded = encoding.pack({n: [inputs[n] for _, inputs in made] for n in made[0][1]})
        return Questions(encoded, [window for window, _ in made], contexts, answers)


def _find_answers(table: Table, named: ColumnNames, *, labeled: bool) -> tuple[str, ...] | None:
    if named.label is not None:
        columns = require_columns(table, named.label, "--label-column")
        if len(columns) > 2:
            raise ArgumentError(
                f"label-column: got {len(columns)} columns, expected one in SQuAD's format or two: "
                "the answer's text and the position of its first character"
            )
        return columns
    lower = {name.lower(): name for name in table.columns}
    for names in ((_ANSWERS,), _TEXT_AND_START):
        if all(name in lower for name in names):
            return tuple(lower[name] for name in names)
    if not labeled:
        return None
    raise DataError(
        f"{table.name}: has neither a column 'answers' nor 'answer_text' and 'answer_start'; its "
        f"columns are {', '.join(table.columns)}; choose the answers with --label-column"
    )


def _stride(encoding: TextEncoding) -> int:
    """Return how many tokens neighboring windows share."""
    if encoding.doc_stride is None:
        return encoding.max_length // 3
    if encoding.doc_stride >= encoding.max_length:
        raise ArgumentError(
            f"doc-stride: got {encoding.doc_stride}, expected less than the maximum length of "
            f"{encoding.max_length} tokens; lower it"
        )
    return encoding.doc_stride


def _rooms(
    table: Table, column: str, questions: Sequence[str], encoding: TextEncoding
) -> list[int]:
    """Return how many tokens of context fit next to each question."""
    tokenizer = encoding.tokenizer
    alone = tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
    special = tokenizer.num_special_tokens_to_add(pair=True)
    rooms = [encoding.max_length - special - len(ids) for ids in alone]
    full = [row for row, room in enumerate(rooms) if room < 1]
    if full:
        raise RowError(
            f"{table.name}: column {column!r} holds a question of {len(alone[full[0]])} tokens in "
            f"{list_rows(table, full)}, which leaves no room for its context "
            f"within {encoding.max_length}; raise --max-length or shorten the question",
            {row: f"has a question of {len(alone[row])} tokens" for row in full},
        )
    return rooms


def _groups(rooms: Sequence[int], stride: int) -> Iterator[tuple[list[int], int]]:
    """Yield rows to be tokenized together, and how many tokens their windows share.

    If the shared tokens fill the whole room, windows would never reach the end. They share half
    of the room instead.
    """
    by_overlap: dict[int, list[int]] = {}
    for row, room in enumerate(rooms):
        by_overlap.setdefault(stride if stride < room else room // 2, []).append(row)
    for overlap, rows in by_overlap.items():
        for start in range(0, len(rows), _ROWS):
            yield rows[start : start + _ROWS], overlap


def _window(
    tokens: BatchEncoding,
    place: int,
    row: int,
    answers: tuple[Answer, ...] | None,
    cls_token_id: int | None,
) -> Window:
    ids = tokens["input_ids"][place]
    of_context = [token for token, part in enumerate(tokens.sequence_ids(place)) if part == 1]
    first = of_context[0] if of_context else len(ids)
    offsets = np.array(tokens["offset_mapping"][place][first : first + len(of_context)], np.int32)
    null = ids.index(cls_token_id) if cls_token_id in ids else 0
    window = Window(row, first, offsets.reshape(-1, 2), null, None)
    return window if answers is None else replace(window, target=_target(window, answers))


def _target(window: Window, answers: tuple[Answer, ...]) -> tuple[int, int]:
    """Return the first answer's first and last token, or the null token twice."""
    nothing = (window.null, window.null)
    if not answers or not len(window.offsets):
        return nothing
    start, stop = answers[0].start, answers[0].start + len(answers[0].text)
    if window.offsets[0, 0] > start or window.offsets[-1, 1] < stop:
        return nothing
    first = int(np.searchsorted(window.offsets[:, 1], start, side="right"))
    last = int(np.searchsorted(window.offsets[:, 0], stop, side="left")) - 1
    return (window.first + first, window.first + last) if first <= last else nothing
