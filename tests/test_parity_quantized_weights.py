from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from mixout_export.files.tensors import read_tensors
from mixout_export.parity.graph_weights import audit_graph, audit_graphs
from mixout_export.parity.quantized_weights import QuantizedConstant
from mixout_export.parity.weights import WeightAudit

RANDOM = np.random.default_rng(0)
TABLE = RANDOM.normal(size=(40, 8)).astype(np.float32)
MATRIX = RANDOM.normal(size=(8, 8)).astype(np.float32)
BIAS = RANDOM.normal(size=8).astype(np.float32)


def quantized(
    name: str, values: np.ndarray, *, axis: int | None = None, bits: int = 8
) -> dict[str, np.ndarray]:
    """Return a constant in symmetric steps, one or one for each index along `axis`."""
    other = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    reach = np.abs(values).max(axis=other, keepdims=True)
    scale = (reach / (2 ** (bits - 1) - 1)).astype(np.float32)
    return {
        f"{name}_quantized": np.round(values / scale).astype(np.int8),
        f"{name}_scale": scale.reshape(-1) if axis is not None else scale.reshape(()),
        f"{name}_zero_point": np.zeros(scale.size if axis is not None else (), np.int8),
    }


def constants(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Return constants as onnxruntime's quantizer leaves them."""
    return {
        **quantized("table", TABLE),
        **quantized("val_1", MATRIX.T, axis=1),
        "bias": BIAS,
        **changes,
    }


def write_graph(path: Path, arrays: dict[str, np.ndarray], nodes: list = ()) -> Path:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = [helper.make_node("Identity", ["x"], ["y"]), *nodes]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [value], [output], initializers)), path
    )
    return path


def audit(path: Path, arrays: dict[str, np.ndarray], nodes: list = ()) -> WeightAudit:
    weights = {"table": TABLE, "linear": MATRIX, "bias": BIAS}
    file = path / "model.safetensors"
    save_file({name: torch.from_numpy(array) for name, array in weights.items()}, file)
    graph = write_graph(path / "model.onnx", arrays, nodes)
    return audit_graph(read_tensors(file), graph, parameters=weights.keys(), unused=set)


def test_weights_within_half_a_step_are_found(tmp_path: Path) -> None:
    found = audit(tmp_path, constants())
    assert found.holds
    assert dict(found.counts) == {
        "direct": 1,
        "direct, rounded to int8": 1,
        "transposed, rounded to int8": 1,
    }
    assert found.extra == ()


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_steps_may_lie_along_any_axis(axis: int | None, bits: int, tmp_path: Path) -> None:
    changed = quantized("val_1", MATRIX.T, axis=axis, bits=bits)
    assert audit(tmp_path, constants(**changed)).holds


@pytest.mark.parametrize("name", ["table", "val_1"])
@pytest.mark.parametrize("change", [-2, 1])
def test_one_changed_integer_is_found_and_the_tensor_named(
    name: str, change: int, tmp_path: Path
) -> None:
    values = constants()[f"{name}_quantized"].copy()
    values.flat[11] += change * (1 if values.flat[11] < 0 else -1)
    found = audit(tmp_path, constants(**{f"{name}_quantized": values}))
    (problem,) = found.problems
    assert problem.key == {"table": "table", "val_1": "linear"}[name]
    assert f"quantization steps from the graph's '{name}_quantized'" in problem.reason


def test_a_tensor_scaled_by_a_percent_is_found(tmp_path: Path) -> None:
    changed = quantized("val_1", MATRIX.T * np.float32(1.01), axis=1)
    assert [problem.key for problem in audit(tmp_path, constants(**changed)).problems] == ["linear"]


def test_another_scale_is_found(tmp_path: Path) -> None:
    scale = constants()["table_scale"] * np.float32(1.1)
    found = audit(tmp_path, constants(table_scale=scale))
    assert [problem.key for problem in found.problems] == ["table"]


def test_steps_so_coarse_that_anything_is_near_are_no_rounding(tmp_path: Path) -> None:
    coarse = {
        "table_quantized": np.zeros_like(constants()["table_quantized"]),
        "table_scale": np.array(100.0, np.float32),
    }
    found = audit(tmp_path, constants(**coarse))
    assert [problem.key for problem in found.problems] == ["table"]


def test_another_weight_in_its_place_is_simply_absent(tmp_path: Path) -> None:
    changed = quantized("table", TABLE[::-1].copy()) | quantized("other", TABLE[:, ::-1].copy())
    (problem,) = audit(tmp_path, constants(**changed)).problems
    assert problem.reason == "is not among the graph's constants"


def test_an_asymmetric_range_has_a_zero_point(tmp_path: Path) -> None:
    low, high = TABLE.min(), TABLE.max()
    scale = np.float32((high - low) / 255)
    zero = np.uint8(np.round(-low / scale))
    values = np.clip(np.round(TABLE / scale) + zero, 0, 255).astype(np.uint8)
    changed = {"table_quantized": values, "table_scale": np.array(scale)}
    assert audit(tmp_path, constants(**changed, table_zero_point=np.array(zero))).holds
    assert not audit(tmp_path, constants(**changed, table_zero_point=np.array(zero + 1))).holds


def test_names_do_not_matter_where_a_node_dequantizes(tmp_path: Path) -> None:
    renamed = {"a": "table_quantized", "b": "table_scale", "c": "table_zero_point"}
    arrays = constants()
    arrays |= {name: arrays.pop(known) for name, known in renamed.items()}
    assert not audit(tmp_path, arrays).holds
    node = helper.make_node("DequantizeLinear", list(renamed), ["t"])
    assert audit(tmp_path, arrays, [node]).holds


def test_a_bias_in_32_bits_is_found(tmp_path: Path) -> None:
    scale = np.full(8, 1e-7, np.float32)
    arrays = constants(
        bias_quantized=np.round(BIAS.astype(np.float64) / scale).astype(np.int32),
        bias_quantized_scale=scale,
        bias_quantized_zero_point=np.zeros(8, np.int32),
    )
    del arrays["bias"]
    assert audit(tmp_path, arrays).holds
    arrays["bias_quantized"][0] += 100
    assert [problem.key for problem in audit(tmp_path, arrays).problems] == ["bias"]


def test_quantized_constants_from_nowhere_are_listed(tmp_path: Path) -> None:
    stale = quantized("stale", RANDOM.normal(size=(16, 16)).astype(np.float32))
    assert audit(tmp_path, constants(**stale)).extra == ("stale_quantized",)


def test_a_channel_of_zeros_is_found_whatever_its_step() -> None:
    weight = MATRIX.copy()
    weight[:, 3] = 0.0
    arrays = quantized("w", np.where(weight == 0, 1e-9, weight).astype(np.float32), axis=1)
    scale = arrays["w_scale"]
    scale[3] = 1.0
    arrays["w_quantized"][:, 3] = 0
    constant = QuantizedConstant(
        "w", arrays["w_quantized"], scale, arrays["w_zero_point"], ("w_scale", "w_zero_point")
    )
    assert constant.holds(weight) == "direct"


@pytest.mark.parametrize("flip", [False, True])
def test_graphs_of_two_precisions_are_compared(flip: bool, tmp_path: Path) -> None:
    whole = {"t": TABLE, "w": np.ascontiguousarray(MATRIX.T), "b": BIAS, "s": np.float32(0.5)}
    fine = write_graph(tmp_path / "fine.onnx", {name: np.array(a) for name, a in whole.items()})
    coarse = write_graph(tmp_path / "coarse.onnx", constants())
    found = audit_graphs(*((coarse, fine) if flip else (fine, coarse)))
    assert found.holds
    assert dict(found.counts) == {"direct": 1, "direct, rounded to int8": 2}
    assert list(found.ignored) == ["s"]
    values = constants()["val_1_quantized"].copy()
    values[2, 5] += 3
    coarse = write_graph(tmp_path / "coarse.onnx", constants(val_1_quantized=values))
    found = audit_graphs(*((coarse, fine) if flip else (fine, coarse)))
    (problem,) = found.problems
    assert problem.key == "w"
    assert ("reference" if flip else "candidate") in problem.reason


@pytest.mark.parametrize("flip", [False, True])
def test_a_graph_in_fp16_is_compared_with_one_of_integers(flip: bool, tmp_path: Path) -> None:
    whole = {"t": TABLE, "w": np.ascontiguousarray(MATRIX.T), "b": BIAS + np.float32(1e-4)}
    half = {name: array.astype(np.float16) for name, array in whole.items()}
    fine = write_graph(tmp_path / "fine.onnx", half)
    arrays = constants() | {"bias": whole["b"]}
    coarse = write_graph(tmp_path / "coarse.onnx", arrays)
    found = audit_graphs(*((coarse, fine) if flip else (fine, coarse)))
    assert found.holds
    assert dict(found.counts) == {"direct, rounded to fp16": 1, "direct, rounded to int8": 2}
    half["b"][3] += np.float16(0.01)
    half["t"][2, 5] *= np.float16(1.2)
    fine = write_graph(tmp_path / "changed.onnx", half)
    found = audit_graphs(*((coarse, fine) if flip else (fine, coarse)))
    assert {problem.key for problem in found.problems} == {"b", "t"}


def test_graphs_of_integers_are_compared_byte_by_byte(tmp_path: Path) -> None:
    left = write_graph(tmp_path / "a.onnx", constants())
    assert audit_graphs(left, write_graph(tmp_path / "b.onnx", constants())).holds
    values = constants()["table_quantized"].copy()
    values[0, 0] += 1
    right = write_graph(tmp_path / "c.onnx", constants(table_quantized=values))
    found = audit_graphs(left, right)
    assert [problem.key for problem in found.problems] == ["table_quantized"]
