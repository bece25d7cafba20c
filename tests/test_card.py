import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mixout_export.checkpoint.manifest import Base, Head, Manifest
from mixout_export.config import MixoutConfig
from mixout_export.training.card import CardFacts, strategy_name, write_card
from mixout_export.training.options import TrainOptions


def manifest(p: float = 0.7, granularity: str = "neuron", **fields: Any) -> Manifest:
    return Manifest(
        config=MixoutConfig(p=p, granularity=granularity),
        modules=(),
        pretrained_sha256="0" * 64,
        base=Base("some/base", None, "ab" * 32),
        **{"task": "text-classification", "head": Head("dropout", 0.1), **fields},
    )


def facts(**fields: Any) -> CardFacts:
    made: dict[str, Any] = {
        "name": "trained",
        "manifest": manifest(),
        "options": TrainOptions(lr=5e-5, batch_size=16, gradient_accumulation=2),
        "dataset": "CoLA",
        "metrics": {"loss": 0.4, "accuracy": 0.8125, "matthews": math.nan},
        "metrics_before": {"loss": 0.7, "accuracy": 0.5, "matthews": 0.0},
        "train_examples": 128,
        "steps": 40,
        "chosen_step": 30,
        "curves": "curves.png",
    }
    return CardFacts(**{**made, **fields})


def card(tmp_path: Path, **fields: Any) -> ModelCard:
    write_card(facts(**fields), tmp_path / "README.md")
    return ModelCard.load(tmp_path / "README.md")


def test_the_hub_reads_the_header(tmp_path: Path) -> None:
    data = card(tmp_path).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-classification")
    assert "mixout" in data.tags
    found = {result.metric_type: result.metric_value for result in data.eval_results}
    assert found == {"loss": 0.4, "accuracy": 0.8125}  # a NaN is no result
    assert {result.dataset_name for result in data.eval_results} == {"CoLA"}


def test_the_text_holds_what_happened(tmp_path: Path) -> None:
    text = card(tmp_path).text
    for part in (
        "# trained",
        "some/base finetuned for text-classification with mixout(0.7) + wdecay(0, 0.01)",
        "| accuracy | 0.5000 | 0.8125 |",
        "| matthews | 0.0000 | nan |",
        "| batch size | 32 |",
        "| peak learning rate | 5e-05 |",
        "40, the model is that of update 30",
        "ab" * 32,
        "(curves.png)",
        'from_pretrained("trained")',
    ):
        assert part in text


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    written = card(tmp_path, metrics={}, metrics_before={}, curves=None)
    assert written.data.eval_results is None
    assert "It was not evaluated." in written.text
    assert "curves" not in written.text


@pytest.mark.parametrize("name", ["a: b", "{braces}", "--- #", "naïve “quoted” 'x'"])
def test_names_with_odd_characters_do_not_break_the_header(tmp_path: Path, name: str) -> None:
    written = card(tmp_path, dataset=name, name=name)
    assert written.data.model_name == name
    assert written.data.eval_results[0].dataset_name == name


@pytest.mark.parametrize(
    ("made", "options", "expected"),
    [
        (manifest(), TrainOptions(weight_decay=0.0), "mixout(0.7)"),
        (manifest(p=0.0), TrainOptions(), "no mixout + wdecay(0, 0.01)"),
        (
            manifest(granularity="element"),
            TrainOptions(decay_toward="pretrained"),
            "element mixout(0.7) + wdecay(pre, 0.01)",
        ),
        (
            manifest(p=0.0, dropout=0.1),
            TrainOptions(),
            "no mixout + dropout(0.1) + wdecay(0, 0.01)",
        ),
    ],
)
def test_strategies_are_named_as_in_the_paper(
    made: Manifest, options: TrainOptions, expected: str
) -> None:
    assert strategy_name(made, options) == expected


def test_regression_is_found_among_text_classification_on_the_hub(tmp_path: Path) -> None:
    written = card(tmp_path, manifest=manifest(task="regression"), metrics={"pearson": 0.5})
    assert written.data.pipeline_tag == "text-classification"


@pytest.mark.parametrize(
    ("task", "pipeline", "auto_class"),
    [
        ("multi-label", "text-classification", "AutoModelForSequenceClassification"),
        ("token-classification", "token-classification", "AutoModelForTokenClassification"),
        ("question-answering", "question-answering", "AutoModelForQuestionAnswering"),
        ("multiple-choice", "multiple-choice", "AutoModelForMultipleChoice"),
        ("masked-lm", "fill-mask", "AutoModelForMaskedLM"),
        ("causal-lm", "text-generation", "AutoModelForCausalLM"),
    ],
)
def test_every_task_has_the_hubs_name_and_its_own_class(
    tmp_path: Path, task: str, pipeline: str, auto_class: str
) -> None:
    written = card(tmp_path, manifest=manifest(task=task))
    assert written.data.pipeline_tag == pipeline
    assert f"from transformers import {auto_class}, AutoTokenizer" in written.text
    assert f"model = {auto_class}.from_pretrained" in written.text
    assert f"finetuned for {task} with" in written.text
