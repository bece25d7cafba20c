from typing import Any

import pytest
from datasets_setup import table

from mixout_export.data.readers.answers import (
    Answer,
    answer_scores,
    exact_match,
    normalize_answer,
    read_answers,
    word_f1,
)
from mixout_export.errors import DataError

CONTEXT = "The old dog sees a cat."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Old-Dog!", "olddog"),
        ("an apple a day", "apple day"),
        ("theatre", "theatre"),
        ("A.", ""),
        ("1,000", "1000"),
        ("  Łódź\t\n", "łódź"),
    ],
)
def test_answers_are_compared_as_squad_does(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


def test_scores_of_one_answer() -> None:
    assert exact_match("the Dog.", "dog") == 1.0
    assert exact_match("a dog", "dogs") == 0.0
    assert word_f1("old dog", "the dog") == pytest.approx(2 / 3)
    assert word_f1("dog dog cat", "dog") == pytest.approx(2 * 1 / 4)
    assert word_f1("cat", "dog") == 0.0


def test_no_answer_is_only_like_no_answer() -> None:
    assert (exact_match("", ""), word_f1("", "")) == (1.0, 1.0)
    assert (exact_match("dog", ""), word_f1("dog", "")) == (0.0, 0.0)
    assert word_f1("the", "dog") == 0.0


def test_the_nearest_of_several_answers_counts() -> None:
    scores = answer_scores(["dog", "", "cat"], [["a cat", "old dog"], [], ["the"]])
    # 2/3 and 0; no answer is right; "the" is none once normalized, so "cat" is wrong.
    assert scores == pytest.approx({"f1": (2 / 3 + 1 + 0) / 3, "exact_match": 1 / 3})


@pytest.mark.parametrize(
    "cell",
    [
        {"text": ["dog", "old dog"], "answer_start": [8, 4]},
        [{"text": "dog", "answer_start": 8}, {"text": "old dog", "answer_start": 4}],
        {"text": ["dog", "old dog"], "answer_start": [8.0, "4"]},
    ],
    ids=["columns", "records", "numbers"],
)
def test_squads_formats(cell: Any) -> None:
    found = read_answers(table({"answers": cell}), ["answers"], [CONTEXT])
    assert found == [(Answer("dog", 8), Answer("old dog", 4))]


def test_two_columns_and_questions_without_an_answer() -> None:
    rows = table({"t": "dog", "s": "8"}, {"t": "", "s": ""}, {"t": None, "s": None})
    assert read_answers(rows, ["t", "s"], [CONTEXT] * 3) == [(Answer("dog", 8),), (), ()]
    cells = table({"a": {"text": [], "answer_start": []}}, {"a": []})
    assert read_answers(cells, ["a"], [CONTEXT] * 2) == [(), ()]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"a": {"text": ["cat"], "answer_start": [0]}}, ("'cat'", "character 0", "'The'")),
        ({"a": {"text": ["dog"], "answer_start": [99]}}, ("character 99", "''")),
        ({"a": {"text": ["dog"], "answer_start": []}}, ('"answer_start": [...]',)),
        ({"a": {"text": "dog", "answer_start": 8}}, ('{"text": [...]',)),
        ({"a": {"text": [""], "answer_start": [0]}}, ("with empty lists for no answer",)),
        ({"a": {"text": ["dog"], "answer_start": [-1]}}, ("expected",)),
        ({"a": "{'text': ['dog']}"}, ("holds", "expected")),
        ({"a": None}, ("holds None", "expected")),
    ],
)
def test_cells_that_are_no_answers(row: Any, parts: tuple[str, ...]) -> None:
    good = {"a": {"text": ["dog"], "answer_start": [8]}}
    with pytest.raises(DataError) as caught:
        read_answers(table(good, row), ["a"], [CONTEXT] * 2)
    for part in ("data.jsonl", "'a'", "row 2 (line 3)", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "start", "parts"),
    [
        ("dog", "eight", ("'s' holds 'eight'", "number of its first character")),
        ("dog", "", ("'s' holds ''",)),
        (5, 8, ("'t' holds 5", "expected text")),
        ("cat", 8, ("'t' holds the answer 'cat' at character 8", "'dog'")),
    ],
)
def test_two_columns_that_do_not_fit(text: Any, start: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read_answers(table({"t": text, "s": start}), ["t", "s"], [CONTEXT])
    for part in ("row 1 (line 2)", *parts):
        assert part in str(caught.value)
