from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_models import make_model

from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.runners.onnx_runner import OnnxRunner
from mixout_export.runners.torch_runner import TorchRunner


def ids(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, 90, shape)


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """A graph that looks rows of ten numbers up and sums them, with a field of metadata."""
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch"])
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("Mul", ["input_ids", "attention_mask"], ["kept"]),
        helper.make_node("Gather", ["table", "kept"], ["rows"]),
        helper.make_node("ReduceSum", ["rows", "axis"], ["logits"], keepdims=0),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "sum", inputs, [output], [table, axis]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {"task": "regression"})
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(model, path)
    return path


def test_graph_runs_and_extra_inputs_are_ignored(graph: Path) -> None:
    runner = OnnxRunner(graph)
    assert (runner.inputs, runner.outputs) == (("input_ids", "attention_mask"), ("logits",))
    assert runner.metadata == {"task": "regression"}
    values = np.array([[1, 2, 3], [4, 5, 6]])
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    found = runner.run({"input_ids": values, "attention_mask": mask, "token_type_ids": mask})
    np.testing.assert_array_equal(found["logits"], [6.0, 9.0])


def test_missing_input_is_named(graph: Path) -> None:
    with pytest.raises(ArgumentError, match="'attention_mask'"):
        OnnxRunner(graph).run({"input_ids": ids(1, 2)})


def test_inputs_the_graph_cannot_take_are_one_sentence(graph: Path) -> None:
    far = np.full((1, 2), 99)
    with pytest.raises(CheckpointError, match=r"shape \(1, 2\)") as caught:
        OnnxRunner(graph).run({"input_ids": far, "attention_mask": np.ones_like(far)})
    assert "\n" not in str(caught.value)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("no graph at all")
    with pytest.raises(CheckpointError, match="is not an ONNX graph") as caught:
        OnnxRunner(path)
    assert "\n" not in str(caught.value)


def test_truncated_graph_is_refused(graph: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.read_bytes()[:-60])
    with pytest.raises(CheckpointError, match="is not an ONNX graph"):
        OnnxRunner(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        OnnxRunner(tmp_path / "model.onnx")


def test_unknown_provider_lists_those_there_are(graph: Path) -> None:
    with pytest.raises(ArgumentError, match=r"'FastProvider'.*CPUExecutionProvider"):
        OnnxRunner(graph, provider="FastProvider")
    assert "FastProvider" not in onnxruntime.get_available_providers()


def test_torch_runs_in_float32_without_dropout() -> None:
    model = make_model("bert", hidden_dropout_prob=0.5).train().to(torch.float64)
    runner = TorchRunner(model, inputs=("input_ids",), outputs=("logits",))
    first, second = (runner.run({"input_ids": ids(3, 6)})["logits"] for _ in range(2))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)


def test_body_is_run_without_the_head() -> None:
    model = make_model("bert")
    inputs = {"input_ids": ids(2, 6)}
    runner = TorchRunner(
        model, inputs=("input_ids",), outputs=("last_hidden_state",), headless=True
    )
    with torch.no_grad():
        expected = model.bert(torch.from_numpy(inputs["input_ids"])).last_hidden_state
    np.testing.assert_allclose(runner.run(inputs)["last_hidden_state"], expected, atol=1e-6)


def test_decoder_without_a_padding_id_runs_row_by_row() -> None:
    model = make_model("gpt2", pad_token_id=None)
    inputs = {"input_ids": ids(3, 6)}
    names = {"inputs": ("input_ids",), "outputs": ("logits",)}
    with pytest.raises(CheckpointError, match="padding token"):
        TorchRunner(model, **names).run(inputs)
    found = TorchRunner(model, **names, row_by_row=True).run(inputs)["logits"]
    with torch.no_grad():
        rows = [model(torch.from_numpy(row[None])).logits[0] for row in inputs["input_ids"]]
    np.testing.assert_allclose(found, torch.stack(rows), atol=1e-6)
