"""OpenVINO computes with a bundle's graph what PyTorch computes with the model."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from processes import ENVIRONMENTS, needs
from stations import LABELS, NAME, SENTENCES, Stations

pytestmark = [pytest.mark.servers, pytest.mark.real]

ENVIRONMENT = ENVIRONMENTS / "openvino"


def test_openvino_gives_the_models_answers(stations: Stations, tmp_path: Path) -> None:
    needs(ENVIRONMENT)
    graph = stations.bundle("openvino") / NAME / "1" / "model.onnx"
    given = {
        f"{number:02}/{name}": value
        for number, sentence in enumerate(SENTENCES)
        for name, value in stations.tokens(sentence).items()
    }
    np.savez(tmp_path / "inputs.npz", **given)
    script = Path(__file__).with_name("openvino_run.py")
    files = (tmp_path / "inputs.npz", tmp_path / "outputs.npz")
    subprocess.run([ENVIRONMENT / "bin" / "python", script, graph, *files], check=True)
    found = np.load(tmp_path / "outputs.npz")
    for number, answer in enumerate(stations.answers()):
        logits = found[f"{number:02}"][0].astype(np.float64)
        scores = np.exp(logits) / np.exp(logits).sum()
        assert LABELS[scores.argmax()] == answer.label
        assert scores.max() == pytest.approx(answer.score, abs=1e-5)
