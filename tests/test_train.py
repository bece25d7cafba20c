import json
import logging
import math
import stat
import sys
import types
import warnings
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from accelerate.utils import LoggerType
from checkpoints import (
    ARCHITECTURES,
    POSITIONS,
    TinyCheckpoints,
    make_model,
    make_tokenizer,
    save_checkpoint,
)
from repeats import mostly_repeats
from shortcuts import real_curves
from training_runs import (
    TrainingGround,
    assert_close,
    same_weights,
    sentences,
    weights,
    write_tsv,
)

from mixout_export import load_mixout
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.loading import load_plain
from mixout_export.checkpoint.tokenizer import load_tokenizer
from mixout_export.errors import ArgumentError
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.train import DataOptions
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.batches import training_batches
from mixout_export.training.records import Observer


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# What it learns


def test_a_separable_task_is_learned(ground: TrainingGround, tmp_path: Path) -> None:
    result = ground.run(tmp_path / "out", epochs=8)
    assert result.metrics_before["accuracy"] < 0.75
    assert result.metrics["accuracy"] > 0.95
    assert result.metric == "accuracy"
    assert result.steps == 48
    losses = [record["loss"] for record in records(tmp_path / "out") if "loss" in record]
    assert losses[-1] < 0.7 * losses[0]


def test_numbers_are_learned(ground: TrainingGround, tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> list[tuple[Any, ...]]:
        scores = np.random.default_rng(seed).uniform(0, 1, count).round(3)
        texts = sentences(count, seed=seed)
        return [
            (i, text, "a", 4 * y + s)
            for i, ((text, y), s) in enumerate(zip(texts, scores, strict=True))
        ]

    header = ("idx", "sentence1", "sentence2", "score")
    data = DataOptions(
        write_tsv(tmp_path / "train.tsv", header, rows(96, 0)),
        write_tsv(tmp_path / "dev.tsv", header, rows(32, 1)),
    )
    prepared = ground.prepared(task="regression", p=0.3)
    result = ground.run(tmp_path / "out", prepared=prepared, data=data, epochs=12, lr=6e-3)
    assert result.metric == "pearson"
    assert set(result.metrics) == {"loss", "pearson", "spearman", "mse"}
    assert result.metrics["pearson"] > 0.55  # four seeds gave 0.72 to 0.98
    assert result.metrics["mse"] == pytest.approx(result.metrics["loss"], rel=1e-4)


def test_the_second_sentence_is_read(ground: TrainingGround, tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> list[tuple[Any, ...]]:
        return [(y, "the dog sleeps", text) for text, y in sentences(count, seed=seed)]

    header = ("label", "sentence1", "sentence2")
    data = DataOptions(
        write_tsv(tmp_path / "train.tsv", header, rows(96, 0)),
        write_tsv(tmp_path / "dev.tsv", header, rows(32, 1)),
    )
    result = ground.run(tmp_path / "out", data=data, epochs=8)
    assert result.metrics["accuracy"] > 0.95


# The step, against a loop written down independently


def reference_weights(
    prepared: Path, data: DataOptions, *, toward_pretrained: bool, steps: int
) -> dict[str, torch.Tensor]:
    """Finetune with PyTorch alone: lr 1e-3, warm-up 0.1, decay 0.1, clipping at 0.5, seed 4."""
    model, tokenizer = load_plain(open_checkpoint(prepared)).train(), load_tokenizer(prepared)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    lines = [line.split("\t") for line in data.train_file.read_text().splitlines()[1:]]
    texts, labels = [line[0] for line in lines], torch.tensor([int(line[1]) for line in lines])
    lengths = np.array([len(ids) for ids in tokenizer(texts)["input_ids"]])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    batches = training_batches(lengths, batch_size=16, seed=4, epoch=0)[:steps]
    for step, indices in enumerate(batches):
        lr = 1e-3 * (step if step < 1 else (steps - step) / (steps - 1))
        batch = tokenizer([texts[i] for i in indices], padding=True, return_tensors="pt")
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels[indices])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if toward_pretrained and not name.startswith("classifier"):
                    p -= lr * 0.1 * (p - start[name])
                elif p.dim() > 1:
                    p -= lr * 0.1 * p
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("toward", ["zero", "pretrained"])
def test_without_randomness_it_is_plain_finetuning(
    ground: TrainingGround, tmp_path: Path, toward: str
) -> None:
    prepared, data = ground.plain(), ground.alone()
    ground.run(
        tmp_path / "out",
        prepared=prepared,
        data=data,
        lr=1e-3,
        weight_decay=0.1,
        decay_toward=toward,
        max_grad_norm=0.5,
        max_steps=6,
        seed=4,
    )
    expected = reference_weights(prepared, data, toward_pretrained=toward == "pretrained", steps=6)
    assert_close(weights(tmp_path / "out"), expected, atol=1e-5)


def test_the_head_has_a_decay_of_its_own(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "prepared": ground.plain(),
        "data": ground.alone(),
        "max_steps": 2,
        "weight_decay": 0.0,
    }
    ground.run(tmp_path / "a", **common)
    ground.run(tmp_path / "b", **common, head_weight_decay=1.0)
    ours, theirs = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert theirs["classifier.weight"].norm() < ours["classifier.weight"].norm()
    assert torch.equal(ours["classifier.bias"], theirs["classifier.bias"])
    body = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(ours[body], theirs[body])  # the last step's decay of the head is its last


def test_gradient_accumulation_is_the_large_batch(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "prepared": ground.plain(),
        "data": ground.alone(20),  # one batch of 20, or of 8, 8 and 4
        "lr": 1e-3,
        "epochs": 4,
    }
    ground.run(tmp_path / "large", **common, batch_size=20)
    ground.run(tmp_path / "small", **common, batch_size=8, gradient_accumulation=3)
    # Four steps of up to 1e-3: a hundredth of the way, where Adam divides rounding by rounding.
    assert_close(weights(tmp_path / "large"), weights(tmp_path / "small"), atol=4e-5)
    large, small = records(tmp_path / "large"), records(tmp_path / "small")
    assert [r["step"] for r in large] == [r["step"] for r in small]
    assert large[-1]["loss"] == pytest.approx(small[-1]["loss"], rel=1e-5)


def test_gradients_are_clipped_and_how_often_is_recorded(
    ground: TrainingGround, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"max_steps": 4, "log_every": 4, "data": ground.alone()}
    for name, limit in (("always", 1e-3), ("never", 0.0)):
        ground.run(tmp_path / name, **common, max_grad_norm=limit)
    always, never = (records(tmp_path / name)[-1] for name in ("always", "never"))
    assert (always["clip_rate"], never["clip_rate"]) == (1.0, 0.0)
    assert always["grad_norm"] > 0.01
    assert not same_weights(tmp_path / "always", tmp_path / "never")


# Randomness


@pytest.mark.parametrize(
    "strategy",
    [
        {"p": 0.7},
        {"p": 0.7, "granularity": "element"},
        {"p": 0.0, "dropout": 0.1},
        {"p": 0.7, "head": "mixout"},
        {"p": 0.7, "head": "none"},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_equal_seeds_give_equal_runs_and_other_seeds_others(
    ground: TrainingGround, tmp_path: Path, strategy: dict[str, Any]
) -> None:
    prepared = ground.prepared(**strategy)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(name) + seed * 77)  # what the caller drew before must not matter
        torch.rand(ord(name))
        ground.run(tmp_path / name, prepared=prepared, epochs=1, seed=seed)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    for file in ("metrics.jsonl", "curves.png", "config.json", "mixout_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert not same_weights(tmp_path / "a", tmp_path / "c")


def test_order_and_masks_have_seeds_of_their_own(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {"epochs": 1, "data": ground.alone()}
    for name, prepared, seeds in (
        ("plain", ground.plain(), {"seed": 2}),
        ("plain-order", ground.plain(), {"seed": 1, "data_seed": 2}),
        ("mixed", ground.prepared(), {"seed": 2}),
        ("mixed-masks", ground.prepared(), {"seed": 1, "data_seed": 2}),
        ("mixed-order", ground.prepared(), {"seed": 2, "data_seed": 1}),
    ):
        ground.run(tmp_path / name, prepared=prepared, **common, **seeds)
    assert same_weights(tmp_path / "plain", tmp_path / "plain-order")
    assert not same_weights(tmp_path / "mixed", tmp_path / "mixed-masks")
    assert not same_weights(tmp_path / "mixed", tmp_path / "mixed-order")
    card = (tmp_path / "mixed-masks" / "README.md").read_text("utf-8")
    assert "| seed | 1 for masks and dropout, 2 for the data order |" in card


def test_examples_are_a_fixed_part_of_the_file(ground: TrainingGround, tmp_path: Path) -> None:
    data = ground.data()
    header, *rows = data.train_file.read_text().splitlines()
    chosen = sorted(np.random.default_rng(5).permutation(96)[:40])
    part = tmp_path / "part.tsv"
    part.write_text("\n".join([header, *(rows[row] for row in chosen)]) + "\n")
    common: dict[str, Any] = {"epochs": 1, "seed": 3}
    ground.run(tmp_path / "a", data=data, examples=40, examples_seed=5, **common)
    ground.run(tmp_path / "b", data=DataOptions(part, data.eval_file), **common)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["options"]["examples"], manifest["options"]["examples_seed"]) == (40, 5)
    assert manifest["data"][0]["rows"] == 40
    card = (tmp_path / "a" / "README.md").read_text("utf-8")
    assert "40 of 96 rows, chosen at random with seed 5" in card


def test_more_examples_than_rows_are_refused_with_their_number(
    ground: TrainingGround, tmp_path: Path
) -> None:
    with pytest.raises(ArgumentError, match=r"examples: got 97, .*train-96.tsv has only 96 rows"):
        ground.run(tmp_path / "out", examples=97)
    with pytest.raises(ArgumentError, match="examples-seed: has no effect without --examples"):
        ground.run(tmp_path / "out", examples_seed=1)
    assert not (tmp_path / "out").exists()


def test_the_result_knows_chance(ground: TrainingGround, tmp_path: Path) -> None:
    labels = [label for _, label in sentences(32, seed=1)]
    result = ground.run(tmp_path / "out", max_steps=1)
    assert result.chance["accuracy"] == max(np.bincount(labels)) / 32
    assert ground.run(tmp_path / "out", max_steps=1, resume=True).chance == result.chance
    assert ground.run(tmp_path / "alone", data=ground.alone(), max_steps=1).chance == {}


def test_masks_change_what_is_learned(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {"epochs": 1, "data": ground.alone()}
    mixed = ground.prepared(p=0.7, head="none")
    elements = ground.prepared(p=0.7, head="none", granularity="element")
    for name, prepared in (("plain", ground.plain()), ("mixed", mixed), ("elements", elements)):
        ground.run(tmp_path / name, prepared=prepared, **common)
    assert not same_weights(tmp_path / "plain", tmp_path / "mixed")
    assert not same_weights(tmp_path / "mixed", tmp_path / "elements")


def test_evaluating_and_saving_draw_no_random_number(
    ground: TrainingGround, tmp_path: Path
) -> None:
    prepared = ground.prepared(dropout=0.1)
    common: dict[str, Any] = {"prepared": prepared, "epochs": 2, "select": "last"}
    ground.run(tmp_path / "often", **common, eval_every=1, save_every=1)
    ground.run(tmp_path / "never", **common, data=ground.alone())
    assert same_weights(tmp_path / "often", tmp_path / "never")


def test_gradient_checkpointing_draws_the_same_masks(
    ground: TrainingGround, tmp_path: Path
) -> None:
    prepared = ground.prepared(dropout=0.1)
    for name, flag in (("with", True), ("without", False)):
        ground.run(
            tmp_path / name,
            prepared=prepared,
            data=ground.alone(),
            epochs=1,
            gradient_checkpointing=flag,
        )
    assert_close(weights(tmp_path / "with"), weights(tmp_path / "without"), atol=1e-7)


def test_libraries_warn_of_nothing_while_training(
    ground: TrainingGround, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers, for example, of a cache that it does not use with gradient checkpointing."""
    logger, said = logging.getLogger("transformers"), []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.WARNING)
    logger.manager._clear_cache()  # type: ignore[attr-defined]
    type(logger).warning_once.cache_clear()  # type: ignore[attr-defined]
    ground.run(tmp_path / "out", gradient_checkpointing=True, reinit_layers=1, max_steps=1)
    assert said == []


def test_p_can_be_overridden_and_is_recorded(ground: TrainingGround, tmp_path: Path) -> None:
    ground.run(tmp_path / "a", prepared=ground.prepared(p=0.7), epochs=1, p=0.2)
    ground.run(tmp_path / "b", prepared=ground.prepared(p=0.2), epochs=1)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert json.loads((tmp_path / "a" / "mixout_config.json").read_text())["p"] == 0.2
    assert {layer.p for layer in mixout_layers(load_mixout(tmp_path / "a")).values()} == {0.2}


def test_records_hold_no_times(ground: TrainingGround, tmp_path: Path) -> None:
    ground.run(tmp_path / "out", epochs=2, log_every=5)
    known = {"step", "epoch", "loss", "grad_norm", "clip_rate", "lr"}
    known |= {f"eval_{name}" for name in ("loss", "accuracy", "f1", "matthews", "macro_f1")}
    known |= {"labels"}
    assert {key for record in records(tmp_path / "out") for key in record} == known
    assert [r["step"] for r in records(tmp_path / "out") if "lr" in r] == [5, 10, 12]
    assert [r["step"] for r in records(tmp_path / "out") if "eval_loss" in r] == [0, 6, 12]


# Precision and memory


def test_bfloat16_keeps_float32_weights(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {"prepared": ground.plain(), "data": ground.alone(), "epochs": 1}
    ground.run(tmp_path / "bf16", **common, precision="bf16")
    ground.run(tmp_path / "fp32", **common)
    half = weights(tmp_path / "bf16")
    assert {value.dtype for value in half.values()} == {torch.float32}
    assert not same_weights(tmp_path / "bf16", tmp_path / "fp32")
    # Weights kept in bfloat16 would have no bits below its 8.
    moved = half["bert.encoder.layer.0.output.dense.weight"]
    assert not torch.equal(moved, moved.to(torch.bfloat16).float())


def test_a_bfloat16_base_is_trained_in_float32_beside_its_own_anchors(
    ground: TrainingGround, tmp_path: Path
) -> None:
    base = save_checkpoint(make_model("bert").to(torch.bfloat16), tmp_path / "base")
    prepared = ground.prepared(base=base)
    before = (prepared / "pretrained.safetensors").read_bytes()
    result = ground.run(tmp_path / "out", prepared=prepared, epochs=8)
    assert result.metrics["accuracy"] > 0.9
    trained = weights(tmp_path / "out")
    assert {value.dtype for value in trained.values()} == {torch.float32}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "out" / "pretrained.safetensors").read_bytes() == before


def test_anchors_are_linked_and_read_only(ground: TrainingGround, tmp_path: Path) -> None:
    prepared = ground.prepared()
    ground.run(tmp_path / "out", prepared=prepared, max_steps=1)
    ours = (tmp_path / "out" / "pretrained.safetensors").stat()
    assert ours.st_ino == (prepared / "pretrained.safetensors").stat().st_ino
    assert stat.S_IMODE(ours.st_mode) == 0o444


def test_anchors_in_another_dtype_stay_in_memory(ground: TrainingGround, tmp_path: Path) -> None:
    common: dict[str, Any] = {"data": ground.alone(), "epochs": 1}
    ground.run(tmp_path / "same", **common)
    ground.run(tmp_path / "half", **common, anchor_dtype="bfloat16")
    first, second = (tmp_path / n / "pretrained.safetensors" for n in ("same", "half"))
    assert first.read_bytes() == second.read_bytes()
    assert not same_weights(tmp_path / "same", tmp_path / "half")
    assert_close(weights(tmp_path / "same"), weights(tmp_path / "half"), atol=0.02)


# Which checkpoint, and when


class Watching(Observer):
    """Notes what a run reports."""

    def __init__(self) -> None:
        self.saves: list[int] = []
        self.evaluations: list[int] = []
        self.checkpoints: list[int] = []

    def saved(self, *, step: int, path: Path) -> None:
        self.saves.append(step)
        self.checkpoints.append(len(list(path.parent.iterdir())))

    def evaluated(self, *, step: int, metrics: Mapping[str, float]) -> None:
        self.evaluations.append(step)


def test_evaluations_and_checkpoints_come_when_told(ground: TrainingGround, tmp_path: Path) -> None:
    watching = Watching()
    result = ground.run(
        tmp_path / "out", observer=watching, max_steps=11, eval_every=4, save_every=3, keep=3
    )
    assert result.steps == 11
    assert watching.evaluations == [0, 4, 8, 11]
    assert watching.saves == [3, 6, 9, 11]
    assert watching.checkpoints == [1, 2, 3, 3]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 6), (0.5, 3), (1.5, 9), (1.1, 7), (0.01, 1)])
def test_epochs_may_be_fractions(
    ground: TrainingGround, tmp_path: Path, epochs: float, steps: int
) -> None:
    watching = Watching()
    result = ground.run(tmp_path / "out", observer=watching, epochs=epochs)
    assert result.steps == steps
    assert watching.saves == [*range(6, steps, 6), steps]


def test_epochs_are_not_lengthened_by_rounding(ground: TrainingGround, tmp_path: Path) -> None:
    assert math.ceil(2.2 * 25) == 56  # the trap: 2.2 * 25 is 55.00000000000001
    result = ground.run(tmp_path / "out", data=ground.alone(50), batch_size=2, epochs=2.2)
    assert result.steps == 55


def test_the_best_evaluation_is_the_result(ground: TrainingGround, tmp_path: Path) -> None:
    result = ground.run(tmp_path / "best", lr=2e-3, epochs=6, eval_every=1, metric="f1")
    found = {
        r["step"]: r["eval_f1"] for r in records(tmp_path / "best") if "eval_f1" in r and r["step"]
    }
    best = max(found.values())
    assert result.chosen_step == min(step for step, value in found.items() if value == best)
    assert result.chosen_step < result.steps
    assert result.metrics["f1"] == best
    last = ground.run(
        tmp_path / "last", lr=2e-3, epochs=6, eval_every=1, metric="f1", select="last"
    )
    assert last.chosen_step == last.steps == result.steps
    assert last.metrics["f1"] == found[last.steps]
    assert not same_weights(tmp_path / "best", tmp_path / "last")
    for out, metrics in ((tmp_path / "best", result.metrics), (tmp_path / "last", last.metrics)):
        assert accuracy(out, ground.data().eval_file) == metrics["accuracy"]


def accuracy(checkpoint: Path, file: Path | None) -> float:
    assert file is not None
    model, tokenizer = load_plain(open_checkpoint(checkpoint)), load_tokenizer(checkpoint)
    lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    batch = tokenizer([line[0] for line in lines], padding=True, return_tensors="pt")
    with torch.no_grad():
        predicted = model(**batch).logits.argmax(1).tolist()
    return sum(p == int(line[1]) for p, line in zip(predicted, lines, strict=True)) / len(lines)


def test_the_smallest_error_is_the_best(ground: TrainingGround, tmp_path: Path) -> None:
    prepared = ground.prepared(task="regression")
    result = ground.run(tmp_path / "out", prepared=prepared, epochs=5, metric="mse", lr=0.02)
    found = {r["step"]: r["eval_mse"] for r in records(tmp_path / "out") if "eval_mse" in r}
    del found[0]
    assert result.metrics["mse"] == min(found.values()) < max(found.values())


def test_the_untrained_model_is_never_the_result(ground: TrainingGround, tmp_path: Path) -> None:
    result = ground.run(tmp_path / "out", lr=0.0, max_steps=2, eval_every=1)
    assert result.metrics == result.metrics_before
    assert result.chosen_step == 1


def test_a_metric_that_is_never_defined_leaves_the_last(
    ground: TrainingGround, tmp_path: Path
) -> None:
    data = ground.data()
    constant = write_tsv(tmp_path / "dev.tsv", ("sentence", "label"), [("a dog", 1), ("a", 1)])
    settings: dict[str, Any] = {
        "prepared": ground.prepared(task="regression"),
        "data": DataOptions(data.train_file, constant),
        "epochs": 2,
    }
    result = ground.run(tmp_path / "out", **settings)
    assert math.isnan(result.metrics["pearson"])
    assert result.chosen_step == result.steps
    again = ground.run(tmp_path / "out", **settings, resume=True)
    assert again.already_complete
    assert math.isnan(again.metrics["pearson"])


def test_early_stopping_waits_for_three_evaluations(ground: TrainingGround, tmp_path: Path) -> None:
    result = ground.run(tmp_path / "out", lr=0.0, epochs=20, eval_every=2, early_stopping=True)
    assert result.stopped_early
    assert (result.chosen_step, result.steps) == (2, 8)
    assert not ground.run(tmp_path / "all", lr=0.0, epochs=2, early_stopping=True).stopped_early


def test_without_evaluation_data_the_last_is_the_result(
    ground: TrainingGround, tmp_path: Path
) -> None:
    result = ground.run(tmp_path / "out", data=ground.alone(), max_steps=3)
    assert (result.metrics, result.metrics_before, result.chosen_step) == ({}, {}, 3)
    assert "not evaluated" in (tmp_path / "out" / "README.md").read_text()


# What it leaves behind


def test_the_result_is_a_mixout_checkpoint_like_the_prepared_one(
    ground: TrainingGround, tmp_path: Path
) -> None:
    prepared = ground.prepared()
    with real_curves():
        ground.run(tmp_path / "out", prepared=prepared, epochs=1)
    assert (tmp_path / "out" / "curves.png").read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    added = {"metrics.jsonl", "curves.png", "training.json"}
    assert names == {path.name for path in prepared.iterdir()} | added
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    ours = json.loads((tmp_path / "out" / "mixout_config.json").read_text())
    assert ours == json.loads((prepared / "mixout_config.json").read_text())
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (prepared / name).read_bytes()
    ours, theirs = (
        json.loads((folder / "tokenizer_config.json").read_text())
        for folder in (tmp_path / "out", prepared)
    )
    assert ours == {**theirs, "trained_max_length": POSITIONS, "model_max_length": POSITIONS}


def test_the_result_collapses_and_can_be_trained_again(
    ground: TrainingGround, tmp_path: Path
) -> None:
    ground.run(tmp_path / "out", epochs=1)
    collapse_checkpoint(tmp_path / "out", tmp_path / "plain")
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "out").keys()
    for key, value in weights(tmp_path / "out").items():
        assert torch.equal(weights(tmp_path / "plain")[key], value)
    anchors = mixout_layers(load_mixout(ground.prepared()))
    ground.run(tmp_path / "more", prepared=tmp_path / "out", epochs=1)
    for name, layer in mixout_layers(load_mixout(tmp_path / "more")).items():
        assert torch.equal(layer.pretrained_weight, anchors[name].pretrained_weight)


def test_plain_transformers_loads_the_result_without_a_word(
    ground: TrainingGround, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ground.run(tmp_path / "out", epochs=1)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                tmp_path / "out", output_loading_info=True
            )
    finally:
        logger.removeHandler(caplog.handler)
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []
    assert not any(info.values())
    assert type(model.bert.encoder.layer[0].attention.self.query) is torch.nn.Linear


@pytest.mark.parametrize(
    ("kind", "toward"),
    mostly_repeats(
        product(ARCHITECTURES, ("zero", "pretrained")), ("albert", "zero"), ("gpt2", "pretrained")
    ),
)
def test_every_architecture_trains(
    ground: TrainingGround, tmp_path: Path, kind: str, toward: str
) -> None:
    prepared = ground.prepared(kind)
    result = ground.run(tmp_path / "out", prepared=prepared, max_steps=2, decay_toward=toward)
    assert all(math.isfinite(value) for value in result.metrics.values())
    before, after = weights(prepared), weights(tmp_path / "out")
    mixed = json.loads((prepared / "mixout_config.json").read_text())["modules"]
    keys = [module["weight_key"] for module in mixed]
    assert all(not torch.equal(before[key], after[key]) for key in keys)
    load_mixout(tmp_path / "out")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_decoders_without_a_padding_token_train(
    ground: TrainingGround, tmp_path: Path, kind: str
) -> None:
    model = make_model(kind, pad_token_id=None)
    model.save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer(kind)
    tokenizer._special_tokens_map.pop("pad_token", None)
    tokenizer.add_special_tokens({"eos_token": "[SEP]"})
    tokenizer.save_pretrained(tmp_path / "base")
    assert load_tokenizer(tmp_path / "base").pad_token is None
    prepared = ground.prepared(kind, base=tmp_path / "base")
    result = ground.run(tmp_path / "out", prepared=prepared, epochs=8)
    assert result.metrics["accuracy"] > 0.9
    assert accuracy_one_by_one(tmp_path / "out", ground.data().eval_file) == pytest.approx(
        result.metrics["accuracy"]
    )


def accuracy_one_by_one(checkpoint: Path, file: Path | None) -> float:
    assert file is not None
    model, tokenizer = load_plain(open_checkpoint(checkpoint)), load_tokenizer(checkpoint)
    lines = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    right = 0
    for text, label in lines:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits
        right += int(logits.argmax()) == int(label)
    return right / len(lines)


def test_a_tracker_starts_in_the_runs_folder_and_ends_before_it_moves(
    ground: TrainingGround, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    partial, out = tmp_path / "out.partial", tmp_path / "out"

    class Run:
        def log(self, values: dict[str, Any], step: int, **_: Any) -> None:
            seen.append((step, sorted(values)))

        def finish(self) -> None:
            seen.append(("finish", partial.exists(), out.exists()))

    def init(project: str, **_: Any) -> Run:
        seen.append(("init", project))
        (partial / "tracked").mkdir()  # as tensorboard does
        return Run()

    fake = types.ModuleType("trackio")
    fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TRACKIO])
    ground.run(out, max_steps=2, tracker="trackio")
    assert seen[0] == ("init", "out")
    names = ["eval_accuracy", "eval_f1", "eval_loss", "eval_macro_f1", "eval_matthews"]
    assert seen[1] == (0, names)
    assert seen[-1] == ("finish", True, False)
    assert (out / "tracked").is_dir()


# Real data


@pytest.mark.real
@pytest.mark.repeats
def test_cola_is_learned_by_the_real_checkpoint(
    ground: TrainingGround, tmp_path: Path, real_checkpoint: Path, shared_data: Path
) -> None:
    def few(name: str, count: int) -> Path:
        lines = (shared_data / "glue" / "CoLA" / f"{name}.tsv").read_text().splitlines()
        short = [line for line in lines[1:] if len(line) < 60]
        (tmp_path / f"{name}.tsv").write_text("\n".join([lines[0], *short[:count]]) + "\n")
        return tmp_path / f"{name}.tsv"

    result = ground.run(
        tmp_path / "out",
        prepared=ground.prepared(base=real_checkpoint),
        data=DataOptions(few("train", 192), few("dev", 64)),
        lr=1e-4,
        epochs=2,
        batch_size=16,
        metric="matthews",
    )
    losses = [record["loss"] for record in records(tmp_path / "out") if "loss" in record]
    assert losses[-1] < losses[0]
    assert result.metrics["loss"] < result.metrics_before["loss"]
    assert result.metrics["accuracy"] >= 0.6
