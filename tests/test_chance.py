"""The metrics of a model that answers the same whatever it reads."""

from pathlib import Path
from typing import Any

import pytest
from datasets_setup import encoding, read, table

from mixout_export.data.tables import read_table


def chance(task: str, *rows: dict[str, Any], labels: tuple[str, ...] = ()) -> dict[str, float]:
    return read(task, table(*rows), encoding(*labels)).chance()


def texts(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": "the dog", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "accuracy", "f1", "macro"),
    [
        ((1, 1, 1, 0), 3 / 4, 6 / 7, 3 / 7),  # precision 3/4, recall 1
        ((0, 0, 0, 1), 3 / 4, 0.0, 3 / 7),
        (
            (0, 1, 0, 1),
            1 / 2,
            2 / 3,
            1 / 3,
        ),  # of two equally good constants, the one with the better F1
    ],
)
def test_two_labels(labels: tuple[int, ...], accuracy: float, f1: float, macro: float) -> None:
    found = chance("text-classification", *texts(*labels), labels=("no", "yes"))
    expected = {"accuracy": accuracy, "f1": f1, "matthews": 0.0, "macro_f1": macro}
    assert found == pytest.approx(expected)


def test_three_labels_take_the_mean_f1_of_those_that_occur() -> None:
    found = chance("text-classification", *texts(2, 2, 0, 2), labels=("a", "b", "c"))
    mean = (6 / 7 + 0) / 2
    expected = {"accuracy": 3 / 4, "f1": mean, "matthews": 0.0, "macro_f1": mean}
    assert found == pytest.approx(expected)


def test_numbers_are_predicted_by_their_mean() -> None:
    found = chance("regression", *texts(1.0, 2.0, 6.0))
    assert found == pytest.approx({"pearson": 0.0, "spearman": 0.0, "mse": 14 / 3})


def test_several_labels_take_those_of_most_rows() -> None:
    rows = texts(["a"], ["a", "b"], ["a", "c"], [])
    found = chance("multi-label", *rows, labels=("a", "b", "c"))
    # "a" everywhere: 3 of 4 predictions are right, and 3 of 5 labels found
    expected = {"micro_f1": 2 * 3 / (4 + 5), "macro_f1": (6 / 7) / 3, "accuracy": 1 / 4}
    assert found == pytest.approx(expected)


def test_words_take_the_most_frequent_tag() -> None:
    rows = [
        {"tokens": ["the", "dog", "sleeps"], "tags": ["O", "B-X", "O"]},
        {"tokens": ["the", "cat"], "tags": ["O", "B-X"]},
    ]
    found = chance("token-classification", *rows, labels=("O", "B-X"))
    assert found == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 3 / 5}


def test_choices_take_the_place_that_is_right_most_often() -> None:
    rows = [
        {"sent1": "the dog", "ending0": "sees", "ending1": "sleeps", "label": label}
        for label in (1, 0, 1)
    ]
    assert chance("multiple-choice", *rows) == {"accuracy": 2 / 3}


def test_questions_have_no_answer() -> None:
    def row(*answers: str) -> dict[str, Any]:
        starts = ["the dog sleeps".index(text) for text in answers]
        found = {"text": list(answers), "answer_start": starts}
        return {"question": "the cat", "context": "the dog sleeps", "answers": found}

    assert chance("question-answering", row("dog"), row("dog")) == {"f1": 0.0, "exact_match": 0.0}
    third = chance("question-answering", row("dog"), row(), row("sleeps"))
    assert third == pytest.approx({"f1": 1 / 3, "exact_match": 1 / 3})


def test_language_models_have_none() -> None:
    assert chance("causal-lm", {"text": "the dog sleeps"}) == {}


def test_without_labels_there_is_none() -> None:
    assert read("text-classification", table({"text": "a"}), labeled=False).chance() == {}


def test_mrpc_in_figures(shared_data: Path) -> None:
    """Which metric a threshold belongs to matters: accuracy 68.4, but F1 81.2."""
    dev = read_table(shared_data / "glue" / "MRPC" / "dev.tsv")
    found = read("text-classification", dev, encoding("no", "yes")).chance()
    assert found == pytest.approx(
        {"accuracy": 279 / 408, "f1": 0.812, "matthews": 0, "macro_f1": 0.406}, abs=5e-4
    )
