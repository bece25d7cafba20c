"""Data sets of the hub, with a loader that needs no network."""

import logging
import os
import subprocess
import sys
import warnings
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, are_progress_bars_disabled, enable_progress_bars
from datasets.exceptions import DatasetNotFoundError

from mixout_export.data import hub
from mixout_export.data.hub import read_hub_dataset
from mixout_export.errors import DataError

ROWS = {"sentence": ["NA", "None"], "label": [1, 0]}


def _offer(
    monkeypatch: pytest.MonkeyPatch, answers: dict[tuple[str, str | None], Any]
) -> list[tuple[str, str | None]]:
    """Let the loader answer as given; anything else does not exist. Returns what it is asked."""
    asked: list[tuple[str, str | None]] = []

    def load(path: str, configuration: str | None = None) -> DatasetDict:
        asked.append((path, configuration))
        logging.getLogger("datasets").warning("a report of datasets")
        logging.getLogger("huggingface_hub").warning("a report of the hub")
        warnings.warn("a warning", stacklevel=1)
        answer = answers.get((path, configuration), DatasetNotFoundError(f"no {path}\nsecond line"))
        if isinstance(answer, Exception):
            raise answer
        return DatasetDict({name: Dataset.from_dict(rows) for name, rows in answer.items()})

    monkeypatch.setattr(hub, "load_dataset", load)
    return asked


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("imdb", ("imdb", None)),
        ("stanfordnlp/imdb", ("stanfordnlp/imdb", None)),
        ("nyu-mll/glue:cola", ("nyu-mll/glue", "cola")),
        ("glue:cola", ("glue", "cola")),
        ("glue/cola", ("glue", "cola")),
    ],
)
def test_splits_become_tables(
    monkeypatch: pytest.MonkeyPatch, name: str, key: tuple[str, str | None]
) -> None:
    other = {"sentence": ["x"], "label": [1]}
    _offer(monkeypatch, {key: {"train": ROWS, "test": other, "validation": other}})
    train, evaluation = read_hub_dataset(name)
    assert (train.columns, train.rows, train.lines) == (ROWS, 2, None)
    assert train.name == f"{name}[train]"
    assert train.where(1) == "row 2"
    assert evaluation is not None
    assert evaluation.columns == other


def test_validation_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    _offer(monkeypatch, {("a", None): {"train": ROWS, "test": ROWS}})
    assert read_hub_dataset("a")[1] is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"test": ROWS}, "a: has the splits test, expected one named train"),
        ({"train": {"sentence": []}}, "a[train]: has no rows"),
        (ConnectionError("Couldn't reach 'a'"), "a: the data set cannot be loaded (Couldn't reach"),
        (ValueError("Config name is missing.\nPick one"), "(Config name is missing); check the"),
        (RuntimeError("Dataset scripts are no longer supported"), "(Dataset scripts are no longer"),
        (DatasetNotFoundError("no a"), "a: the data set cannot be loaded (no a)"),
        (OSError(), "a: the data set cannot be loaded (OSError)"),
    ],
)
def test_failures_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, answer: Any, expected: str
) -> None:
    _offer(monkeypatch, {("a", None): answer})
    with pytest.raises(DataError) as caught:
        read_hub_dataset("a")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("a", [("a", None)]),
        ("a/b", [("a/b", None), ("a", "b")]),
        ("a/b:c", [("a/b", "c")]),
        ("a/b/c", [("a/b/c", None)]),
    ],
)
def test_only_a_name_with_one_slash_is_tried_as_a_configuration(
    monkeypatch: pytest.MonkeyPatch, name: str, asked: list[tuple[str, str | None]]
) -> None:
    calls = _offer(monkeypatch, {})
    with pytest.raises(DataError):
        read_hub_dataset(name)
    assert calls == asked


@pytest.mark.filterwarnings("error")
def test_the_loader_is_silenced_and_then_as_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    for logger in loggers:
        monkeypatch.setattr(logger, "propagate", True)
        logger.setLevel(logging.WARNING)
    enable_progress_bars()
    before = [(logger.level, len(logger.filters)) for logger in loggers]
    _offer(monkeypatch, {("a", None): {"train": ROWS}})
    read_hub_dataset("a")
    assert caplog.records == []
    assert [(logger.level, len(logger.filters)) for logger in loggers] == before
    assert not are_progress_bars_disabled()


def test_offline_leaves_nothing_on_the_terminal() -> None:
    code = (
        "from mixout_export.errors import DataError\n"
        "from mixout_export.data.hub import read_hub_dataset\n"
        "try:\n    read_hub_dataset('no-such/data-set')\n"
        "except DataError as error:\n    assert 'cannot be loaded' in str(error)\n"
        "else:\n    raise SystemExit(9)\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")
