import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tiny_models import make_model, make_tokenizer

import mixout_export
from mixout_export.checkpoint.interface import ModelInterface, describe_interface
from mixout_export.export.document import finalize_graph, write_graph
from mixout_export.export.graph import ExportedGraph, export_graph
from mixout_export.files.graph_metadata import Provenance
from mixout_export.tasks import TASKS
from mixout_export.version import __version__

LABELS = ("non", "ja", "ça dépend")


def finalized_graph() -> tuple[ExportedGraph, ModelInterface]:
    """Export the tiny BERT and finalize its graph, as the `onnx` command does."""
    torch.set_num_threads(1)
    model = make_model("bert")
    interface = describe_interface(model, TASKS["text-classification"], make_tokenizer())
    graph = export_graph(model, interface)
    provenance = Provenance("text-classification", LABELS, "0" * 64, interface.to_dict())
    finalize_graph(graph, provenance)
    return graph, interface


@pytest.fixture(scope="module")
def finalized() -> tuple[ExportedGraph, ModelInterface]:
    return finalized_graph()


@pytest.fixture(scope="module")
def file(finalized: tuple[ExportedGraph, ModelInterface], tmp_path_factory) -> Path:
    (written,) = write_graph(finalized[0], tmp_path_factory.mktemp("onnx"))
    return written


def run(path: Path, interface: ModelInterface) -> np.ndarray:
    inputs = {name: np.ones((2, 5), dtype=np.int64) for name in interface.inputs}
    return onnxruntime.InferenceSession(path).run(None, inputs)[0]


def test_graph_says_where_it_comes_from(
    file: Path, finalized: tuple[ExportedGraph, ModelInterface]
) -> None:
    model = onnx.load(file)
    assert (model.producer_name, model.producer_version) == ("mixout-export", __version__)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["task"] == "text-classification"
    assert tuple(json.loads(metadata["labels"])) == LABELS
    assert metadata["source_sha256"] == "0" * 64
    assert metadata["tool_version"] == __version__
    assert metadata["opset"] == "20" == str(model.opset_import[0].version)
    assert model.ir_version == 9  # which onnxruntime 1.17 reads
    assert (metadata["oldest_onnxruntime"], metadata["oldest_triton"]) == ("1.17", "24.03")
    assert ModelInterface.from_dict(json.loads(metadata["interface"])) == finalized[1]


def test_graph_is_valid_and_holds_no_traces_of_the_machine(file: Path) -> None:
    model = onnx.load(file)
    onnx.checker.check_model(model, full_check=True)
    assert not model.graph.value_info
    assert not model.doc_string
    assert not model.graph.doc_string
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    raw = file.read_bytes()
    package = Path(mixout_export.__file__).parent.parent
    for trace in (str(package), sys.prefix, str(Path.home()), os.getcwd(), "site-packages", ".py"):
        assert trace.encode() not in raw, trace


def test_file_is_the_same_from_another_process(file: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import test_export_document as t;"
        "t.write_graph(t.finalized_graph()[0], Path(sys.argv[1]))"
    )
    paths = [str(Path(__file__).parent), str(Path(mixout_export.__file__).parent.parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONHASHSEED": "4321",
    }
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, env=environment, check=True
    )
    assert (tmp_path / "model.onnx").read_bytes() == file.read_bytes()


def test_large_weights_go_beside_the_graph(
    file: Path, finalized: tuple[ExportedGraph, ModelInterface], tmp_path: Path
) -> None:
    graph, data = write_graph(finalized[0], tmp_path, single_file_limit=1000)
    assert (graph.name, data.name) == ("model.onnx", "model.onnx.data")
    assert graph.stat().st_size < file.stat().st_size
    assert data.stat().st_size > 10_000
    assert str(tmp_path).encode() not in graph.read_bytes()
    assert not onnx.load(graph, load_external_data=False).graph.value_info
    np.testing.assert_array_equal(run(graph, finalized[1]), run(file, finalized[1]))
    (again,) = write_graph(finalized[0], tmp_path)  # the graph in memory is unharmed
    assert again.read_bytes() == file.read_bytes()
