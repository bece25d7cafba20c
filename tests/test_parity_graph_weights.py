from collections.abc import Set
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import Tensor

from mixout_export.errors import CheckpointError
from mixout_export.files.tensors import TensorEntry, read_tensors
from mixout_export.parity.graph_weights import audit_graph, audit_graphs
from mixout_export.parity.weights import WeightAudit

GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = {
    "embedding.weight": torch.randn(20, 8, generator=GENERATOR),
    "linear.weight": torch.randn(6, 8, generator=GENERATOR),
    "linear.bias": torch.randn(6, generator=GENERATOR),
    "norm.bias": torch.zeros(8),
}


def write_graph(path: Path, constants: dict[str, np.ndarray], *, external: bool = False) -> Path:
    """Write a graph of the given initializers; what it computes does not matter here."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    model = helper.make_model(helper.make_graph([node], "g", [value], [output], initializers))
    onnx.save(
        model, path, save_as_external_data=external, location="weights.data", size_threshold=0
    )
    return path


def exported(**changes: np.ndarray) -> dict[str, np.ndarray]:
    """Return constants as an exporter leaves them: renamed, transposed, zeros dropped."""
    constants = {
        "embedding.weight": WEIGHTS["embedding.weight"].numpy(),
        "val_1": np.ascontiguousarray(WEIGHTS["linear.weight"].numpy().T),
        "linear.bias": WEIGHTS["linear.bias"].numpy(),
    }
    return {**constants, **changes}


def entries(path: Path, values: dict[str, Tensor]) -> dict[str, TensorEntry]:
    save_file(values, path / "model.safetensors")
    return read_tensors(path / "model.safetensors")


def audit(
    path: Path,
    constants: dict[str, np.ndarray],
    *,
    weights: dict[str, Tensor] = WEIGHTS,
    parameters: Set[str] = WEIGHTS.keys(),
    unused: Set[str] = frozenset(),
    external: bool = False,
) -> WeightAudit:
    graph = write_graph(path / "model.onnx", constants, external=external)
    return audit_graph(entries(path, weights), graph, parameters=parameters, unused=lambda: unused)


@pytest.mark.parametrize("external", [False, True])
def test_tensors_are_found_however_they_lie(tmp_path: Path, external: bool) -> None:
    found = audit(tmp_path, exported(), external=external)
    assert found.holds
    assert dict(found.counts) == {"direct": 2, "transposed": 1, "zero": 1}
    assert (found.total, found.extra) == (4, ())


@pytest.mark.parametrize("key", ["embedding.weight", "linear.bias", "val_1"])
def test_one_changed_scalar_is_found_and_the_tensor_named(tmp_path: Path, key: str) -> None:
    array = exported()[key].copy()
    array.flat[3] = np.nextafter(array.flat[3], np.float32(np.inf))
    found = audit(tmp_path, exported(**{key: array}))
    expected = "linear.weight" if key == "val_1" else key
    assert [problem.key for problem in found.problems] == [expected]


def test_dropped_bias_that_is_not_zero_is_missed(tmp_path: Path) -> None:
    constants = exported()
    del constants["linear.bias"]
    assert [problem.key for problem in audit(tmp_path, constants).problems] == ["linear.bias"]


def test_zeroed_bias_is_missed_where_the_graph_still_has_it(tmp_path: Path) -> None:
    zeroed = {**WEIGHTS, "linear.bias": torch.zeros(6)}
    assert [p.key for p in audit(tmp_path, exported(), weights=zeroed).problems] == ["linear.bias"]


def test_rounded_constants_are_found(tmp_path: Path) -> None:
    half = {name: array.astype(np.float16) for name, array in exported().items()}
    found = audit(tmp_path, half)
    assert found.holds
    assert found.counts["direct, rounded to fp16"] == 2
    assert found.counts["transposed, rounded to fp16"] == 1


def test_weights_stored_narrower_than_the_graphs_are_found(tmp_path: Path) -> None:
    narrow = {key: value.to(torch.bfloat16) for key, value in WEIGHTS.items()}
    wide = {
        name: torch.from_numpy(array).to(torch.bfloat16).float().numpy()
        for name, array in exported().items()
    }
    found = audit(tmp_path, wide, weights=narrow)
    assert found.holds
    assert dict(found.counts) == {"direct": 2, "transposed": 1, "zero": 1}


def test_what_takes_no_part_is_told_apart(tmp_path: Path) -> None:
    weights = {
        **WEIGHTS,
        "position_ids": torch.arange(1, 9),
        "pooler.weight": torch.ones(3, 3),
    }
    parameters = weights.keys() - {"position_ids"}
    found = audit(
        tmp_path, exported(), weights=weights, parameters=parameters, unused={"pooler.weight"}
    )
    assert found.holds
    assert dict(found.ignored) == {
        "pooler.weight": "no output depends on it",
        "position_ids": "no parameter of the architecture",
    }
    assert not audit(tmp_path, exported(), weights=weights, parameters=parameters).holds


def test_constants_from_nowhere_are_listed(tmp_path: Path) -> None:
    stale = np.full((16, 16), 2.0, dtype=np.float32)
    assert audit(tmp_path, exported(stale=stale)).extra == ("stale",)


def test_both_forms_of_a_tied_embedding_are_explained(tmp_path: Path) -> None:
    transposed = np.ascontiguousarray(WEIGHTS["embedding.weight"].numpy().T)
    assert audit(tmp_path, exported(val_9=transposed)).extra == ()


def test_two_graphs_are_compared_by_hash(tmp_path: Path) -> None:
    left = write_graph(tmp_path / "a.onnx", exported())
    renamed = {f"other_{name}": array for name, array in exported().items()}
    assert audit_graphs(left, write_graph(tmp_path / "b.onnx", renamed)).holds
    renamed["other_linear.bias"] = -renamed["other_linear.bias"]
    found = audit_graphs(left, write_graph(tmp_path / "c.onnx", renamed))
    assert [problem.key for problem in found.problems] == ["linear.bias"]


def test_missing_external_data_is_one_clear_error(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "model.onnx", exported(), external=True)
    (tmp_path / "weights.data").unlink()
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        audit_graph(entries(tmp_path, WEIGHTS), graph, parameters=set(), unused=set)
