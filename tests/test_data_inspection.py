"""`inspect FILE` describes what `train` would read."""

from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from training_runs import TrainingGround

from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.stages.data_inspection import DataInspection, inspect_data


@pytest.fixture
def program(capfd: pytest.CaptureFixture[str]) -> Program:
    return Program(capfd)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [f"the dog number {i},{('ham', 'spam')[i % 4 == 0]}" for i in range(40)]
    rows += [rows[1], "the dog number 2,spam", "one,two,three", ",ham"]
    file = tmp_path / "d.csv"
    file.write_text("\n".join(["text,label", *rows, f"{'dog ' * 200},ham"]) + "\n")
    return file


def test_rows_labels_duplicates_and_lengths_are_counted(path: Path) -> None:
    found = inspect_data(path)
    assert (found.rows, found.columns) == (44, {"text": "text", "label": "label"})
    assert found.labels == {"ham": 33, "spam": 11}
    assert (found.duplicates, found.contradictions) == (2, 1)
    assert (found.cut, found.max_length, found.counted) == (1, 128, False)
    assert found.tokens["longest"] > 200 > found.tokens["95 %"]
    assert found.bad_rows == 2
    assert "row 43 (line 44) has 3 fields" in found.bad
    assert found.batch_size == 8


def test_the_tokenizer_of_a_checkpoint_counts_tokens(
    path: Path, tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints
) -> None:
    prepared = TrainingGround(tmp_path_factory.mktemp("ground"), tiny).prepared()
    tokenizer = open_checkpoint(prepared).tokenizer
    assert tokenizer is not None
    found: DataInspection = inspect_data(path, model=prepared, max_length=8)
    assert found.counted
    assert found.tokens["longest"] == len(tokenizer("dog " * 200)["input_ids"])
    assert found.cut >= 1


def test_the_command_shows_files_and_models_by_what_they_are(
    path: Path, program: Program, tiny: TinyCheckpoints
) -> None:
    run = program("inspect", path).done()
    assert run.out.startswith(f"{path}: 44 rows\n")
    shown = {" ".join(line.split()) for line in run.out.splitlines()}
    assert {"duplicates 2 rows", "suggestion --batch-size 8", "spam 11 25.0%"} <= shown
    assert program("inspect", path, "--json").done().json["kind"] == "data"
    for arguments, said in (
        ((tiny.base(), "--max-length", 9), "--max-length is for data files"),
        ((path, "--plot", "a.png"), "--plot is for mixout checkpoints"),
    ):
        run = program("inspect", *arguments)
        assert run.code == 2
        assert said in run.err
