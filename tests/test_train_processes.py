import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TinyCheckpoints
from cli_runs import children
from task_data import task_data
from training_runs import TrainingGround, assert_close, weights

from mixout_export import load_mixout

PROGRAM = Path(__file__).with_name("checked_program.py")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


def train_in_two_processes(*arguments: object) -> dict[str, Any]:
    """Run `train --json` under torchrun and return the one object, though there are two processes.

    If it hangs, the stack of every thread is in the failure.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *(str(PROGRAM), "train", *map(str, arguments), "--device", "cpu", "--json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        out, err = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        for each in [*children(process.pid), process.pid]:
            os.kill(each, signal.SIGABRT)
        out, err = process.communicate()
    assert process.returncode == 0, err
    values: dict[str, Any] = json.loads(out)
    return values


def test_two_processes_are_one_with_twice_the_batch(ground: TrainingGround, tmp_path: Path) -> None:
    """Nothing is random here, and all batches hold 8: DDP's mean is that of two batches."""
    data, prepared = ground.data(96), ground.plain()
    result = train_in_two_processes(
        *(prepared, tmp_path / "two"),
        *("--train-file", data.train_file, "--eval-file", data.eval_file),
        *("--epochs", 2, "--batch-size", 8, "--lr", 3e-3),
        *("--max-grad-norm", 0, "--decay-toward", "pretrained"),
        *("--reinit-layers", 1, "--layer-lr-decay", 0.7, "--freeze", "word_embeddings"),
        *("--class-weights", "1,5", "--label-smoothing", 0.1),
    )
    assert result["steps"] == 12
    assert [path.name for path in tmp_path.iterdir()] == ["two"]
    load_mixout(tmp_path / "two")
    alone = ground.run(
        tmp_path / "one",
        prepared=prepared,
        epochs=2,
        batch_size=8,
        gradient_accumulation=2,
        max_grad_norm=0.0,
        decay_toward="pretrained",
        reinit_layers=1,
        layer_lr_decay=0.7,
        freeze="word_embeddings",
        class_weights="1,5",
        label_smoothing=0.1,
    )
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=2e-5)
    assert result["chosen_step"] == alone.chosen_step
    assert result["metrics"] == pytest.approx(alone.metrics, rel=1e-4)


def test_two_processes_count_every_hidden_word_once(ground: TrainingGround, tmp_path: Path) -> None:
    """Their batches have other numbers of words to predict, and the last ones fewer rows."""
    data = task_data(tmp_path, "masked-lm", train=44, dev=10)
    prepared = ground.prepared("distilbert", "masked-lm", p=0.0, head="none")
    result = train_in_two_processes(
        *(prepared, tmp_path / "two"),
        *("--train-file", data.train_file, "--eval-file", data.eval_file),
        *("--epochs", 2, "--batch-size", 8, "--lr", 1e-3, "--max-grad-norm", 0),
    )
    alone = ground.run(
        tmp_path / "one",
        prepared=prepared,
        data=data,
        epochs=2,
        lr=1e-3,
        batch_size=8,
        gradient_accumulation=2,
        max_grad_norm=0.0,
    )
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"), atol=4e-5)
    assert result["metrics"] == pytest.approx(alone.metrics, rel=1e-4)
