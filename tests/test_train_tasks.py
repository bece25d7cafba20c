"""`train` for every task, end to end: what it learns, how it resumes, what it leaves behind."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from checkpoints import TinyCheckpoints
from repeats import mostly_repeats
from task_data import KINDS, question, task_data, write_jsonl
from training_runs import TrainingGround, assert_close, same_weights, weights, write_tsv

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.interface import describe_interface
from mixout_export.checkpoint.loading import load_plain
from mixout_export.checkpoint.tokenizer import load_tokenizer
from mixout_export.data.evaluation import EvaluationData, evaluation_data
from mixout_export.data.reader import reader_of
from mixout_export.data.tables import read_table
from mixout_export.errors import ArgumentError
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.train import DataOptions, TrainResult
from mixout_export.tasks import TASKS
from mixout_export.training.records import Observer

#: Task → an architecture, epochs, and what its metric must reach. Four seeds gave at least 0.91
#: for sets of labels and words with labels, 1.00 for questions and choices, and losses of at most
#: 0.79 and 0.55, where the untrained models' are above 5.
LEARNS = {
    "multi-label": ("gpt2", 10, 0.85),
    "token-classification": ("distilbert", 12, 0.9),
    "question-answering": ("bert", 10, 0.95),
    "multiple-choice": ("distilbert", 4, 0.95),
    "masked-lm": ("roberta", 8, 0.95),
    "causal-lm": ("llama", 8, 0.7),
}

#: The architectures that have a head for the task.
ENCODERS = ("bert", "roberta", "distilbert", "albert")
DECODERS = ("gpt2", "llama")
TRAINS = [
    *((task, kind) for task in list(KINDS)[:3] for kind in (*ENCODERS, *DECODERS)),
    *((task, kind) for task in ("multiple-choice", "masked-lm") for kind in ENCODERS),
    *(("causal-lm", kind) for kind in DECODERS),
]
FIRST = tuple({task: (task, kind) for task, kind in reversed(TRAINS)}.values())


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


def data_of(ground: TrainingGround, task: str, train: int = 256, dev: int = 64) -> DataOptions:
    folder = ground.root / task
    folder.mkdir(exist_ok=True)
    return task_data(folder, task, train, dev)


def prepare(ground: TrainingGround, task: str, kind: str, p: float = 0.3, **options: Any) -> Path:
    return ground.prepared(kind, task, p=p, labels=KINDS[task].labels, **options)


def run(ground: TrainingGround, out: Path, task: str, kind: str, **options: Any) -> TrainResult:
    small = {"data": data_of(ground, task, 48, 16), "lr": 5e-3, **options}
    return ground.run(out, prepared=small.pop("prepared", prepare(ground, task, kind)), **small)


def evaluate(folder: Path, file: Path, **options: Any) -> tuple[EvaluationData, Any]:
    """Run a plain folder over a table, and return the batches and the task's metrics."""
    opened, model, tokenizer = (
        open_artifact(folder),
        load_plain(open_checkpoint(folder)),
        load_tokenizer(folder),
    )
    assert tokenizer is not None
    interface = describe_interface(model, opened.task, tokenizer)
    data = evaluation_data(
        read_table(file), opened.task, tokenizer, interface, labels=opened.labels or (), **options
    )

    def outputs() -> Any:
        for batch in data.batches:
            with torch.no_grad():
                made = model(**{name: torch.from_numpy(value) for name, value in batch.items()})
            yield {name: made[name].numpy() for name in interface.outputs}

    return data, data.metrics(outputs())


def test_every_task_has_a_reader_and_data_here() -> None:
    assert all(reader_of(task) for task in TASKS.values())
    others = {
        "text-classification",
        "regression",
        "image-classification",
    }  # have tests of their own
    assert {*KINDS} | others == set(TASKS)
    assert set(LEARNS) == set(KINDS)


@pytest.mark.parametrize("task", LEARNS)
def test_it_is_learned_and_what_is_collapsed_is_as_good(
    ground: TrainingGround, tmp_path: Path, task: str
) -> None:
    kind, epochs, goal = LEARNS[task]
    data = data_of(ground, task)
    result = ground.run(
        tmp_path / "out", prepared=prepare(ground, task, kind), data=data, epochs=epochs, lr=5e-3
    )
    assert result.metric == TASKS[task].metric
    assert set(result.metrics) == {"loss", *TASKS[task].metrics}
    before, after = (m[result.metric] for m in (result.metrics_before, result.metrics))
    if result.metric == "loss":
        assert before > 3
        assert after < goal
    else:
        assert before < 0.6
        assert after > goal
    collapse_checkpoint(tmp_path / "out", tmp_path / "plain")
    model = getattr(transformers, TASKS[task].auto_class).from_pretrained(tmp_path / "plain")
    assert type(model).__name__ == open_artifact(tmp_path / "out").config["architectures"][0]
    assert data.eval_file is not None
    found, metrics = evaluate(tmp_path / "plain", data.eval_file)
    assert metrics is not None
    expected = {name: result.metrics[name] for name in metrics}
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert set(TASKS[task].metrics) == set(metrics)
    assert found.labeled


@pytest.mark.parametrize(("task", "kind"), mostly_repeats(TRAINS, *FIRST))
def test_every_architecture_trains(
    ground: TrainingGround, tmp_path: Path, task: str, kind: str
) -> None:
    before = weights(prepare(ground, task, kind))
    result = run(ground, tmp_path / "out", task, kind, max_steps=3, decay_toward="pretrained")
    assert all(np.isfinite(value) for value in result.metrics.values())
    after = weights(tmp_path / "out")
    changed = [key for key, value in after.items() if not torch.equal(value, before[key])]
    assert len(changed) > 0.9 * len(after)


class Interrupting(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, *, step: int, examples: int, loss: float | None) -> None:
        if step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("task", LEARNS)
def test_a_resumed_run_ends_with_the_same_bytes(
    ground: TrainingGround, tmp_path: Path, task: str
) -> None:
    kind = LEARNS[task][0]
    options: dict[str, Any] = {
        "epochs": 3.0,
        "batch_size": 8,
        "gradient_accumulation": 2,
        "eval_every": 2,
        "save_every": 4,
        "log_every": 3,
        "seed": 3,
        "prepared": prepare(ground, task, kind, dropout=0.05),
    }
    run(ground, tmp_path / "whole", task, kind, **options)
    for step in (2, 6):  # before the first checkpoint, and after it
        with pytest.raises(KeyboardInterrupt):
            run(
                *(ground, tmp_path / "out", task, kind),
                observer=Interrupting(step),
                resume=True,
                **options,
            )
    run(ground, tmp_path / "out", task, kind, resume=True, **options)
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    for name in ("metrics.jsonl", "curves.png", "config.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize("task", ["token-classification", "masked-lm", "causal-lm"])
def test_accumulated_batches_are_one_large_one_whatever_they_predict(
    ground: TrainingGround, tmp_path: Path, task: str
) -> None:
    """Batches of other numbers of words, the last one of fewer rows: each word counts once."""
    kind = LEARNS[task][0]
    common: dict[str, Any] = {
        "prepared": prepare(ground, task, kind, p=0.0, head="none"),
        "data": DataOptions(data_of(ground, task, 20).train_file),
        "lr": 1e-3,
        "epochs": 2,
    }
    run(ground, tmp_path / "large", task, kind, **common, batch_size=20)
    run(ground, tmp_path / "small", task, kind, **common, batch_size=8, gradient_accumulation=3)
    assert_close(weights(tmp_path / "large"), weights(tmp_path / "small"), atol=4e-5)
    large, small = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("large", "small")
    )
    assert large["loss"] == pytest.approx(small["loss"], rel=1e-5)


def reference_loss(prepared: Path, file: Path, mask: Any) -> float:
    """Return the untrained model's loss, a mean over words written down otherwise."""
    model, tokenizer = load_plain(open_checkpoint(prepared)), load_tokenizer(prepared)
    assert tokenizer is not None
    total = count = 0.0
    for line in file.read_text().splitlines():
        row = json.loads(line)
        losses = mask(model, tokenizer, row)
        total, count = total + sum(losses), count + len(losses)
    return total / count


def word_losses(model: Any, tokenizer: Any, row: Mapping[str, Any]) -> list[float]:
    encoded = tokenizer(row["tokens"], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**encoded).logits[0].log_softmax(-1)
    words = encoded.word_ids()
    firsts = [words.index(place) for place in range(len(row["tokens"]))]
    tags = [KINDS["token-classification"].labels.index(tag) for tag in row["ner_tags"]]
    return [-float(logits[first, tag]) for first, tag in zip(firsts, tags, strict=True)]


def next_losses(model: Any, tokenizer: Any, row: Mapping[str, Any]) -> list[float]:
    ids = tokenizer(row["text"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
    return [-float(logits[place, ids[0, place + 1]]) for place in range(ids.shape[1] - 1)]


@pytest.mark.parametrize(
    ("task", "kind", "losses"),
    [
        ("token-classification", "bert", word_losses),
        ("token-classification", "distilbert", word_losses),
        ("causal-lm", "gpt2", next_losses),
        ("causal-lm", "llama", next_losses),
    ],
)
def test_the_loss_leaves_padding_out(
    ground: TrainingGround, tmp_path: Path, task: str, kind: str, losses: Any
) -> None:
    prepared = prepare(ground, task, kind)
    result = run(ground, tmp_path / "out", task, kind, max_steps=1)
    file = data_of(ground, task, 48, 16).eval_file
    assert file is not None
    expected = reference_loss(prepared, file, losses)
    assert result.metrics_before["loss"] == pytest.approx(expected, rel=1e-5)


def test_contexts_longer_than_the_model_takes_are_read_in_windows(
    ground: TrainingGround, tmp_path: Path
) -> None:
    rng = random.Random(0)
    rows = [question(rng, filler=30, unanswerable=True) for _ in range(192)]
    data = DataOptions(
        write_jsonl(tmp_path / "train.jsonl", rows[:160]),
        write_jsonl(tmp_path / "dev.jsonl", rows[160:]),
    )
    result = run(
        *(ground, tmp_path / "out", "question-answering", "roberta"),
        data=data,
        epochs=10,
        max_length=24,
        doc_stride=8,
    )
    assert result.metrics["exact_match"] > 0.9  # three seeds gave 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| training examples | 160 |" in card


def test_blocks_train_on_every_token(ground: TrainingGround, tmp_path: Path) -> None:
    data = data_of(ground, "causal-lm")
    result = run(
        *(ground, tmp_path / "out", "causal-lm", "gpt2"), data=data, pack_sequences=True, epochs=12
    )
    rows = run(ground, tmp_path / "rows", "causal-lm", "gpt2", data=data, epochs=1)
    assert result.steps / 12 < rows.steps / 2
    assert result.metrics["loss"] < 2 < result.metrics_before["loss"]


@pytest.mark.parametrize("task", ["question-answering", "token-classification"])
def test_the_files_format_changes_nothing(
    ground: TrainingGround, tmp_path: Path, task: str
) -> None:
    lines = data_of(ground, task, 48, 16).train_file
    assert lines is not None
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    if task == "question-answering":  # nested values, as parquet types them
        other = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist(rows), other)
    else:  # words and labels separated by spaces
        pairs = [(" ".join(row["tokens"]), " ".join(row["ner_tags"])) for row in rows]
        other = write_tsv(tmp_path / "rows.tsv", ("text", "labels"), pairs)
    kind = LEARNS[task][0]
    for name, file in (("jsonl", lines), ("other", other)):
        run(ground, tmp_path / name, task, kind, data=DataOptions(file), max_steps=2)
    assert same_weights(tmp_path / "jsonl", tmp_path / "other")


@pytest.mark.parametrize(
    ("task", "kind", "options", "part"),
    [
        ("masked-lm", "bert", {"doc_stride": 3}, "doc-stride: has no effect for masked-lm"),
        (
            "token-classification",
            "bert",
            {"pack_sequences": True},
            "pack-sequences: has no effect for token",
        ),
        ("question-answering", "bert", {"metric": "accuracy"}, "f1, exact_match"),
        ("causal-lm", "gpt2", {"metric": "f1"}, "loss, perplexity for causal-lm"),
    ],
)
def test_settings_that_do_nothing_are_refused(
    ground: TrainingGround, tmp_path: Path, task: str, kind: str, options: Any, part: str
) -> None:
    with pytest.raises(ArgumentError, match=part):
        run(ground, tmp_path / "out", task, kind, **options)
    assert list(tmp_path.iterdir()) == []


def test_the_smallest_perplexity_is_the_best(ground: TrainingGround, tmp_path: Path) -> None:
    result = run(
        *(ground, tmp_path / "out", "masked-lm", "bert"),
        epochs=4,
        lr=0.05,
        eval_every=2,
        metric="perplexity",
    )
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    values = [r["eval_perplexity"] for r in found if r["step"] and "eval_loss" in r]
    assert result.metrics["perplexity"] == min(values) < max(values)


# A real checkpoint


@pytest.mark.real
@pytest.mark.repeats
def test_a_real_checkpoint_learns_to_tag_words(
    ground: TrainingGround, tmp_path: Path, real_checkpoint: Path
) -> None:
    task = "token-classification"
    data = data_of(ground, task, 128, 32)
    result = ground.run(
        tmp_path / "out",
        prepared=prepare(ground, task, "bert", p=0.7, base=real_checkpoint),
        data=data,
        epochs=3,
        lr=3e-4,
    )
    assert result.metrics_before["f1"] < 0.3
    assert result.metrics["f1"] > 0.9
    collapse_checkpoint(tmp_path / "out", tmp_path / "plain")
    tagger = transformers.pipeline(
        "token-classification", str(tmp_path / "plain"), aggregation_strategy="simple"
    )
    found = {(e["entity_group"], e["word"]) for e in tagger("the old teacher sees the garden")}
    assert found == {("PER", "old teacher"), ("LOC", "garden")}
