"""transformers.js under Node tokenizes, computes and labels as Python does."""

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from processes import ENVIRONMENTS, needs
from stations import NAME, SENTENCES, Answer, Stations

pytestmark = [pytest.mark.servers, pytest.mark.real]

ENVIRONMENT = ENVIRONMENTS / "node"

DTYPES = {"fp32": "fp32", "fp16": "fp16", "int8": "q8"}


@cache
def classified(bundle: Path, dtype: str) -> Any:
    """Return what transformers.js says of `SENTENCES`."""
    script = Path(__file__).with_name("classify.mjs")
    where = (ENVIRONMENT / "node_modules", bundle.parent, bundle.name, dtype)
    done = subprocess.run(
        ["node", script, *where], input=json.dumps(SENTENCES), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def bundle(stations: Stations) -> Path:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    needs(ENVIRONMENT)
    return stations.bundle("transformers-js")


def same(found: list[dict[str, Any]], expected: list[Answer]) -> None:
    assert [each["label"] for each in found] == [each.label for each in expected]
    scores = [each.score for each in expected]
    assert [each["score"] for each in found] == pytest.approx(scores, abs=1e-4)


def test_labels_and_scores_are_those_of_the_trained_model(bundle: Path, stations: Stations) -> None:
    found = classified(bundle, "fp32")
    same(found["answers"], stations.answers())
    assert bundle.name == NAME


def test_a_batch_is_padded_without_a_trace(bundle: Path, stations: Stations) -> None:
    same(classified(bundle, "fp32")["together"], stations.answers())


def test_tokens_are_pythons(bundle: Path, stations: Stations) -> None:
    for sentence, found in zip(SENTENCES, classified(bundle, "fp32")["tokens"], strict=True):
        assert found == stations.tokens(sentence)["input_ids"][0].tolist()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_smaller_files_give_what_they_give_in_python(
    precision: str, bundle: Path, stations: Stations
) -> None:
    found = classified(bundle, DTYPES[precision])
    same(found["answers"], stations.answers_of_graph(precision))
