"""onnxruntime 1.17, the oldest that graphs name at the usual operator set, runs each precision."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from processes import ENVIRONMENTS, needs
from stations import LABELS, SENTENCES, Stations

pytestmark = [pytest.mark.servers, pytest.mark.real]

ENVIRONMENT = ENVIRONMENTS / "onnxruntime"


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_old_onnxruntime_gives_the_graphs_answers(
    precision: str, stations: Stations, tmp_path: Path
) -> None:
    needs(ENVIRONMENT)
    given = {
        f"{number:02}/{name}": value.astype(np.int64)
        for number, sentence in enumerate(SENTENCES)
        for name, value in stations.tokens(sentence).items()
    }
    np.savez(tmp_path / "inputs.npz", **given)
    script = Path(__file__).with_name("onnxruntime_run.py")
    graph = stations.graph(precision) / "model.onnx"
    files = (tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    subprocess.run([ENVIRONMENT / "bin" / "python", script, graph, *files], check=True)
    found = np.load(tmp_path / "outputs.npz")
    for number, answer in enumerate(stations.answers_of_graph(precision)):
        logits = found[f"{number:02}"][0].astype(np.float64)
        scores = np.exp(logits) / np.exp(logits).sum()
        assert LABELS[scores.argmax()] == answer.label
        assert scores.max() == pytest.approx(answer.score, abs=1e-3)
