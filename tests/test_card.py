import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from mixout_export.card.document import MARK, Card, Section, read_card, write_card
from mixout_export.card.facts import (
    CollapseFacts,
    ExportFacts,
    OutputParity,
    ParityFacts,
    TrainingFacts,
)
from mixout_export.card.results import Evaluation
from mixout_export.card.steps import (
    collapsed_card,
    exported_card,
    prepared_card,
    strategy_name,
    trained_card,
)
from mixout_export.checkpoint.mixout_metadata import Base, Head, MixoutMetadata
from mixout_export.config import MixoutConfig
from mixout_export.tasks import TASKS

METRICS = {"loss": 0.4, "accuracy": 0.8125, "matthews": math.nan}
BEFORE = {"loss": 0.7, "accuracy": 0.5, "matthews": 0.0}
BASE_CARD = Card({"license": "mit", "language": ["en", False], "datasets": ["wiki"]}, "# Its words")


def metadata(p: float = 0.7, granularity: str = "neuron", **fields: Any) -> MixoutMetadata:
    made: dict[str, Any] = {
        "base": Base("some/base", "c0ffee", "ab" * 32),
        "task": "text-classification",
        "head": Head("dropout", 0.1),
    }
    return MixoutMetadata(
        config=MixoutConfig(p=p, granularity=granularity), modules=(), **{**made, **fields}
    )


def training(**fields: Any) -> TrainingFacts:
    made: dict[str, Any] = {
        "strategy": "mixout(0.7)",
        "settings": {"batch size": 32, "seed": 0},
        "evaluation": Evaluation("dev.tsv", METRICS, BEFORE),
        "curves": "curves.png",
    }
    return TrainingFacts(**{**made, **fields})


def export(**fields: Any) -> ExportFacts:
    made: dict[str, Any] = {
        "task": TASKS["text-classification"],
        "architecture": "BertForSequenceClassification",
        "precision": "fp32",
        "opset": 20,
        "needs": "It needs onnxruntime 1.17 or newer.",
        "inputs": ("input_ids", "attention_mask"),
        "parity": ParityFacts(
            [OutputParity("logits", 1.3e-6, 3e-7, 1.0)],
            "atol 1e-05, rtol 0.0001",
            (105, 105),
            {"vocabulary ids": "8192 of 30522"},
        ),
    }
    return ExportFacts(**{**made, **fields})


def trained(prepared: Card = BASE_CARD, **fields: Any) -> Card:
    return trained_card(metadata(), training(**fields), prepared)


def exact(card: Card) -> Card:
    return collapsed_card(metadata(), CollapseFacts(105, 0), card)


def by_the_hub(card: Card, folder: Path) -> ModelCard:
    """Write a card and read it as the hub's library does, which has to lose nothing."""
    write_card(card, folder / "README.md")
    loaded = ModelCard.load(folder / "README.md")
    again = read_card(folder / "README.md")
    assert loaded.data.to_dict() == again.header
    assert ModelCard(str(loaded)).data.to_dict() == again.header
    assert again.sections == tuple(Section(s.heading, s.text.strip()) for s in card.sections)
    assert again.to_text() == (folder / "README.md").read_text("utf-8")
    return loaded


def test_the_hub_reads_every_cards_header(tmp_path: Path) -> None:
    prepared = prepared_card(metadata(), BASE_CARD)
    first = by_the_hub(prepared, tmp_path).data
    assert (first.license, first.language, first.base_model) == ("mit", ["en", "no"], "some/base")
    assert (first.datasets, first.eval_results) == (None, None)  # the base's are not this model's

    done = trained(prepared)
    second = by_the_hub(done, tmp_path).data
    assert (second.library_name, second.pipeline_tag) == ("transformers", "text-classification")
    assert second.base_model_relation == "finetune"
    assert (second.license, second.metrics) == ("mit", ["accuracy", "matthews_correlation"])
    found = {result.metric_type: result.metric_value for result in second.eval_results}
    assert found == {"loss": 0.4, "accuracy": 0.8125}  # a NaN is no result

    third = by_the_hub(exact(done), tmp_path).data
    assert third.to_dict() == second.to_dict()

    fourth = by_the_hub(exported_card(export(), exact(done)), tmp_path).data
    assert (fourth.library_name, fourth.tags) == ("onnx", ["mixout", "onnx"])
    assert (fourth.license, fourth.base_model) == ("mit", "some/base")
    assert fourth.eval_results == second.eval_results


def test_a_base_in_a_folder_passes_on_what_it_was_made_of() -> None:
    second_round = metadata(base=Base("collapsed", None, "ab" * 32))
    card = prepared_card(second_round, Card({"base_model": "some/base"}))
    assert card.header["base_model"] == "some/base"
    assert prepared_card(second_round, Card()).header["base_model"] is None


def test_metrics_are_those_of_the_file_that_was_evaluated(tmp_path: Path) -> None:
    data = by_the_hub(trained(), tmp_path).data
    assert {r.dataset_name for r in data.eval_results} == {"dev.tsv"}
    assert {r.dataset_type for r in data.eval_results} == {"local-file"}
    assert data.datasets is None  # what the hub has not got is not named to it


def test_a_data_set_of_the_hub_is_named_to_it(tmp_path: Path) -> None:
    measured = Evaluation(
        "nyu-mll/glue:cola[validation]", METRICS, BEFORE, "nyu-mll/glue", "cola", "validation"
    )
    card = by_the_hub(trained(evaluation=measured, dataset="nyu-mll/glue"), tmp_path)
    assert card.data.datasets == ["nyu-mll/glue"]
    result = card.data.eval_results[0]
    assert (result.dataset_type, result.dataset_config) == ("nyu-mll/glue", "cola")
    assert result.dataset_split == "validation"


def test_what_nobody_said_is_not_in_the_header(tmp_path: Path) -> None:
    local = metadata(base=Base("bert", None, "ab" * 32))
    data = by_the_hub(prepared_card(local, Card()), tmp_path).data
    for name in ("license", "language", "base_model", "datasets"):
        assert data.get(name) is None


@pytest.mark.parametrize(
    ("base", "link", "expected"),
    [
        (Base("a/b", "c0", ""), "LICENSE", "https://huggingface.co/a/b/blob/c0/LICENSE"),
        (Base("b", None, ""), "LICENSE", None),
        (Base("b", None, ""), "https://x.test/l", "https://x.test/l"),
    ],
)
def test_a_licence_beside_the_base_is_still_found(
    tmp_path: Path, base: Base, link: str, expected: str | None
) -> None:
    said = Card({"license": "other", "license_name": "own", "license_link": link})
    data = by_the_hub(prepared_card(metadata(base=base), said), tmp_path).data
    assert (data.license, data.license_name, data.license_link) == ("other", "own", expected)


def test_the_text_holds_what_happened(tmp_path: Path) -> None:
    text = by_the_hub(exported_card(export(), exact(trained())), tmp_path).text
    for part in (
        "# base for text-classification",
        "some/base, finetuned for text-classification with mixout(0.7)",
        "| accuracy | 0.5000 | 0.8125 |",
        "| matthews | 0.0000 | nan |",
        "| batch size | 32 |",
        "| logits | 1.3e-06 | 3.0e-07 | 100 % |",
        "| vocabulary ids | 8192 of 30522 |",
        "| weights found | 105 of 105 |",
        "| criterion | atol 1e-05, rtol 0.0001 |",
        "@inproceedings{lee2020mixout",
    ):
        assert part in text
    assert "curves.png" not in text  # which lies beside the trained checkpoint only


def test_a_card_lists_the_labels_and_says_whose_f1_it_is(tmp_path: Path) -> None:

    def text(task: str, labels: tuple[str, ...], metric: str = "f1") -> str:
        facts = training(evaluation=Evaluation("dev.tsv", {metric: 0.8}, {metric: 0.1}))
        return by_the_hub(
            trained_card(metadata(task=task, labels=labels), facts, Card()), tmp_path
        ).text

    two = text("text-classification", ("bad", "good_one"))
    assert "| labels | bad, good\\_one |" in two
    assert "f1 is the F1 of the label “good\\_one”." in two
    many = tuple(f"label{number}" for number in range(60))
    assert "macro F1" in text("text-classification", many)
    assert "label49 and 10 more" in text("text-classification", many)
    assert "whole entities" in text("token-classification", ("O", "B-PER"))
    assert "all labels together" in text("multi-label", ("a", "b"), "micro_f1")
    assert "F1 of" not in text("text-classification", ("bad", "good"), "accuracy")


def test_collapsing_is_told_exactly(tmp_path: Path) -> None:
    text = by_the_hub(exact(trained()), tmp_path).text
    assert "| 105 of 105 | trained, bit for bit |" in text


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (CollapseFacts(105, 100, 0.5), "| 100 of 105 | (1 - 0.5) · pretrained + 0.5 · trained |"),
        (CollapseFacts(105, 0, 1.0, "float16"), "converted to float16"),
    ],
)
def test_another_models_metrics_are_not_claimed(
    tmp_path: Path, facts: CollapseFacts, said: str
) -> None:
    card = by_the_hub(collapsed_card(metadata(), facts, trained()), tmp_path)
    assert card.data.eval_results is None
    assert card.data.metrics is None
    assert "Measured before the weights were changed" in card.text
    assert "| accuracy | 0.5000 | 0.8125 |" in card.text
    assert said in card.text


@pytest.mark.parametrize("changed", [{"precision": "int8"}, {"parity": None}])
def test_a_graph_that_may_decide_otherwise_claims_no_metrics(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    card = by_the_hub(exported_card(export(**changed), exact(trained())), tmp_path)
    assert card.data.eval_results is None
    assert "Measured with PyTorch, before the export." in card.text
    assert ("not compared with PyTorch" in card.text) == ("parity" in changed)


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    written = by_the_hub(trained(evaluation=None, curves=None), tmp_path)
    assert written.data.eval_results is None
    assert "It was not evaluated." in written.text
    assert "curves" not in written.text


def test_what_a_user_adds_travels_along(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    write_card(trained(), path)
    text = path.read_text("utf-8").replace("license: mit", "license: mit\nthumbnail: x.png")
    path.write_text(text + "\n## Limits\n\n```\n## no heading\n```\nOnly short texts.\n", "utf-8")
    card = exported_card(export(), exact(read_card(path)))
    assert card.section("Limits") == "```\n## no heading\n```\nOnly short texts."
    assert exact(read_card(path)).header["thumbnail"] == "x.png"
    headings = [section.heading for section in card.sections]
    assert headings == sorted(set(headings), key=headings.index)
    assert headings[-3:] == ["Parity", "Use", "Citation"]


def test_a_card_that_another_trainer_wrote_is_kept(tmp_path: Path) -> None:
    theirs = Card({"license": "mit", "tags": ["x"]}, "# My model\n\nIt is good.", ())
    card = by_the_hub(exact(theirs), tmp_path)
    assert "# My model\n\nIt is good." in card.text
    assert "bit for bit" in card.text
    assert card.data.tags == ["x", "mixout"]


def test_a_plain_models_graph_names_it_and_keeps_its_licence(tmp_path: Path) -> None:
    theirs = Card(
        {"license": "mit", "pipeline_tag": "x", "datasets": ["wiki"]},
        "# My *model*\n\nCall model.encode.",
        (Section("Usage", "SentenceTransformer"),),
    )
    card = by_the_hub(exported_card(export(), theirs), tmp_path)
    assert (card.data.license, card.data.datasets) == ("mit", ["wiki"])
    assert card.data.pipeline_tag == "text-classification"
    assert "# My *model*\n\nThis model is My *model* in ONNX (fp32, opset 20)" in card.text
    assert "encode" not in card.text
    assert "SentenceTransformer" not in card.text
    assert "Mixout" not in card.text  # nothing says that it has to do with it


def test_a_folder_without_a_card_gets_one(tmp_path: Path) -> None:
    assert "# base for text-classification" in by_the_hub(exact(Card()), tmp_path).text
    graph = by_the_hub(exported_card(export(), Card()), tmp_path)
    assert "# BertForSequenceClassification" in graph.text


@pytest.mark.parametrize(
    "name",
    [
        "a: b",
        "{braces}",
        "--- #",
        "naïve “quoted” 'x'",
        "a|b",
        "](x)",
        "<b>",
        "*x*_y_`z`",
        "a\n---\nb",
    ],
)
def test_names_with_odd_characters_break_nothing(tmp_path: Path, name: str) -> None:
    facts = training(evaluation=Evaluation(name, METRICS, BEFORE), settings={"base": name})
    odd = metadata(base=Base(name, None, "ab" * 32))
    card = exact(trained_card(odd, facts, prepared_card(odd, Card())))
    written = by_the_hub(card, tmp_path)
    assert written.data.eval_results[0].dataset_name == name
    lines = [line for line in written.text.splitlines() if line.startswith("| base")]
    assert len(lines) == 1
    assert lines[0].replace("\\|", "").count("|") == 3
    assert "<b>" not in written.text.replace("\\<b", "")


@pytest.mark.parametrize("end", ["\n", "\r\n", "  \n", "\t\n", ""])
def test_what_may_follow_a_header_loses_nothing(tmp_path: Path, end: str) -> None:
    (tmp_path / "README.md").write_bytes(f"---\nlicense: mit\n---{end}".encode())
    assert read_card(tmp_path / "README.md") == Card({"license": "mit"})


def test_a_users_entries_survive_the_next_step(tmp_path: Path) -> None:
    """Entries that `ModelCard` drops, merges or cannot read are kept as they are."""
    path = tmp_path / "README.md"
    theirs = {
        "own": {"nested": [1, "two"]},
        "ignore_metadata_errors": True,
        "self": "me",
        7: "seven",
        "model-index": [{"name": name, "results": [], "own": name} for name in ("a", "b")],
    }
    write_card(replace(trained(), header={**trained().header, **theirs}), path)
    again = exact(read_card(path)).header
    assert {key: again[key] for key in theirs} == theirs


@pytest.mark.parametrize("header", ["a: [", "date: 2024-13-45", "[" * 3000, "a: b: c"])
def test_a_header_that_is_no_yaml_is_left_out(
    header: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"---\n{header}\n---\n# Words\n")
    assert read_card(path) == Card({}, "# Words")
    assert "its header is not YAML" in caplog.text
    path.write_bytes(b"\xff\xfe")
    assert read_card(path) == Card() == read_card(tmp_path / "none")


def test_the_mark_is_not_shown() -> None:
    assert MARK.startswith("<!--")
    assert MARK.endswith("-->")


@pytest.mark.parametrize(
    ("made", "options", "expected"),
    [
        (metadata(), ("zero", 0.0), "mixout(0.7)"),
        (metadata(p=0.0), ("zero", 0.01), "no mixout + wdecay(0, 0.01)"),
        (
            metadata(granularity="element"),
            ("pretrained", 0.01),
            "element mixout(0.7) + wdecay(pre, 0.01)",
        ),
        (
            metadata(p=0.0, dropout=0.1),
            ("zero", 0.01),
            "no mixout + dropout(0.1) + wdecay(0, 0.01)",
        ),
    ],
)
def test_strategies_are_named_as_in_the_paper(
    made: MixoutMetadata, options: tuple[str, float], expected: str
) -> None:
    named = strategy_name(made, decay_toward=options[0], weight_decay=options[1])
    assert named == expected


@pytest.mark.parametrize(
    ("task", "pipeline"),
    [
        ("regression", "text-classification"),
        ("multi-label", "text-classification"),
        ("token-classification", "token-classification"),
        ("question-answering", "question-answering"),
        ("multiple-choice", "multiple-choice"),
        ("masked-lm", "fill-mask"),
        ("causal-lm", "text-generation"),
    ],
)
def test_every_task_has_the_hubs_name(tmp_path: Path, task: str, pipeline: str) -> None:
    card = trained_card(metadata(task=task), training(), Card())
    written = by_the_hub(card, tmp_path)
    assert written.data.pipeline_tag == pipeline
    assert {result.task_type for result in written.data.eval_results} == {pipeline}
    assert f"finetuned for {task} with" in written.text
