"""`train --resume` on a complete run: the same settings do nothing, others are named."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import Program
from training_runs import TrainingGround, sentences, write_tsv

from mixout_export.checkpoint.base import BaseOptions
from mixout_export.errors import ArgumentError
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import TrainResult

OPTIONS: dict[str, Any] = {"max_steps": 1, "batch_size": 8, "save_every": 1}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


@pytest.fixture(scope="module")
def out(ground: TrainingGround) -> Path:
    """A complete run."""
    out = ground.root / "out"
    ground.run(out, data=ground.data(16, 8), **OPTIONS)
    return out


def again(ground: TrainingGround, out: Path, **changes: Any) -> TrainResult:
    return ground.run(out, resume=True, **{"data": ground.data(16, 8), **OPTIONS, **changes})


@pytest.mark.parametrize("changes", [{}, {"device": "cuda:7"}, {"keep": 5}])
def test_the_same_run_is_left_alone(
    changes: dict[str, Any], ground: TrainingGround, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert again(ground, out, **changes).already_complete
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 5.0}, "--epochs was 3.0, got 5.0"),
        ({"lr": 1e-3, "seed": 2}, "--lr was 0.003, got 0.001; --seed was 0, got 2"),
        ({"p": 0.5}, "--p was not given, got 0.5"),
    ],
)
def test_other_options_are_named_with_what_to_do(
    changes: dict[str, Any], said: str, ground: TrainingGround, out: Path
) -> None:
    with pytest.raises(ArgumentError, match=said) as caught:
        again(ground, out, **changes)
    assert f"run train {out} NEW" in str(caught.value)


def test_other_data_are_named(ground: TrainingGround, out: Path, tmp_path: Path) -> None:
    other = write_tsv(tmp_path / "new.tsv", ("sentence", "label"), sentences(9, seed=5))
    data = replace(ground.data(16, 8), eval_file=other)
    with pytest.raises(
        ArgumentError, match=r"train-16\.tsv, dev-8\.tsv, and .*new\.tsv is another"
    ):
        again(ground, out, data=data)
    with pytest.raises(ArgumentError, match="--text-column was not given, got label"):
        again(ground, out, data=replace(ground.data(16, 8), text_column="label"))


def test_other_weights_are_named(ground: TrainingGround, out: Path) -> None:
    with pytest.raises(ArgumentError, match="it began with other weights than those of"):
        again(ground, out, prepared=ground.prepared("distilbert"))


def test_what_is_gone_is_not_compared_and_named(
    ground: TrainingGround, out: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = replace(ground.data(16, 8), train_file=tmp_path / "gone.tsv")
    with caplog.at_level(logging.WARNING, "mixout_export"):
        assert again(ground, out, data=data, prepared=tmp_path / "nowhere").already_complete
    for path in ("gone.tsv", "nowhere"):
        assert f"was not compared with {tmp_path / path}" in caplog.text


def test_a_copy_of_the_data_is_the_same(ground: TrainingGround, out: Path, tmp_path: Path) -> None:
    train = ground.data(16, 8).train_file
    assert isinstance(train, Path)
    moved = Path(shutil.copy(train, tmp_path / "moved.tsv"))
    data = replace(ground.data(16, 8), train_file=moved)
    assert again(ground, out, data=data).already_complete


def test_the_command_line_takes_the_options_that_are_not_given_from_the_record(
    ground: TrainingGround, out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = Program(capfd)
    run = program("train", ground.prepared(), out, "--resume").done()
    assert "1 step already complete" in run.out
    program("train", ground.prepared(), out, "--resume", "--epochs", 9).failed(2, "--epochs was")


def test_a_second_round_says_what_its_anchors_are(
    ground: TrainingGround, out: Path, tmp_path: Path
) -> None:
    collapse_checkpoint(out, tmp_path / "collapsed")
    for base, is_finetuned in ((ground.base(), False), (tmp_path / "collapsed", True)):
        options = PrepareOptions(base=BaseOptions(task="text-classification"))
        result = prepare_checkpoint(str(base), tmp_path / f"{is_finetuned}", options)
        found = any("the anchors are the finetuned weights" in note for note in result.notes)
        assert found == is_finetuned
