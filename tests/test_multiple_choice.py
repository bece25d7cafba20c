import math
from typing import Any

import pytest
import torch
from checkpoints import make_tokenizer
from datasets_setup import INPUTS, read, table

from mixout_export.errors import DataError

TASK = "multiple-choice"
SWAG = {"sent1": "the dog", "sent2": "it", "ending0": "runs", "ending1": "sees a cat", "label": 1}


def texts(made: Any, indices: tuple[int, ...] = (0,)) -> list[list[str]]:
    tokenizer = make_tokenizer()
    return [
        [tokenizer.decode(ids).replace(" [PAD]", "") for ids in group]
        for group in made.collate(indices)["input_ids"]
    ]


def test_swag() -> None:
    made = read(TASK, table(SWAG))
    batch = made.collate([0])
    assert texts(made) == [
        ["[CLS] the dog [SEP] it runs [SEP]", "[CLS] the dog [SEP] it sees a cat [SEP]"]
    ]
    assert {batch[name].shape for name in INPUTS} == {(1, 2, 9)}
    assert batch["labels"].tolist() == [1]
    assert batch["attention_mask"].sum(-1).tolist() == [[7, 9]]
    assert batch["token_type_ids"][0, 1].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert (len(made), made.lengths.tolist(), made.rows.tolist()) == (1, [9], [0])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "who", "choices": ["a dog", "a cat"], "label": 0},
            ["who [SEP] a dog", "who [SEP] a cat"],
        ),
        (
            {"question": "who", "choices": {"text": ["x", "y"], "label": ["A", "B"]}}
            | {"answerKey": "B"},
            ["who [SEP] x", "who [SEP] y"],
        ),
        (
            {"premise": "he", "question": "why", "choice1": "x", "choice2": "y", "label": 0},
            ["he [SEP] why x", "he [SEP] why y"],
        ),
        (
            {"article": "he", "question": "why", "options": ["x", "y"], "answer": "A"},
            ["he [SEP] why x", "he [SEP] why y"],
        ),
        (
            {"ctx": "he", "endings": ["x", "y"], "label": "1"},
            ["he [SEP] x", "he [SEP] y"],
        ),
    ],
    ids=["lists", "ARC", "COPA", "RACE", "HellaSwag"],
)
def test_usual_columns(row: dict[str, Any], expected: list[str]) -> None:
    made = read(TASK, table(row))
    assert texts(made) == [[f"[CLS] {text} [SEP]" for text in expected]]
    assert made.labeled


def test_columns_that_are_named() -> None:
    row = {"q": "who", "b": "is", "x": "a dog", "y": "a cat", "z": "no", "k": "C"}
    made = read(TASK, table(row), text="q", text_pair="b", label="k", choices="x, y,z")
    assert texts(made)[0][2] == "[CLS] who [SEP] is no [SEP]"
    assert made.right.tolist() == [2]
    alone = read(TASK, table(row), text="q", label="k", choices="x,y,z")
    assert texts(alone)[0][2] == "[CLS] who [SEP] no [SEP]"


def test_more_than_ten_numbered_columns_stay_in_their_order() -> None:
    row: dict[str, Any] = {"prompt": "who", "label": 10}
    row |= {f"choice{n}": f"{n}" for n in (10, 2, 1, 0, 9, 3, 4, 5, 6, 7, 8)}
    assert texts(read(TASK, table(row)))[0][10] == "[CLS] who [SEP] 1 ##0 [SEP]"


@pytest.mark.parametrize(
    ("label", "keys", "expected"),
    [
        (1, None, 1),
        ("1", None, 1),
        (1.0, None, 1),
        ("B", None, 1),
        ("b ", None, 1),
        ("2", ["1", "2"], 1),
        (2, ["1", "2"], 1),
    ],
)
def test_labels(label: Any, keys: list[str] | None, expected: int) -> None:
    choices: Any = ["x", "y"] if keys is None else {"text": ["x", "y"], "label": keys}
    rows = table({"question": "who", "choices": choices, "label": label})
    assert read(TASK, rows).right.tolist() == [expected]


@pytest.mark.parametrize(
    ("row", "parts"),
    [
        ({"label": 2}, ("'label' holds 2", "0 to 1 or A to B")),
        ({"label": "C"}, ("holds 'C'", "0 to 1 or A to B")),
        ({"label": -1}, ("holds -1",)),
        ({"label": None}, ("no value",)),
        ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "label": "1"}, ("'1'", "A, B")),
        ({"choices": ["x", "y", "z"]}, ("3 choices", "expected 2 as in the first row")),
        ({"choices": ["x"]}, ("at least two choices",)),
        ({"choices": "x|y"}, ("holds 'x|y'", "--choices-column")),
        ({"choices": ["x", 1]}, ("int 1", "--choices-column")),
        ({"question": ""}, ("'question' has no value",)),
    ],
)
def test_rows_that_do_not_fit(row: dict[str, Any], parts: tuple[str, ...]) -> None:
    good = {"question": "who", "choices": ["x", "y"], "label": 0}
    with pytest.raises(DataError) as caught:
        read(TASK, table(good, {**good, **row}))
    for part in ("data.jsonl", "row 2 (line 3)", *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"question": "who", "label": 0}, "--choices-column"),
        ({"choices": ["x", "y"], "label": 0}, "--text-column"),
        ({"question": "who", "choices": ["x", "y"]}, "--label-column"),
    ],
)
def test_columns_that_are_missing(row: dict[str, Any], part: str) -> None:
    with pytest.raises(DataError, match=part):
        read(TASK, table(row))


def test_metrics() -> None:
    rows = [{"question": "who", "choices": ["x", "y", "z"], "label": label} for label in (0, 1, 2)]
    made = read(TASK, table(*rows))
    logits = torch.tensor([[3.0, 1, 2], [0, 0, 1], [0, 0, 1]])
    predictions = made.predict([0, 1, 2], {"logits": logits})
    assert predictions == [0, 2, 2]
    assert made.metrics(predictions) == {"accuracy": pytest.approx(2 / 3)}
    logits[1, 0] = math.nan
    assert math.isnan(made.metrics(made.predict([0, 1, 2], {"logits": logits}))["accuracy"])


def test_groups_stay_together_in_a_batch() -> None:
    rows = [
        {"question": word, "choices": ["x", "y"], "label": place}
        for place, word in enumerate(("dog", "cat"))
    ]
    made = read(TASK, table(*rows))
    assert texts(made, (1, 0))[0][1] == "[CLS] cat [SEP] y [SEP]"
    assert made.collate([1, 0])["labels"].tolist() == [1, 0]
    assert made.targets.tolist() == [1, 1]


def test_a_table_without_labels() -> None:
    made = read(TASK, table({"question": "who", "choices": ["x", "y"]}), labeled=False)
    assert not made.labeled
    assert set(made.collate([0])) == set(INPUTS)
