from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tiny_models import make_model, save_checkpoint

from mixout_export.errors import ParityError
from mixout_export.export import half
from mixout_export.export.precision import Conversion
from mixout_export.runners.half_rounding import round_results
from mixout_export.runners.onnx_runner import open_session
from mixout_export.stages.onnx_export import export_onnx


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_graph(path: Path, dtype: int) -> Path:
    """Write a graph that multiplies x by 300, then by 1/300, with weights of one type."""
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=dtype),
        helper.make_node("MatMul", ["a", "large"], ["b"]),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Mul", ["c", "small"], ["d"]),
        helper.make_node("Cast", ["d"], ["y"], to=TensorProto.FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
        [
            numpy_helper.from_array(np.array([[300.0]], numpy_type), "large"),
            numpy_helper.from_array(np.array([1 / 300], numpy_type), "small"),
            numpy_helper.from_array(np.array([-1, 1]), "shape"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def run(graph: Path | bytes, *values: float) -> list[float]:
    x = np.array(values, np.float32)[:, None]
    return open_session(graph).run(None, {"x": x})[0][:, 0].tolist()


def test_copy_overflows_where_fp16_does(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "half.onnx", TensorProto.FLOAT16)
    before = path.read_bytes()
    copy = round_results(path)
    assert copy is not None
    expected = [float(np.float16(np.float16(300) * np.float16(0.7)) * np.float16(1 / 300)), np.inf]
    np.testing.assert_allclose(run(copy, 0.7, 1000.0), expected, rtol=1e-3)
    assert np.isfinite(run(path, 1000.0)).all()  # which is why the copy is needed
    assert path.read_bytes() == before


def test_a_graph_with_subgraphs_is_not_rounded_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_graph(tmp_path / "half.onnx", TensorProto.FLOAT16)
    model = onnx.load(path)
    body = helper.make_graph(
        [helper.make_node("Identity", ["large"], ["same"])],
        "body",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT16, None)],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    choose = helper.make_node("If", ["always"], ["chosen"], then_branch=body, else_branch=body)
    model.graph.node.insert(0, choose)
    onnx.save(model, path)
    assert round_results(path) is None
    assert "half.onnx: how a GPU rounds in fp16 is not checked, because it has" in caplog.text


def test_graph_in_fp32_needs_no_copy(tmp_path: Path) -> None:
    assert round_results(write_graph(tmp_path / "float.onnx", TensorProto.FLOAT)) is None


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> Path:
    """A model with values above 65504 inside its feed-forward block, and none outside."""
    model = make_model("bert", num_hidden_layers=1, hidden_act="relu")
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.LayerNorm.weight.fill_(1.0)
            layer.intermediate.dense.weight.mul_(4e4)  # none of them is above 65504
            layer.output.dense.weight.mul_(1e-5)
    return save_checkpoint(model, tmp_path_factory.mktemp("source") / "bert")


def test_weights_of_overflowing_nodes_are_found(overflowing: Path, tmp_path: Path) -> None:
    done = export_onnx(overflowing, tmp_path / "out", conversion=Conversion("fp16"))
    assert done.parity is not None
    assert done.parity.weights.counts["transposed"] >= 1  # those of the product in fp32
    (output,) = done.parity.in_half
    assert output.name == "logits in fp16 arithmetic"
    assert output.holds
    assert done.parity.criteria() == (
        "atol 0.005, rtol 0.001, in fp16 arithmetic atol 0.02, rtol 0.004"
    )
    failed = replace(done.parity, in_half=(replace(output, exceeding=1),))
    (reason,) = failed.reasons()
    assert "in fp16 arithmetic' differs by up to" in reason
    assert "expected at most 0.02 + 0.004·|reference|" in reason


def test_overflow_that_only_a_gpu_would_show_is_refused(
    overflowing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "measure_magnitudes", lambda model, batches: {})
    with pytest.raises(ParityError, match=r"in fp16 arithmetic.*Try --calibration-data FILE or"):
        export_onnx(overflowing, tmp_path / "out", conversion=Conversion("fp16"))
    assert list(tmp_path.iterdir()) == []
