"""Runs in one process share encoded data, and nothing else changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from task_data import task_data
from training_runs import TrainingGround, same_weights, sentences, write_tsv

import mixout_export.stages.train.data as data_module
from mixout_export.errors import DataError
from mixout_export.stages.train import DataOptions, SharedData, train_checkpoint
from mixout_export.training.options import TrainOptions

OPTIONS: dict[str, Any] = {"max_steps": 1, "device": "cpu", "lr": 1e-3, "warmup_ratio": 0.0}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


class Runs:
    """Starts runs of one step that share their data, and counts the files that are read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path, prepared: Path) -> None:
        self.root, self.prepared, self.shared = root, prepared, SharedData(size=2)
        self.read: list[str] = []
        self.count = 0
        original = data_module.read_table

        def counted(path: Path, **options: Any) -> Any:
            self.read.append(path.name)
            return original(path, **options)

        monkeypatch.setattr(data_module, "read_table", counted)

    def reads(self, data: DataOptions, prepared: Path | None = None, **options: Any) -> int:
        """Return how many files a run reads."""
        before = len(self.read)
        self.count += 1
        settings = TrainOptions(**{**OPTIONS, **options})
        out = self.root / f"out-{self.count}"
        train_checkpoint(prepared or self.prepared, out, data, settings, shared=self.shared)
        return len(self.read) - before


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ground: TrainingGround) -> Runs:
    return Runs(monkeypatch, tmp_path, ground.prepared())


def test_a_second_run_reads_nothing_and_ends_with_the_same_bits(
    runs: Runs, ground: TrainingGround, tmp_path: Path
) -> None:
    data = ground.data()
    assert runs.reads(data, seed=1) == 2
    assert runs.reads(data, seed=2) == 0
    settings = TrainOptions(**OPTIONS, seed=2)
    train_checkpoint(runs.prepared, tmp_path / "alone", data, settings)
    assert same_weights(tmp_path / "out-2", tmp_path / "alone")
    for name in ("README.md", "metrics.jsonl", "curves.png"):
        assert (tmp_path / "out-2" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()


def test_other_prepared_checkpoints_share_if_they_read_texts_alike(
    runs: Runs, ground: TrainingGround
) -> None:
    data = ground.data()
    assert runs.reads(data) == 2
    assert runs.reads(data, ground.prepared(p=0.2, head="none"), lr=1e-2, epochs=1) == 0
    assert runs.reads(data, ground.prepared(labels=("no", "yes"))) == 2


def test_whatever_encoding_depends_on_is_read_anew(
    runs: Runs, ground: TrainingGround, tmp_path: Path
) -> None:
    train = write_tsv(tmp_path / "train.tsv", ("sentence", "label"), sentences(40, seed=0))
    data = DataOptions(train, ground.data().eval_file)
    assert runs.reads(data) == 2
    assert runs.reads(data, max_length=6) == 2
    assert runs.reads(data, examples=30) == 2
    assert runs.reads(data, examples=30, examples_seed=1) == 2
    assert runs.reads(replace(data, text_column="sentence"), examples=30, examples_seed=1) == 2
    write_tsv(train, ("sentence", "label"), sentences(40, seed=9))
    assert runs.reads(data, examples=30, examples_seed=1) == 2
    assert runs.reads(data, examples=30, examples_seed=1) == 0
    assert runs.reads(data) == 2  # it was forgotten, because two data sets are kept


def test_another_tokenizer_reads_anew(runs: Runs, ground: TrainingGround, tiny: Any) -> None:
    data = ground.data()
    other = ground.prepared(head="mixout")
    assert runs.reads(data) == 2
    assert runs.reads(data, other) == 0
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace('"sleeps"', '"slept"'))
    assert runs.reads(data, other) == 2


def test_hidden_words_depend_on_the_seed(
    runs: Runs, ground: TrainingGround, tmp_path: Path
) -> None:
    data, prepared = task_data(tmp_path, "masked-lm", 24, 8), ground.prepared(task="masked-lm")
    assert [runs.reads(data, prepared, seed=seed) for seed in (1, 2, 2)] == [2, 2, 0]
    train_checkpoint(
        prepared,
        tmp_path / "alone",
        data,
        TrainOptions(**OPTIONS, seed=2),
    )
    assert same_weights(tmp_path / "out-3", tmp_path / "alone")
    assert not same_weights(tmp_path / "out-1", tmp_path / "alone")


def test_a_missing_file_is_reported_as_without(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        runs.reads(DataOptions(tmp_path / "none.tsv"))
