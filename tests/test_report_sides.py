from hashlib import sha256
from pathlib import Path

import onnx
import pytest
from tiny_models import make_model, save_checkpoint

from mixout_export.artifacts.opening import open_artifact
from mixout_export.errors import CheckpointError
from mixout_export.files.layout import LAYOUT
from mixout_export.report.sides import Side, describe_side
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import prepare_checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(make_model("gpt2", "LMHeadModel"), tmp_path_factory.mktemp("a") / "gpt2")


@pytest.fixture(scope="module")
def graph(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(plain, tmp_path_factory.mktemp("b") / "graph", verify=False).path


def check_hashes(side: Side, *names: str) -> None:
    assert [file.name for file in side.files] == list(names)
    for file in side.files:
        content = (Path(side.artifact.where) / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), sha256(content).hexdigest())


def test_a_folder_is_described(plain: Path) -> None:
    side = describe_side(open_artifact(plain))
    assert side.artifact.title == "Hugging Face folder"
    assert side.artifact.architecture == "GPT2LMHeadModel"
    assert (side.artifact.task_name, side.artifact.labels) == ("causal-lm", None)
    assert side.artifact.runs_in.startswith("PyTorch")
    check_hashes(side, LAYOUT.config, LAYOUT.weights)


def test_a_mixout_checkpoint_has_its_pretrained_weights_too(plain: Path, tmp_path: Path) -> None:
    prepare_checkpoint(str(plain), tmp_path / "mixout")
    side = describe_side(open_artifact(tmp_path / "mixout"))
    assert side.artifact.title == "mixout checkpoint"
    check_hashes(side, LAYOUT.config, LAYOUT.weights, LAYOUT.pretrained)


def test_a_graph_is_described_with_the_one_that_has_a_cache(graph: Path) -> None:
    side = describe_side(open_artifact(graph))
    assert (side.artifact.title, side.artifact.task_name) == ("ONNX graph", "causal-lm")
    assert side.artifact.runs_in == "onnxruntime, CPUExecutionProvider"
    check_hashes(side, LAYOUT.onnx, LAYOUT.onnx_cached)


def test_weights_beside_a_graph_are_hashed_too(graph: Path, tmp_path: Path) -> None:
    model = onnx.load(graph / LAYOUT.onnx)
    where = {"location": "weights.bin", "size_threshold": 100}
    onnx.save(model, tmp_path / LAYOUT.onnx, save_as_external_data=True, **where)
    model = open_artifact(tmp_path)
    check_hashes(describe_side(model), LAYOUT.onnx, "weights.bin")
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.bin: cannot be read"):
        describe_side(model)
