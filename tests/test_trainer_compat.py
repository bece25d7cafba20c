"""Models with mixout under loops that know nothing of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints, make_tokenizer
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

from mixout_export import MixoutAdamW, MixoutConfig, inject_mixout, load_mixout, save_mixout
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.loading import load_plain
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.surgery.injection import mixout_layers

SENTENCES = ["the dog sleeps", "the dogs sleeps", "a cat sees him", "a cat sees he likes"] * 3


def examples() -> list[dict[str, object]]:
    tokenizer = make_tokenizer()
    return [{**tokenizer(s), "labels": index % 2} for index, s in enumerate(SENTENCES)]


def fit(
    model: PreTrainedModel,
    path: Path,
    *,
    resume: Path | None = None,
    optimizers: tuple[torch.optim.Optimizer | None, None] = (None, None),
    prepare: Callable[[Trainer], object] = lambda _: None,
    **options: object,
) -> Trainer:
    """Train three steps under an unmodified Trainer, which saves a checkpoint at each."""
    arguments = TrainingArguments(
        str(path),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        save_strategy="steps",
        save_steps=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        seed=3,
        **options,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=examples(),
        eval_dataset=examples(),
        processing_class=make_tokenizer(),
        data_collator=DataCollatorWithPadding(make_tokenizer()),
        optimizers=optimizers,
    )
    prepare(trainer)
    with quiet_libraries():
        trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def check_trained(model: PreTrainedModel, anchors: dict[str, torch.Tensor]) -> None:
    """Every mixed weight has moved and no anchor has."""
    for name, layer in mixout_layers(model).items():
        assert torch.equal(layer.pretrained_weight, anchors[name])
        assert not torch.equal(layer.weight, anchors[name])
        assert layer.p == 0.5


def check_folder(path: Path, model: PreTrainedModel, tmp_path: Path) -> None:
    """The folder loads and collapses to exactly the model's weights."""
    state = model.state_dict()
    again = load_mixout(path)
    assert again.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
    collapse_checkpoint(path, tmp_path / "collapsed")
    plain = load_file(tmp_path / "collapsed" / "model.safetensors")
    assert plain.keys() == {key for key in state if "pretrained_" not in key}
    assert all(torch.equal(value, state[key]) for key, value in plain.items())
    ids = torch.tensor([[2, 9, 30, 77, 3]])
    model.eval()
    expected = again(ids).logits
    assert torch.equal(load_plain(open_checkpoint(tmp_path / "collapsed"))(ids).logits, expected)
    torch.testing.assert_close(model(ids).logits, expected, rtol=0.0, atol=1e-5)
    config = json.loads((tmp_path / "collapsed" / "config.json").read_text())
    assert "mixout" not in config


def injected(tiny: TinyCheckpoints) -> PreTrainedModel:
    model = AutoModelForSequenceClassification.from_pretrained(tiny.classifier(labels=2))
    inject_mixout(model, MixoutConfig(p=0.5))
    return model


def test_an_injected_model_under_trainer(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = injected(tiny)
    anchors = {n: m.pretrained_weight.clone() for n, m in mixout_layers(model).items()}
    trainer = fit(model, tmp_path / "run")
    check_trained(model, anchors)
    trainer.save_model(str(tmp_path / "saved"))
    check_folder(tmp_path / "saved", model, tmp_path)
    checkpoint = load_mixout(tmp_path / "run" / "checkpoint-3")
    state = model.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in checkpoint.state_dict().items())
    first = load_mixout(tmp_path / "run" / "checkpoint-1")
    assert not torch.equal(first.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


def test_a_prepared_checkpoint_under_trainer(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    options = PrepareOptions(BaseOptions("text-classification"), MixoutConfig(p=0.5), dropout=0.05)
    prepare_checkpoint(str(tiny.base()), tmp_path / "prepared", options)
    model = load_mixout(tmp_path / "prepared")
    anchors = {n: m.pretrained_weight.clone() for n, m in mixout_layers(model).items()}
    trainer = fit(model, tmp_path / "run", gradient_checkpointing=True)
    check_trained(model, anchors)
    trainer.save_model(str(tmp_path / "saved"))
    check_folder(tmp_path / "saved", model, tmp_path)
    config = json.loads((tmp_path / "collapsed" / "config.json").read_text())
    assert config["hidden_dropout_prob"] == 0.1
    assert config.get("classifier_dropout") is None
    again = load_mixout(tmp_path / "saved")
    assert again.bert.embeddings.dropout.p == 0.05
    assert again.dropout.p == 0.1


def test_trainer_takes_the_best_checkpoint(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = injected(tiny)
    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    trainer = fit(model, tmp_path / "run", metric_for_best_model="loss", **options)
    best = load_mixout(Path(str(trainer.state.best_model_checkpoint))).state_dict()
    assert all(torch.equal(value, best[key]) for key, value in model.state_dict().items())


def test_trainer_resumes_exactly(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    whole, resumed = injected(tiny), injected(tiny)
    fit(whole, tmp_path / "run")
    fit(resumed, tmp_path / "resumed", resume=tmp_path / "run" / "checkpoint-1")
    state = resumed.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize("native", [True, False])
def test_a_plain_loop(native: bool, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    options = PrepareOptions(BaseOptions("text-classification"), MixoutConfig(p=0.5))
    prepare_checkpoint(str(tiny.base("gpt2")), tmp_path / "prepared", options)
    model = load_mixout(tmp_path / "prepared").train()
    anchors = {n: m.pretrained_weight.clone() for n, m in mixout_layers(model).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = DataCollatorWithPadding(make_tokenizer("gpt2"))(
        [{k: v for k, v in e.items() if k != "token_type_ids"} for e in examples()]
    )
    torch.manual_seed(0)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])
    check_trained(model, anchors)
    if native:
        save_mixout(model, tmp_path / "saved")
    else:
        with quiet_libraries():
            model.save_pretrained(tmp_path / "saved")
    check_folder(tmp_path / "saved", model, tmp_path)


def test_the_compact_optimizer_under_trainer(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """It trains as PyTorch's AdamW does: Trainer clips with its method and drops gradients."""

    def trained(name: str) -> dict[str, torch.Tensor]:
        model = injected(tiny)
        if name == "dense":
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        else:
            optimizer = MixoutAdamW(model, lr=1e-2)

        def prepare(trainer: Trainer) -> None:
            if isinstance(optimizer, MixoutAdamW):
                trainer.accelerator.clip_grad_norm_ = lambda _, limit: optimizer.clip_grad_norm_(
                    limit
                )

        fit(
            model, tmp_path / name, prepare=prepare, optimizers=(optimizer, None),
            gradient_accumulation_steps=3, max_grad_norm=0.01,
        )  # fmt: skip
        return model.state_dict()

    ours, dense = trained("ours"), trained("dense")
    for key, value in dense.items():
        torch.testing.assert_close(ours[key], value, rtol=0.0, atol=1e-5, msg=key)
