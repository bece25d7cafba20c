import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TinyCheckpoints, make_model, make_tokenizer
from training_runs import TrainingGround, write_tsv

from mixout_export import load_mixout
from mixout_export.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    MixoutError,
    OutputError,
    TrainingError,
)
from mixout_export.stages.train import DataOptions
from mixout_export.stages.train.settings import check_agreement


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


def refusal(ground: TrainingGround, out: Path, kind: type[MixoutError], **arguments: Any) -> str:
    """Return the one sentence that a run is refused with, having left nothing behind."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind) as caught:
        ground.run(out, **arguments)
    assert sorted(out.parent.iterdir()) == before
    message = str(caught.value)
    assert "\n" not in message
    assert not message.endswith(".")
    return message


def rows(path: Path, *values: tuple[Any, ...], header: tuple[str, ...] = ("text", "label")) -> Path:
    return write_tsv(path, header, list(values))


# The checkpoint


def test_a_classifier_that_cannot_find_the_end_of_a_text(
    ground: TrainingGround, tmp_path: Path
) -> None:
    make_model("gpt2", pad_token_id=None).save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer("gpt2")
    tokenizer._special_tokens_map.pop("pad_token", None)
    tokenizer.save_pretrained(tmp_path / "base")
    prepared = ground.prepared("gpt2", base=tmp_path / "base")
    message = refusal(ground, tmp_path / "out", CheckpointError, prepared=prepared)
    assert "as pad_token in tokenizer_config.json" in message


def test_no_such_checkpoint(ground: TrainingGround, tmp_path: Path) -> None:
    message = refusal(ground, tmp_path / "out", CheckpointError, prepared=tmp_path / "absent")
    assert str(tmp_path / "absent") in message


def test_a_checkpoint_that_was_not_prepared(
    ground: TrainingGround, tmp_path: Path, tiny: TinyCheckpoints
) -> None:
    message = refusal(ground, tmp_path / "out", CheckpointError, prepared=tiny.classifier())
    assert "prepare" in message


def test_an_encoder_is_no_causal_model(ground: TrainingGround, tmp_path: Path) -> None:
    prepared = ground.prepared(task="causal-lm")
    message = refusal(ground, tmp_path / "out", CheckpointError, prepared=prepared)
    assert "BertLMHeadModel: sees the tokens that it predicts" in message
    assert "masked-lm" in message


def test_a_checkpoint_without_a_tokenizer(ground: TrainingGround, tmp_path: Path) -> None:
    prepared = shutil.copytree(ground.prepared(), tmp_path / "prepared")
    for file in prepared.glob("tokenizer*"):
        file.unlink()
    message = refusal(ground, tmp_path / "out", CheckpointError, prepared=prepared)
    assert "no tokenizer files" in message


def test_anchors_that_are_not_the_recorded_ones(ground: TrainingGround, tmp_path: Path) -> None:
    prepared = shutil.copytree(ground.prepared(), tmp_path / "prepared")
    anchors = prepared / "pretrained.safetensors"
    data = bytearray(anchors.read_bytes())
    data[-1] ^= 1
    anchors.unlink()
    anchors.write_bytes(data)
    message = refusal(ground, tmp_path / "out", CheckpointError, prepared=prepared)
    assert "SHA-256" in message


def test_decay_toward_what_is_not_there(ground: TrainingGround, tmp_path: Path) -> None:
    model = load_mixout(ground.prepared())
    model.config.mixout = {**model.config.mixout}
    model.save_pretrained(tmp_path / "foreign")  # as another trainer saves it
    for file in ground.prepared().glob("tokenizer*"):
        shutil.copy(file, tmp_path / "foreign")
    message = refusal(
        ground,
        tmp_path / "out",
        CheckpointError,
        prepared=tmp_path / "foreign",
        decay_toward="pretrained",
    )
    assert "--decay-toward zero" in message


# Options


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"max_length": 65}, ("max-length", "65", "64 tokens")),
        ({"max_length": 2}, ("max-length", "2", "tokens")),
        ({"device": None, "precision": "fp16"}, ("fp16 needs a GPU",)),
        ({"device": "tpu"}, ("device", "'tpu'", "cpu, cuda")),
        ({"device": "cuda:99"}, ("'cuda:99' is not available",)),
        ({"tracker": "wandb"}, ("wandb is not installed", "pip install wandb")),
        ({"metric": "bleu"}, ("'bleu'", "accuracy, f1, matthews")),
        ({"metric": "pearson"}, ("'pearson'", "text-classification")),
    ],
    ids=str,
)
def test_options_that_cannot_be_met(
    ground: TrainingGround, tmp_path: Path, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    message = refusal(ground, tmp_path / "out", ArgumentError, **options)
    for part in parts:
        assert part in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there(ground: TrainingGround, tmp_path: Path) -> None:
    assert "not available" in refusal(ground, tmp_path / "out", ArgumentError, device="cuda")


@pytest.mark.parametrize(
    "options", [{"early_stopping": True}, {"select": "best"}, {"eval_every": 2}], ids=str
)
def test_options_that_need_evaluation_data(
    ground: TrainingGround, tmp_path: Path, options: dict[str, Any]
) -> None:
    message = refusal(ground, tmp_path / "out", ArgumentError, data=ground.alone(), **options)
    assert "--eval-file" in message


def test_a_model_that_cannot_recompute_activations(
    ground: TrainingGround, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.BertForSequenceClassification.supports_gradient_checkpointing", False
    )
    message = refusal(ground, tmp_path / "out", ArgumentError, gradient_checkpointing=True)
    assert "BertForSequenceClassification does not support it" in message


# The data


@pytest.mark.parametrize(
    "data",
    [DataOptions(), DataOptions(train_file=Path("train.tsv"), dataset="nyu-mll/glue:cola")],
    ids=["none", "both"],
)
def test_one_source_of_data_is_needed(
    ground: TrainingGround, tmp_path: Path, data: DataOptions
) -> None:
    message = refusal(ground, tmp_path / "out", ArgumentError, data=data)
    assert "either --train-file or --dataset" in message


def test_a_dataset_and_an_evaluation_file_do_not_go_together(
    ground: TrainingGround, tmp_path: Path
) -> None:
    data = DataOptions(dataset="nyu-mll/glue:cola", eval_file=ground.data().eval_file)
    message = refusal(ground, tmp_path / "out", ArgumentError, data=data)
    assert "--eval-file" in message


@pytest.mark.parametrize(
    ("train", "evaluation", "parts"),
    [
        ([("a dog", 2)], [("a", 1)], ("train.tsv", "'2'", "row 1 (line 2)", "--labels")),
        ([("a dog", 1)], [("a", "x")], ("dev.tsv", "'x'", "row 1 (line 2)")),
        ([("a dog", 1), ("", 0)], [("a", 1)], ("train.tsv", "'text'", "row 2 (line 3)")),
        ([("a dog", 1)], [("a", "")], ("dev.tsv", "'label'", "row 1 (line 2)")),
        ([], [("a", 1)], ("train.tsv", "no rows")),
        ([("a dog", 1)], [], ("dev.tsv", "no rows")),
    ],
)
def test_data_that_do_not_fit(
    ground: TrainingGround,
    tmp_path: Path,
    train: list[tuple[Any, ...]],
    evaluation: list[tuple[Any, ...]],
    parts: tuple[str, ...],
) -> None:
    data = DataOptions(
        rows(tmp_path / "train.tsv", *train), rows(tmp_path / "dev.tsv", *evaluation)
    )
    message = refusal(ground, tmp_path / "out", DataError, data=data)
    for part in parts:
        assert part in message


def test_evaluation_data_must_have_the_same_columns(ground: TrainingGround, tmp_path: Path) -> None:
    data = DataOptions(
        rows(tmp_path / "train.tsv", ("a", "b", 1), header=("sentence1", "sentence2", "label")),
        rows(tmp_path / "dev.tsv", ("a", 1), header=("sentence", "label")),
    )
    message = refusal(ground, tmp_path / "out", DataError, data=data)
    assert "dev.tsv" in message
    assert "'sentence2'" in message
    assert "its columns are sentence, label" in message


def test_words_where_numbers_are_expected(ground: TrainingGround, tmp_path: Path) -> None:
    data = DataOptions(rows(tmp_path / "train.tsv", ("a dog", 0.5), ("a cat", "high")))
    message = refusal(
        ground,
        tmp_path / "out",
        DataError,
        prepared=ground.prepared(task="regression"),
        data=data,
    )
    assert "'high'" in message
    assert "row 2 (line 3)" in message
    assert "number" in message


def test_a_missing_column_names_those_there_are(ground: TrainingGround, tmp_path: Path) -> None:
    data = DataOptions(ground.data().train_file, text_column="review")
    message = refusal(ground, tmp_path / "out", DataError, data=data)
    assert "no column 'review'" in message
    assert "its columns are sentence, label" in message


# The destination


def test_an_out_that_is_not_empty_stays_as_it_is(ground: TrainingGround, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("work")
    for resume in (False, True):
        assert "--overwrite" in refusal(ground, out, OutputError, resume=resume)
    assert (out / "precious").read_text() == "work"
    ground.run(out, max_steps=1, overwrite=True)
    assert not (out / "precious").exists()
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize("inside", ["", "/inside"])
def test_an_out_in_the_source(ground: TrainingGround, tmp_path: Path, inside: str) -> None:
    prepared = shutil.copytree(ground.prepared(), tmp_path / "prepared")
    message = refusal(
        ground, Path(f"{prepared}{inside}"), ArgumentError, prepared=prepared, overwrite=True
    )
    assert "source" in message


def test_the_training_file_is_no_destination(ground: TrainingGround, tmp_path: Path) -> None:
    file = shutil.copy(ground.data().train_file, tmp_path / "train.tsv")  # type: ignore[type-var]
    data = DataOptions(Path(file))
    refusal(ground, Path(file), ArgumentError, data=data, overwrite=True)
    assert Path(file).exists()


@pytest.mark.parametrize("share", [0.1, 0.9, 1.1], ids=["tokenizer", "weights", "optimizer"])
def test_a_full_disk_is_one_sentence(ground: TrainingGround, tmp_path: Path, share: float) -> None:
    """No file may grow above a share of the weights' size; the optimizer's state is twice that."""
    prepared, data = ground.prepared(), ground.alone()
    limit = int(share * (prepared / "model.safetensors").stat().st_size)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        with pytest.raises(OutputError, match="cannot be written") as caught:
            ground.run(tmp_path / "out", prepared=prepared, data=data, max_steps=2, save_every=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    ground.run(
        tmp_path / "out", prepared=prepared, data=data, max_steps=2, save_every=1, resume=True
    )
    assert (tmp_path / "out" / "model.safetensors").exists()


# Runs that cannot go on


@pytest.mark.parametrize("evaluated", [True, False], ids=["evaluated", "alone"])
def test_a_loss_that_is_not_finite_stops_at_the_last_good_checkpoint(
    ground: TrainingGround,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluated: bool,
) -> None:
    data = ground.data() if evaluated else ground.alone()
    poison = ground_poison(at=5)
    monkeypatch.setattr("mixout_export.training.optimizer.PretrainedDecay.apply", poison)
    with pytest.raises(TrainingError) as caught:
        ground.run(
            tmp_path / "out",
            data=data,
            max_steps=8,
            save_every=2,
            decay_toward="pretrained",
        )
    message = str(caught.value)
    assert "the loss became nan at step 6" in message
    assert "step-00000004" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()
    kept = tmp_path / "out.partial" / "checkpoints" / "step-00000004"
    assert str(kept) in message
    assert all(p.isfinite().all() for p in load_mixout(kept).parameters())


def ground_poison(*, at: int) -> Callable[..., None]:
    """Return a decay that makes a weight NaN in one step."""
    calls = []

    def apply(self: Any, lr: float) -> None:
        calls.append(lr)
        if len(calls) == at:
            self.groups[1.0].weights[0].fill_(float("nan"))

    return apply


def test_an_exploding_rate_never_becomes_the_best(ground: TrainingGround, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"the evaluation loss became (nan|inf) at step \d"):
        ground.run(tmp_path / "out", lr=1e30, warmup_ratio=0.0, max_steps=4, eval_every=1)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial" / "best").exists()


def test_an_exploding_rate_without_evaluation_is_seen_in_the_loss(
    ground: TrainingGround, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"the (loss|gradient norm) became (nan|inf) at step 2"):
        ground.run(tmp_path / "out", data=ground.alone(), lr=1e30, warmup_ratio=0.0, max_steps=4)


def test_processes_must_agree() -> None:
    settings = {"options": {"lr": 1.0}, "prepared_sha256": "a", "data": {}}
    check_agreement([settings, dict(settings)])
    with pytest.raises(ArgumentError, match=r"process 2: its prepared sha256 differ"):
        check_agreement([settings, settings, {**settings, "prepared_sha256": "b"}])


def test_the_environment_is_left_as_it_was(ground: TrainingGround, tmp_path: Path) -> None:
    before = dict(os.environ)
    ground.run(tmp_path / "out", data=ground.alone(), max_steps=1)
    with pytest.raises(ArgumentError):
        ground.run(tmp_path / "other", metric="bleu")
    assert {k: v for k, v in os.environ.items() if "ACCELERATE" in k} == {
        k: v for k, v in before.items() if "ACCELERATE" in k
    }
    # Another run in this process may choose another precision.
    ground.run(tmp_path / "half", data=ground.alone(), max_steps=1, precision="bf16")
