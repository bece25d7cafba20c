"""Label smoothing and class weights."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import TinyCheckpoints
from datasets_setup import encoding, read, table
from sklearn.utils.class_weight import compute_class_weight
from task_data import task_data
from training_runs import TrainingGround, assert_close, same_weights, sentences, weights, write_tsv

from mixout_export.errors import ArgumentError
from mixout_export.stages.train import DataOptions
from mixout_export.training.criterion import Criterion, balanced_weights, build_criterion
from mixout_export.training.options import TrainOptions


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


def test_the_loss_is_that_of_its_formula() -> None:
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 4, -100], [1, -100, -100], [2, 2, 3], [4, 0, 1]])
    w, s = np.array([1.0, 2.0, 0.5, 4.0, 3.0]), 0.2
    log = logits.double().log_softmax(-1).numpy()
    above = below = 0.0
    for row, line in enumerate(labels.tolist()):
        for place, label in enumerate(line):
            if label >= 0:
                smooth = np.full(5, s / 5) + (1 - s) * np.eye(5)[label]
                above -= float((smooth * w * log[row, place]).sum())
                below += w[label]
    assert float(Criterion(s, w)(logits, labels)) == pytest.approx(above / below, rel=1e-6)
    plain = torch.nn.functional.cross_entropy(logits.view(-1, 5), labels.view(-1))
    assert torch.equal(Criterion(0.0, None)(logits, labels), plain)


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    ids = np.random.default_rng(0).choice(4, p=[0.7, 0.2, 0.06, 0.04], size=500)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=ids)
    assert balanced_weights(ids, 4) == pytest.approx(expected)
    assert balanced_weights(np.array([0, 0, 2]), 3) == pytest.approx([3 / 4, 1.0, 3 / 2])


def test_words_are_counted_not_sentences() -> None:
    rows = [
        {"tokens": ["the", "dog", "sleeps"], "tags": ["O", "B-X", "O"]},
        {"tokens": ["the", "cat"], "tags": ["O", "B-X"]},
    ]
    names = ("O", "B-X")
    examples = read("token-classification", table(*rows), encoding(*names))
    made = build_criterion(TrainOptions(class_weights="balanced"), examples, names)
    assert made is not None
    assert made.weights == pytest.approx([5 / 6, 5 / 4])
    assert made.targets(examples) == pytest.approx([5 / 3 + 5 / 4, 5 / 6 + 5 / 4])


def test_nothing_is_built_if_nothing_is_asked_for() -> None:
    examples = read("text-classification", table({"text": "a", "label": 1}), encoding("no", "yes"))
    assert build_criterion(TrainOptions(), examples, ("no", "yes")) is None
    with pytest.raises(ArgumentError, match=r"class-weights: got 3 weights, expected 2.*: no, yes"):
        build_criterion(TrainOptions(class_weights="1,2,3"), examples, ("no", "yes"))


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_small_batches_count_as_one_large_batch(
    ground: TrainingGround, tmp_path: Path, task: str
) -> None:
    """Batches of 8, 8 and 4 hold different weights of labels."""
    data, labels = ground.alone(20), None
    if task == "token-classification":
        data = DataOptions(task_data(tmp_path, task, train=20, dev=4).train_file)
        labels = ("O", "B-PER", "I-PER", "B-LOC")
    common: dict[str, Any] = {
        "prepared": ground.prepared(task=task, labels=labels, p=0.0, head="none"),
        "data": data,
        "lr": 1e-3,
        "epochs": 3,
        "class_weights": "1,9" if labels is None else "1,9,4,0.2",
        "label_smoothing": 0.1,
    }
    ground.run(tmp_path / "large", **common, batch_size=20)
    ground.run(tmp_path / "small", **common, batch_size=8, gradient_accumulation=3)
    assert_close(weights(tmp_path / "large"), weights(tmp_path / "small"), atol=4e-5)
    last = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
        for name in ("large", "small")
    ]
    assert last[0] == pytest.approx(last[1], rel=1e-5)


def test_equal_weights_change_nothing_and_others_do(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {"prepared": ground.plain(), "max_steps": 4, "lr": 1e-3}
    plain = ground.run(tmp_path / "plain", **common)
    ground.run(tmp_path / "equal", class_weights="3,3", **common)
    assert_close(weights(tmp_path / "plain"), weights(tmp_path / "equal"), atol=2e-5)
    other = ground.run(tmp_path / "other", class_weights="1,50", label_smoothing=0.3, **common)
    assert plain.metrics_before == other.metrics_before  # evaluations are without both
    assert not same_weights(tmp_path / "plain", tmp_path / "other")
    card = (tmp_path / "other" / "README.md").read_text("utf-8")
    assert "| class weights | 1,50 |" in card
    assert "| label smoothing | 0.3 |" in card


def test_rare_labels_are_found_more_often(ground: TrainingGround, tmp_path: Path) -> None:
    """Nothing tells the labels apart, so the weights alone decide what is predicted."""
    texts = [text.rsplit(" ", 1)[0] for text, _ in sentences(80, seed=0)]
    rows = [(text, int(index % 8 == 0)) for index, text in enumerate(texts)]
    file = write_tsv(tmp_path / "rare.tsv", ("sentence", "label"), rows)
    common: dict[str, Any] = {"prepared": ground.plain(), "data": DataOptions(file, file)}
    common |= {"max_steps": 12, "lr": 1e-3, "select": "last"}
    plain = ground.run(tmp_path / "plain", **common).metrics
    assert plain["f1"] == 0.0
    balanced = ground.run(tmp_path / "rare", class_weights="1,30", **common).metrics
    assert balanced["f1"] > 0.15


@pytest.mark.parametrize("task", ["regression", "multi-label", "multiple-choice", "causal-lm"])
@pytest.mark.parametrize("option", [{"label_smoothing": 0.1}, {"class_weights": "balanced"}])
def test_other_tasks_refuse_them(
    ground: TrainingGround, tmp_path: Path, task: str, option: dict[str, Any]
) -> None:
    labels = ("a", "b") if task == "multi-label" else None
    kind = "gpt2" if task == "causal-lm" else "bert"
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(ArgumentError, match=f"^{name}: has no effect for {task}"):
        ground.run(
            tmp_path / "out",
            prepared=ground.prepared(kind, task, labels=labels),
            data=ground.data(),
            **option,
        )
