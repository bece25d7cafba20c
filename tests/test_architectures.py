"""Run the complete workflow on a few of the families that `make matrix` runs."""

import datetime
from pathlib import Path

import pytest
from repeats import mostly_repeats

from matrix.document import make_document
from matrix.families import families
from matrix.outcome import STAGES, Outcome, read_outcome
from matrix.tiny import make_config
from matrix.worker import run_family


@pytest.mark.parametrize(
    "family",
    mostly_repeats(
        ("distilbert", "gpt2", "llama", "bart", "vit", "resnet"), "distilbert", "resnet"
    ),
)
def test_family_passes_all_stages(tmp_path: Path, family: str) -> None:
    run_family(families()[family], tmp_path, memory=None)
    outcome = read_outcome(tmp_path, family)
    assert outcome is not None
    assert (outcome.failed, outcome.reason) == ("", "")
    assert tuple(outcome.passed) == STAGES
    assert outcome.complete


def test_page_counts_what_exports_and_names_what_does_not_pass() -> None:
    outcomes = [
        Outcome("a", "A", versions={"torch": "2"}, unmodified=True, passed=list(STAGES)),
        Outcome("b", "B", unmodified=True, passed=["inject"], failed="step", reason="x | y"),
        Outcome("c", "C", unmodified=False, passed=[*STAGES[:3]], failed="onnx", reason="no"),
        Outcome("d", "D", failed="build", reason="needs more"),
    ]
    page = make_document(outcomes, "python -m matrix", datetime.date(2026, 1, 2))
    assert "1 of 2 families whose unmodified model exports pass: 50.0%" in page
    assert "1 of all 4 families pass: 25.0%" in page
    assert "`python -m matrix`, 2026-01-02, torch 2." in page
    assert "| a | `A` | yes | ✓ | ✓ | ✓ | ✓ | ✓ |  |" in page
    assert "| b | `B` | yes | ✓ | ✗ | – | – | – | x \\| y |" in page
    assert "| d | `D` | – | – | – | – | – | – | build: needs more |" in page


@pytest.mark.parametrize("family", ["bert", "bart", "mixtral", "gemma2", "zamba2"])
def test_configurations_are_tiny_and_have_a_layer_of_each_kind(family: str) -> None:
    config = make_config(family).get_text_config()
    assert config.hidden_size <= 32
    assert config.vocab_size <= 120
    kinds = getattr(config, "layer_types", None) or ["one"]
    assert len(kinds) <= 4
