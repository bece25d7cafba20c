"""Models of every kind are compared through a server: their inputs and outputs differ."""

from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from checkpoints import TinyCheckpoints
from served_models import served
from test_vision import vit

from mixout_export.errors import CheckpointError
from mixout_export.files.streams import file_digest
from mixout_export.quiet import quiet_libraries
from mixout_export.served.options import ServingOptions
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints

FEW = ServingOptions(concurrency=3, requests=2)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vit") / "vit"
    with quiet_libraries():
        vit().save_pretrained(path)
    return path


def folder_of(kind: str, head: str, tiny: TinyCheckpoints, images: Path) -> Path:
    layers = {} if kind == "gpt2" else {"num_hidden_layers": 1}  # as its graph is known already
    return images if kind == "vit" else tiny.folder(kind, head, **layers)


@pytest.mark.parametrize(
    ("kind", "head", "binary"),
    [
        ("bert", "ForQuestionAnswering", False),
        ("bert", "ForTokenClassification", True),
        ("bert", "ForMultipleChoice", False),
        ("gpt2", "LMHeadModel", True),
        ("bert", "Model", True),
        ("vit", "ForImageClassification", False),
    ],
)
def test_every_kind_of_model_is_at_parity_with_its_graph_on_a_server(
    tiny: TinyCheckpoints, images: Path, tmp_path: Path, kind: str, head: str, binary: bool
) -> None:
    folder = folder_of(kind, head, tiny, images)
    graph = export_onnx(folder, tmp_path / "onnx", verify=False).path / "model.onnx"
    with served(graph, binary=binary) as server:
        result = verify_checkpoints(folder, server.address, serving=FEW)
    assert result.holds, result.reasons()
    names = {tensor.name for tensor in onnxruntime.InferenceSession(graph).get_outputs()}
    assert {output.name for output in result.outputs} == names
    assert result.serving is not None
    assert result.serving.concurrency is not None
    assert (result.serving.concurrency.own, result.serving.concurrency.too_alike) == (6, 0)


@pytest.fixture(scope="module")
def generator(tiny: TinyCheckpoints) -> Path:
    return tiny.folder("gpt2", "LMHeadModel")


@pytest.fixture(scope="module")
def cached(generator: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("generator") / "onnx"
    graph = export_onnx(generator, out, verify=False).cached_graph
    assert graph is not None
    return graph


@pytest.mark.parametrize("binary", [True, False])
def test_a_model_generates_through_its_cache_on_a_server(
    generator: Path, cached: Path, binary: bool
) -> None:
    with served(cached, binary=binary) as server:
        result = verify_checkpoints(generator, server.address, serving=FEW)
    assert result.holds, result.reasons()
    assert result.generation is not None
    assert result.generation.without_cache is None
    assert result.generation.with_cache is not None
    assert (result.generation.with_cache.flips, result.generation.tokens) == (0, 5 * 16 + 4)
    assert result.serving is not None
    assert not any("cache" in note for note in result.serving.notes)


def test_a_cache_that_comes_back_changed_is_found(generator: Path, cached: Path) -> None:
    def answer(outputs: dict[str, Any]) -> dict[str, Any]:
        first, second = "present.0.key", "present.1.key"
        return {**outputs, first: outputs[second], second: outputs[first]}

    with served(cached, answer=answer) as server:
        result = verify_checkpoints(generator, server.address, serving=FEW)
    assert all(output.holds for output in result.outputs)
    assert any("with a cache" in reason for reason in result.reasons())
    assert not result.holds


@pytest.mark.parametrize("whole", [True, False])
def test_a_graph_with_a_cache_is_told_by_its_hash(cached: Path, whole: bool) -> None:
    """A folder holds the graph beside the one without a cache."""
    shown = {"model_sha256": file_digest(cached)}
    with served(cached, parameters=shown) as server:
        result = verify_checkpoints(cached.parent if whole else cached, server.address, serving=FEW)
    assert result.holds, result.reasons()
    assert result.serving is not None
    assert result.serving.graph == "this graph"
    assert any("cache was tested only when empty" in note for note in result.serving.notes)


def test_a_body_on_a_server_is_not_compared_with_a_classifier(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    graph = export_onnx(tiny.base(), tmp_path / "onnx", verify=False).path / "model.onnx"
    with served(graph) as server, pytest.raises(CheckpointError, match="has no head"):
        verify_checkpoints(tiny.classifier(), server.address, serving=FEW)
