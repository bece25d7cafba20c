import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import make_tokenizer
from datasets_setup import encoding, read, table

from mixout_export.data.readers.question_answering import Guess, best_spans
from mixout_export.errors import ArgumentError, CheckpointError, DataError

TASK = "question-answering"
CONTEXT = "the dog sees the good cat in the old house and the bird runs"


def row(answer: str | None, question: str = "who sees", context: str = CONTEXT) -> dict[str, Any]:
    found = [] if answer is None else [answer]
    starts = [context.index(text) for text in found]
    return {
        "question": question,
        "context": context,
        "answers": {"text": found, "answer_start": starts},
    }


def covered(made: Any, window: Any) -> str:
    return str(made.contexts[window.row][window.offsets[0, 0] : window.offsets[-1, 1]])


def test_a_short_context_is_one_window_with_the_answers_tokens() -> None:
    made = read(TASK, table(row("good cat"), row(None)))
    batch = made.collate([0, 1])
    tokens = make_tokenizer().convert_ids_to_tokens(batch["input_ids"][0])
    first, last = int(batch["start_positions"][0]), int(batch["end_positions"][0])
    assert tokens[first : last + 1] == ["good", "cat"]
    assert batch["token_type_ids"][0, first] == 1
    # No answer: the first token.
    assert (int(batch["start_positions"][1]), int(batch["end_positions"][1])) == (0, 0)
    assert "labels" not in batch


@pytest.mark.parametrize(("max_length", "stride"), [(12, 2), (12, 0), (12, 6), (9, 3), (64, 5)])
def test_windows_cover_the_context_and_overlap_as_told(max_length: int, stride: int) -> None:
    made = read(TASK, table(row("bird")), encoding(max_length=max_length, doc_stride=stride))
    assert max(made.lengths) <= max_length
    starts = [window.offsets[:, 0].tolist() for window in made.windows]
    assert sorted(set(itertools.chain(*starts))) == [
        place for place in range(len(CONTEXT)) if place == 0 or CONTEXT[place - 1] == " "
    ]
    for first, second in itertools.pairwise(starts):
        assert first[len(first) - stride :] == second[:stride]
        assert len(set(first) & set(second)) == stride


def test_an_answer_is_a_target_only_where_it_is_whole() -> None:
    made = read(TASK, table(row("good cat")), encoding(max_length=9, doc_stride=2))
    assert len(made) > 3
    whole = 0
    batch = made.collate(range(len(made)))
    for index, window in enumerate(made.windows):
        tokens = make_tokenizer().convert_ids_to_tokens(batch["input_ids"][index])
        first, last = int(batch["start_positions"][index]), int(batch["end_positions"][index])
        if "good cat" in covered(made, window):
            assert tokens[first : last + 1] == ["good", "cat"]
            whole += 1
        else:
            assert (first, last) == (0, 0)
    assert whole >= 1


def test_a_question_with_little_room_still_gets_its_windows() -> None:
    """Windows that shared more than fits would never end; those of other rows stay."""
    long = row("bird", question="who sees the dog in the old house")
    made = read(TASK, table(long, row("bird")), encoding(max_length=14, doc_stride=5))
    assert [window.row for window in made.windows] == sorted(window.row for window in made.windows)
    for number in (0, 1):
        windows = [window for window in made.windows if window.row == number]
        assert windows[-1].offsets[-1, 1] == len(CONTEXT)
        assert any(window.target != (0, 0) for window in windows)


def test_by_default_a_third_is_shared() -> None:
    rows = table(row("bird"))
    ours = read(TASK, rows, encoding(max_length=15))
    theirs = read(TASK, rows, encoding(max_length=15, doc_stride=5))
    assert [len(w.offsets) for w in ours.windows] == [len(w.offsets) for w in theirs.windows]


def test_a_subword_answer_is_found() -> None:
    made = read(TASK, table(row("yz", context="the xyz sees")))
    batch = made.collate([0])
    first, last = int(batch["start_positions"][0]), int(batch["end_positions"][0])
    assert make_tokenizer().convert_ids_to_tokens(batch["input_ids"][0, first : last + 1]) == [
        "##y",
        "##z",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_best_span_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, width = 4, 50
    start, end = (torch.from_numpy(rng.normal(size=(rows, width))) for _ in "12")
    inside = torch.zeros(rows, width, dtype=torch.bool)
    for line in range(rows):
        inside[line, 3 + line : 45 - line] = True
    score, first, last = best_spans(start, end, inside)
    for line in range(rows):
        spans = [
            (float(start[line, i] + end[line, j]), i, j)
            for i in range(width)
            for j in range(i, min(i + 30, width))
            if inside[line, i] and inside[line, j]
        ]
        assert max(spans) == (float(score[line]), int(first[line]), int(last[line]))


def test_of_equal_spans_the_shortest_and_then_the_first_wins() -> None:
    zeros = torch.zeros(1, 6)
    inside = torch.tensor([[False, False, True, True, True, False]])
    assert [int(value) for value in best_spans(zeros, zeros, inside)] == [0, 2, 2]
    score, _, _ = best_spans(zeros, zeros, torch.zeros(1, 6, dtype=torch.bool))
    assert float(score) == -math.inf


def outputs_for(made: Any, indices: list[int], *, null: float = -9.0) -> dict[str, torch.Tensor]:
    """Logits that are right about every window: high at its target, `null` at its first token."""
    batch = made.collate(indices)
    shape = batch["input_ids"].shape
    made_logits = {}
    for name in ("start", "end"):
        logits = torch.full(shape, -5.0)
        places = batch[f"{name}_positions"]
        starts = torch.from_numpy(made.encoded.starts(indices))
        logits[torch.arange(len(indices)), starts] = null
        logits[torch.arange(len(indices)), places] = 4.0
        made_logits[f"{name}_logits"] = logits
    return made_logits


@pytest.mark.parametrize("side", ["right", "left"])
def test_right_logits_give_the_right_answers_over_windows(side: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    rows = table(row("good cat"), row("bird"), row("the dog", context="the dog"))
    made = read(TASK, rows, encoding(max_length=11, doc_stride=2, tokenizer=tokenizer))
    assert len(made) > 6
    order = list(range(len(made)))[::-1]
    predictions: list[Any] = [None] * len(made)
    for start in range(0, len(order), 4):
        indices = order[start : start + 4]
        found = made.predict(indices, outputs_for(made, indices))
        for index, guess in zip(indices, found, strict=True):
            predictions[index] = guess
    assert made.texts(predictions, may_be_none=False) == ["good cat", "bird", "the dog"]
    assert made.metrics(predictions) == {"f1": 1.0, "exact_match": 1.0}


def test_no_answer_where_the_table_has_such_questions_and_its_score_is_higher() -> None:
    made = read(TASK, table(row("dog"), row(None)))
    guesses = [Guess(3.0, 1.0, 4, 7), Guess(2.0, 5.0, 4, 7)]
    assert made.metrics(guesses) == {"f1": 1.0, "exact_match": 1.0}
    assert made.texts(guesses, may_be_none=True) == ["dog", ""]
    assert made.texts(guesses, may_be_none=False) == ["dog", "dog"]
    always = read(TASK, table(row("dog"), row("dog")))
    assert always.metrics(guesses) == {"f1": 1.0, "exact_match": 1.0}


def test_the_score_of_no_answer_is_the_lowest_of_the_windows() -> None:
    made = read(TASK, table(row(None)), encoding(max_length=16, doc_stride=0))
    assert len(made) == 2
    guesses = [Guess(2.0, 9.0, 4, 7), Guess(3.0, 2.5, 8, 12)]
    assert made.texts(guesses, may_be_none=True) == [CONTEXT[8:12]]


def test_logits_that_are_not_numbers_make_every_metric_nan() -> None:
    made = read(TASK, table(row("dog"), row("bird")))
    outputs = outputs_for(made, [0, 1])
    outputs["start_logits"][1, 6] = math.nan
    scores = made.metrics(made.predict([0, 1], outputs))
    assert all(math.isnan(value) for value in scores.values())


def test_usual_names_and_two_columns() -> None:
    given = {"query": "who", "passage": CONTEXT, "answer_text": "dog", "answer_start": 4}
    made = read(TASK, table(given))
    assert made.windows[0].target is not None
    renamed = {"q": "who", "c": CONTEXT, "t": "dog", "s": 4}
    made = read(TASK, table(renamed), text="q", text_pair="c", label="t,s")
    assert made.answers[0][0].text == "dog"
    made = read(TASK, table({"question": "who", "context": CONTEXT}), labeled=False)
    assert not made.labeled
    assert "start_positions" not in made.collate([0])


@pytest.mark.parametrize(
    ("given", "named", "kind", "message"),
    [
        ({"question": "who", "context": "a"}, {}, DataError, "neither a column 'answers' nor"),
        ({"question": "who"}, {}, DataError, "--text-pair-column"),
        (row("dog"), {"text": "context"}, DataError, "is both the question and the context"),
        (row("dog"), {"label": "a,b,c"}, DataError, "no column 'a'"),
        (row("dog"), {"label": "question,context,answers"}, ArgumentError, "3 columns"),
        (row("dog", question="who " * 20), {}, DataError, "20 tokens in row 1 (line 2)"),
        ({**row("dog"), "context": ""}, {}, DataError, "'context' has no value"),
    ],
)
def test_data_that_do_not_fit(
    given: Any, named: dict[str, str], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind) as caught:
        read(TASK, table(given), encoding(max_length=20), **named)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stride_that_is_no_less_than_the_length() -> None:
    with pytest.raises(ArgumentError, match="doc-stride: got 64, expected less than"):
        read(TASK, table(row("dog")), encoding(doc_stride=64))


def test_a_tokenizer_that_does_not_tell_where_its_tokens_lie() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(CheckpointError, match="Slow: is a slow tokenizer"):
        read(TASK, table(row("dog")), encoding(tokenizer=Slow()))
