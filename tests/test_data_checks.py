"""What `train` says about its data, its labels and its length."""

from pathlib import Path

import pytest
from checkpoints import TinyCheckpoints
from training_runs import TrainingGround, sentences, write_tsv

from mixout_export.stages.train import DataOptions, TrainResult, notes_for
from mixout_export.training.options import TrainOptions

HEADER = ("sentence", "label")
THREE = ("bad", "good", "never")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


def files(folder: Path, train: list[tuple[str, str]], dev: list[tuple[str, str]]) -> DataOptions:
    return DataOptions(
        write_tsv(folder / "train.tsv", HEADER, [*train]),
        write_tsv(folder / "dev.tsv", HEADER, [*dev]),
    )


def test_shared_rows_and_labels_of_one_file_are_noted(
    ground: TrainingGround, tmp_path: Path
) -> None:
    train = [(f"{text} {i}", "bad") for i, (text, _) in enumerate(sentences(16, seed=0))]
    data = files(tmp_path, train, [*train[:3], ("new one", "good")])
    prepared = ground.prepared(labels=THREE)
    result = ground.run(tmp_path / "out", prepared=prepared, data=data, max_steps=1)
    shared, unseen, never = result.notes
    assert shared.startswith("3 of 4 evaluation rows are also in the training data")
    assert str(tmp_path) not in shared
    assert unseen.startswith("the label 'good' occurs only in the evaluation data")
    assert never == "the label 'never' does not occur in the training data"


def test_the_figures_of_each_label_are_those_of_the_chosen_step(
    ground: TrainingGround, tmp_path: Path
) -> None:
    result = ground.run(tmp_path / "out", epochs=3)
    assert [scores["label"] for scores in result.by_label] == ["LABEL_0", "LABEL_1"]
    assert sum(scores["rows"] for scores in result.by_label) == 32
    assert result.by_label[1]["f1"] == pytest.approx(result.metrics["f1"])
    assert result.titles == {"f1": "f1 (LABEL_1)"}
    wrong = sum(pair["count"] for pair in result.confused)
    assert 1 - wrong / 32 == pytest.approx(result.metrics["accuracy"])


def scores(label: str, rows: int, predicted: int) -> dict[str, object]:
    return {"label": label, "rows": rows, "predicted": predicted}


def outcome(
    folder: Path, losses: list[float], *, key: str = "loss", **values: object
) -> TrainResult:
    folder.mkdir(exist_ok=True)
    lines = [f'{{"step": {i}, "{key}": {loss}}}\n' for i, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    given = {"steps": 30, "chosen_step": 30, "stopped_early": False, "seconds": 1.0, **values}
    return TrainResult(folder, "accuracy", {"accuracy": 0.9}, {}, chance={"accuracy": 0.5}, **given)


def test_constant_predictions_and_confused_labels_are_noted(tmp_path: Path) -> None:
    constant = outcome(
        tmp_path / "a",
        [0.6, 0.5, 0.49],
        by_label=[scores("ham", 30, 40), scores("spam", 10, 0)],
        confused=[{"expected": "spam", "predicted": "ham", "count": 10}],
    )
    first, second = notes_for(constant, TrainOptions())
    assert first == "the model always predicts 'ham'"
    assert second == "most confused: 'spam' predicted as 'ham' (10 times)"


@pytest.mark.parametrize("key", ["loss", "eval_loss"])
@pytest.mark.parametrize(
    ("losses", "steps", "noted"),
    [
        ([0.7, 0.6, 0.5], 30, True),
        ([0.7, 0.5, 0.49], 30, False),
        ([0.7, 0.6, 0.5], 3000, False),
        ([0.7], 5, False),
    ],
)
def test_a_short_run_whose_loss_still_falls_is_noted(
    tmp_path: Path, losses: list[float], steps: int, noted: bool, key: str
) -> None:
    found = notes_for(outcome(tmp_path / "a", losses, key=key, steps=steps), TrainOptions())
    assert any(f"after {steps} steps, and the loss was still falling" in n for n in found) is noted
