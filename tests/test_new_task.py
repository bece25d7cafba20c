"""A task that one module adds goes through every command without any other change."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from follows_task import FOLLOWS
from huggingface_hub import ModelCard
from test_card_folders import run_code
from test_report_flips import compared
from tiny_models import make_tokenizer
from training_runs import write_tsv

from mixout_export.parity.compare import decision_of
from mixout_export.report.flips import FlipReader
from mixout_export.tasks import TASKS, register


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    register(FOLLOWS)
    yield
    del TASKS[FOLLOWS.name]


@pytest.fixture
def program(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


def sentences(count: int, *, seed: int) -> list[tuple[str, str, str]]:
    """Pairs of which those that sleep follow."""
    rng = np.random.default_rng(seed)
    firsts = rng.choice(["the cat", "a dog", "the bird"], count)
    thens = rng.choice(["sleeps", "sees"], count)
    pairs = zip(firsts, thens, strict=True)
    return [(str(one), str(two), "yes" if two == "sleeps" else "no") for one, two in pairs]


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    files = tmp_path / "train.tsv", tmp_path / "eval.tsv"
    for seed, (file, count) in enumerate(zip(files, (96, 24), strict=True)):
        write_tsv(file, ("first", "then", "order"), sentences(count, seed=seed))
    return files


def test_it_is_prepared_trained_exported_and_verified(
    program: Program, tiny: TinyCheckpoints, data: tuple[Path, Path], tmp_path: Path
) -> None:
    prepared, trained, graph = (tmp_path / name for name in ("prepared", "trained", "onnx"))
    assert program("prepare", tiny.base(), prepared, "--task", "follows").code == 0
    files = ("--train-file", data[0], "--eval-file", data[1])
    fast = ("--lr", "5e-3", "--epochs", "6", "--batch-size", "16", "--device", "cpu")
    result = program("train", prepared, trained, *files, *fast, "--json").json
    assert result["metric"] == "mistakes"
    assert result["metrics"]["mistakes"] == 0.0
    assert program("onnx", trained, graph, "--quiet").code == 0
    verified = program("verify", trained, graph, "--data", data[1], "--json").json
    assert verified["holds"]
    assert verified["metrics"]["share"] == {"reference": 1.0, "candidate": 1.0}

    card = ModelCard.load(trained / "README.md")
    assert card.data.pipeline_tag == "text-ranking"
    assert "mistakes is the number of wrong answers." in card.text
    assert run_code(trained, card.text).startswith("follows: ")
    assert "logits" in run_code(graph, ModelCard.load(graph / "README.md").text)


def test_other_names_are_refused_with_its_name_among_those_there_are(
    program: Program, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    program("prepare", tiny.base(), tmp_path / "out", "--task", "nonesuch").misused("'follows'")


def test_its_metric_is_refused_elsewhere(
    program: Program, tiny: TinyCheckpoints, data: tuple[Path, Path], tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    program("prepare", tiny.base(), prepared, "--task", "follows")
    files = ("--train-file", data[0], "--metric", "accuracy")
    program("train", prepared, tmp_path / "out", *files).failed(2, "mistakes, share for follows")


def test_a_bundle_says_which_library_has_no_class_for_it(
    program: Program, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    prepared, graph = tmp_path / "prepared", tmp_path / "onnx"
    program("prepare", tiny.base(), prepared, "--task", "follows")
    program("onnx", prepared, graph, "--no-verify", "--quiet")
    arguments = (graph, tmp_path / "bundle", "--server", "transformers-js")
    program("bundle", *arguments).failed(2, "transformers.js has no class for the task follows")


def test_a_report_words_its_decisions() -> None:
    output = compared([3.0, 0.0], [0.0, 3.0])
    (flip,) = FlipReader(task="follows", labels=(), tokenizer=make_tokenizer()).read(output)
    assert decision_of("follows", "logits") == "argmax"
    assert (flip.reference, flip.candidate) == ("“sees” follows", "“sees” does not follow")


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'follows' is registered already"):
        register(FOLLOWS)
