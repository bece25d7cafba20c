import math
from typing import Any

import numpy as np
import pytest
import torch
from datasets_setup import encoding, read, table

from mixout_export.errors import DataError

TASK = "multi-label"
NAMES = ("person", "animal", "a place")


def targets(*cells: Any, labels: tuple[str, ...] = NAMES) -> list[list[float]]:
    rows = table(*({"text": "the dog", "labels": cell} for cell in cells))
    batch = read(TASK, rows, encoding(*labels)).collate(range(len(cells)))
    assert batch["labels"].dtype == torch.float32
    return batch["labels"].tolist()


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("person|a place", "animal", ""), [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        (("person, a place", "animal,", "2"), [[1, 0, 1], [0, 1, 0], [0, 0, 1]]),
        ((["person", "a place"], ["animal"], []), [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        (([0, 2], [1], []), [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        (([1, 0, 1], [0, 1, 0], [0, 0, 0]), [[1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        (([1.0, 0.0, 1.0], [True, False, False]), [[1, 0, 1], [1, 0, 0]]),
        (("1,0,1", "0,0,0"), [[1, 0, 1], [0, 0, 0]]),
        (("person", 1, "0|2"), [[1, 0, 0], [0, 1, 0], [1, 0, 1]]),
        (([2, 2],), [[0, 0, 1]]),
    ],
)
def test_one_column(cells: Any, expected: Any) -> None:
    assert targets(*cells) == expected


def test_a_name_with_a_comma_stays_whole_where_it_is_the_cell() -> None:
    assert targets("red, green", "blue", labels=("red, green", "blue")) == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    "values", [(1, 0, 1), ("1", "0", "1"), (True, False, True), ("True", "false", "TRUE")]
)
def test_columns_with_the_labels_names(values: tuple[Any, ...]) -> None:
    row = {"text": "a dog", "Person": values[0], "animal": values[1], "a place": values[2]}
    made = read(TASK, table(row), encoding(*NAMES))
    assert made.collate([0])["labels"].tolist() == [[1, 0, 1]]


def test_columns_in_the_order_in_which_they_are_named() -> None:
    row = {"text": "a dog", "z": 1, "y": 0, "x": 0}
    made = read(TASK, table(row), encoding("LABEL_0", "LABEL_1", "LABEL_2"), label="x, y, z")
    assert made.collate([0])["labels"].tolist() == [[0, 0, 1]]


def test_one_label_in_one_column() -> None:
    rows = table({"text": "a", "toxic": "1"}, {"text": "b", "toxic": "0"})
    assert read(TASK, rows, encoding("toxic")).collate([0, 1])["labels"].tolist() == [[1], [0]]


@pytest.mark.parametrize(
    ("rows", "named", "parts"),
    [
        (
            ({"text": "a", "labels": "person"}, {"text": "b", "labels": "animal|king"}),
            {},
            ("'king'", "row 2 (line 3)", "3 labels"),
        ),
        (({"text": "a", "labels": None},), {}, ("no value in row 1 (line 2)", "empty list")),
        (({"text": "a", "labels": [3]},), {}, ("label 3",)),
        (
            ({"text": "a", "person": 1, "animal": 2, "a place": 0},),
            {},
            ("'animal' holds 2 in row 1", "0 or 1"),
        ),
        (
            ({"text": "a", "person": 1, "animal": None, "a place": 0},),
            {},
            ("'animal' holds None", "0 or 1"),
        ),
        (({"text": "a", "x": 1, "y": 0},), {"label": "x,y"}, ("2 columns", "3 labels")),
        (({"text": "a", "x": 1},), {"label": "x,y"}, ("no column 'y'", "--label-column")),
        (({"text": "a", "x": 1},), {}, ("--label-column",)),
    ],
)
def test_labels_that_do_not_fit(rows: Any, named: dict[str, str], parts: tuple[str, ...]) -> None:
    with pytest.raises(DataError) as caught:
        read(TASK, table(*rows), encoding(*NAMES), **named)
    for part in ("data.jsonl", *parts):
        assert part in str(caught.value)


def test_metrics_against_their_definition() -> None:
    rng = np.random.default_rng(0)
    cells = [[name for name in NAMES if rng.random() < 0.5] for _ in range(30)]
    rows = table(*({"text": "a", "labels": cell} for cell in cells))
    made = read(TASK, rows, encoding(*NAMES))
    logits = torch.from_numpy(rng.normal(size=(30, 3)).astype(np.float32))
    scores = made.metrics(made.predict(range(30), {"logits": logits}))
    predicted, right = logits.numpy() > 0, made.collate(range(30))["labels"].numpy() > 0

    def f1(guess: Any, gold: Any) -> float:
        return float(2 * (guess & gold).sum() / (guess.sum() + gold.sum()))

    assert scores == pytest.approx(
        {
            "micro_f1": f1(predicted, right),
            "macro_f1": np.mean([f1(predicted[:, i], right[:, i]) for i in range(3)]),
            "accuracy": np.mean([(p == r).all() for p, r in zip(predicted, right, strict=True)]),
        }
    )


def test_degenerate_metrics() -> None:
    made = read(TASK, table({"text": "a", "labels": []}), encoding(*NAMES))
    none = made.metrics([np.full(3, -1.0, np.float32)])
    assert none == {"micro_f1": 0.0, "macro_f1": 0.0, "accuracy": 1.0}
    failed = made.metrics([np.array([1.0, np.nan, 0.0], np.float32)])
    assert all(math.isnan(value) for value in failed.values())


def test_a_table_without_labels() -> None:
    made = read(TASK, table({"text": "a"}), encoding(*NAMES), labeled=False)
    assert not made.labeled
    assert "labels" not in made.collate([0])
