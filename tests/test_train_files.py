"""`train` reads several files, saved data sets and files with bad rows."""

from dataclasses import replace
from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from datasets import Dataset
from training_runs import TrainingGround, same_weights, sentences, write_tsv

from mixout_export.errors import ArgumentError, DataError
from mixout_export.stages.train import DataOptions, recorded_options

ROWS = sentences(24, seed=3)
HEADER = ("sentence", "label")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_tsv(tmp_path / "whole.tsv", HEADER, ROWS)


def test_several_files_are_trained_on_as_one(
    tmp_path: Path, ground: TrainingGround, whole: Path
) -> None:
    parts = (
        write_tsv(tmp_path / "one.tsv", HEADER, ROWS[:16]),
        write_tsv(tmp_path / "two.tsv", HEADER, ROWS[16:]),
    )
    ground.run(tmp_path / "a", data=DataOptions(whole), max_steps=2)
    ground.run(tmp_path / "b", data=DataOptions(parts), max_steps=2)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    card = (tmp_path / "b" / "README.md").read_text("utf-8")
    assert "one.tsv + two.tsv" in card
    assert "| training examples | 24 |" in card
    manifest = (tmp_path / "b" / "manifest.json").read_text("utf-8")
    assert '"one.tsv"' in manifest
    assert '"two.tsv"' in manifest


def test_several_files_are_recorded_for_resume(tmp_path: Path, ground: TrainingGround) -> None:
    parts = (
        write_tsv(tmp_path / "one.tsv", HEADER, ROWS[:16]),
        write_tsv(tmp_path / "two.tsv", HEADER, ROWS[16:]),
    )
    with pytest.raises(Exception, match="stopped after step 1"):
        ground.run(tmp_path / "a", data=DataOptions(parts), max_steps=2, must_stop=lambda: True)
    assert recorded_options(tmp_path / "a", {})["train_file"] == parts


def test_a_saved_data_set_gives_the_same_weights(
    tmp_path: Path, ground: TrainingGround, whole: Path
) -> None:
    columns = {name: [row[place] for row in ROWS] for place, name in enumerate(HEADER)}
    Dataset.from_dict(columns).save_to_disk(tmp_path / "saved")
    ground.run(tmp_path / "a", data=DataOptions(whole), max_steps=1)
    ground.run(tmp_path / "b", data=DataOptions(tmp_path / "saved"), max_steps=1)
    assert same_weights(tmp_path / "a", tmp_path / "b")


def bad_file(folder: Path) -> Path:
    """Write five bad rows of three kinds between good ones."""
    lines = [f"{text}\t{label}" for text, label in ROWS]
    lines[20:20] = ["no label\t", "\t1", "one\ttwo\tthree", "unknown\t7"]
    lines[3:3] = ["unknown\tmaybe"]
    path = folder / "bad.tsv"
    path.write_text("\n".join(["\t".join(HEADER), *lines]) + "\n", encoding="utf-8")
    return path


def test_bad_rows_are_skipped_if_allowed(
    tmp_path: Path, ground: TrainingGround, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = DataOptions(bad_file(tmp_path), skip_bad_rows=5)
    ground.run(tmp_path / "a", data=data, max_steps=2)
    ground.run(tmp_path / "b", data=DataOptions(whole), max_steps=2)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert "24, 5 rows of the files were skipped" in (tmp_path / "a" / "README.md").read_text()
    (said,) = [r.getMessage() for r in caplog.records if "skipped" in r.getMessage()]
    assert "skipped 5 rows" in said
    assert "row 4 (line 5) has the unknown label 'maybe'" in said


def test_all_bad_rows_are_listed_with_their_count(tmp_path: Path, ground: TrainingGround) -> None:
    for limit in (0, 4):
        data = replace(DataOptions(bad_file(tmp_path)), skip_bad_rows=limit)
        with pytest.raises(DataError) as caught:
            ground.run(tmp_path / "a", data=data, max_steps=1)
        said = str(caught.value)
        assert said.startswith("5 rows cannot be read: ")
        for line, problem in (
            (5, "has the unknown label 'maybe'"),
            (23, "has no value in column 'label'"),
            (24, "has no value in column 'sentence'"),
            (25, "has 3 fields, expected 2"),
            (26, "has the unknown label '7'"),
        ):
            assert f"(line {line}) {problem}" in said
        assert said.endswith("give --skip-bad-rows 5")
        assert not (tmp_path / "a").exists()


def test_a_file_of_bad_rows_alone_is_refused(tmp_path: Path, ground: TrainingGround) -> None:
    path = write_tsv(tmp_path / "d.tsv", HEADER, [("a", "x"), ("b", "y")])
    with pytest.raises(DataError, match="'x' in row 1"):
        ground.run(tmp_path / "a", data=DataOptions(path, skip_bad_rows=9), max_steps=1)
    with pytest.raises(ArgumentError, match="skip-bad-rows"):
        DataOptions(path, skip_bad_rows=-1)
