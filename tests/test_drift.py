import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import TinyCheckpoints
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from matrix.tiny import write_checkpoint
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.model_inputs import Batch
from mixout_export.parity.battery import build_battery
from mixout_export.parity.compare import OutputComparison, Tolerance
from mixout_export.parity.drift import draw_drift, pick_batch
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints

SECOND = "encoder.layer.1.intermediate.dense"


@pytest.fixture(scope="module")
def graphs(
    tiny: TinyCheckpoints, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, Path]]:
    """Checkpoints and their graphs: one that uses its layers several times among them."""
    root = tmp_path_factory.mktemp("graphs")
    made = {}
    for kind in ("bert", "albert", "gpt2"):
        source = tiny.classifier(kind)
        made[kind] = (source, export_onnx(source, root / kind, verify=False).path)
    return made


def first_batch(path: Path) -> Batch:
    interface = open_checkpoint(path).interface
    return next(b for b in build_battery(interface).batches if b.name == "padding")


@pytest.mark.parametrize("kind", ["bert", "albert", "gpt2"])
def test_every_linear_layer_is_in_the_map(kind: str, graphs: dict[str, tuple[Path, Path]]) -> None:
    source, graph = graphs[kind]
    checkpoint = open_checkpoint(source)
    drift = draw_drift(checkpoint, open_artifact(graph), first_batch(source))
    compared = {entry.module for entry in drift.compared}
    linear = {
        name
        for name, module in checkpoint.model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    }
    assert linear <= compared
    assert drift.first is None
    assert not linear & {entry.module for entry in drift.not_compared}


def test_a_layer_that_is_called_twice_is_there_twice(
    graphs: dict[str, tuple[Path, Path]],
) -> None:
    source, graph = graphs["albert"]
    drift = draw_drift(open_checkpoint(source), open_artifact(graph), first_batch(source))
    calls = [entry.call for entry in drift.compared if entry.module.endswith("attention.query")]
    assert calls == [0, 1]


def perturbed_graph(graph: Path, out: Path, name: str) -> Path:
    shutil.copytree(graph, out)
    model = onnx.load(out / "model.onnx")
    (tensor,) = (t for t in model.graph.initializer if name in t.name)
    value = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(value * np.float32(1.001), tensor.name))
    onnx.save(model, out / "model.onnx")
    return out


def test_the_first_module_that_differs_is_named_in_a_graph(
    graphs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, graph = graphs["bert"]
    broken = perturbed_graph(graph, tmp_path / "broken", f"{SECOND}.bias")
    result = verify_checkpoints(source, broken)
    assert not result.holds
    assert result.drift is not None
    assert result.drift.first is not None
    assert result.drift.first.module == f"bert.{SECOND}"
    assert any(f"'bert.{SECOND}' is the first" in reason for reason in result.reasons())


def test_the_first_module_that_differs_is_named_in_a_folder(
    graphs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, _ = graphs["bert"]
    other = shutil.copytree(source, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors[f"bert.{SECOND}.weight"] *= 1.001
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    drift = verify_checkpoints(source, other).drift
    assert drift is not None
    assert drift.first is not None
    assert drift.first.module == f"bert.{SECOND}"


def test_two_graphs_are_compared_by_what_they_record(
    graphs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, graph = graphs["bert"]
    broken = perturbed_graph(graph, tmp_path / "broken", f"{SECOND}.bias")
    drift = draw_drift(open_artifact(graph), open_artifact(broken), first_batch(source))
    assert drift.first is not None
    assert drift.first.module == f"bert.{SECOND}"


def test_a_base_is_compared_with_a_model_that_has_a_head(tiny: TinyCheckpoints) -> None:
    base, whole = tiny.base(), tiny.classifier()
    drift = draw_drift(
        open_checkpoint(base), open_checkpoint(whole), first_batch(base), headless=True
    )
    assert "encoder.layer.0.attention.self.query" in {entry.module for entry in drift.compared}


def test_where_parity_holds_the_map_is_drawn_if_asked(
    graphs: dict[str, tuple[Path, Path]],
) -> None:
    source, graph = graphs["bert"]
    assert verify_checkpoints(source, graph).drift is None
    result = verify_checkpoints(source, graph, drift=True)
    assert result.drift is not None
    assert result.drift.first is None
    assert result.to_dict()["drift"]["first"] is None


def test_a_graph_of_another_exporter_has_no_map(
    graphs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, graph = graphs["bert"]
    other = shutil.copytree(graph, tmp_path / "other")
    model = onnx.load(other / "model.onnx")
    kept = [entry for entry in model.metadata_props if entry.key != "module_values"]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    onnx.save(model, other / "model.onnx")
    assert verify_checkpoints(source, other, drift=True).drift is None


def test_the_batch_is_the_worst_one_cut_to_what_can_be_kept(tiny: TinyCheckpoints) -> None:
    batches = build_battery(open_checkpoint(tiny.base()).interface).batches
    chosen = pick_batch(batches, [])
    assert chosen.name == batches[0].name
    long = next(batch for batch in batches if batch.name == "vocabulary")
    cut = pick_batch([long], [])
    assert cut.shape[0] * cut.shape[1] <= 1024
    masked = next(batch for batch in batches if batch.name == "masked")
    assert pick_batch([masked], []).shape[0] == 2


def test_the_row_that_differs_most_comes_first(tiny: TinyCheckpoints) -> None:
    batches = build_battery(open_checkpoint(tiny.base()).interface).batches
    number = next(n for n, batch in enumerate(batches) if batch.name == "vocabulary")
    batch = batches[number]
    row = batch.shape[0] - 1
    comparison = OutputComparison("logits", Tolerance(1e-5, 1e-4))
    for other in batches:
        same = np.zeros((other.shape[0], 2), dtype=np.float32)
        broken = same.copy()
        if other is batch:
            broken[row, 1] = 1.0
        comparison.add(other, same, broken)
    chosen = pick_batch(batches, [comparison.result()])
    assert row > 0
    np.testing.assert_array_equal(chosen.inputs["input_ids"][0], batch.inputs["input_ids"][row])


def test_the_first_of_several_calls_that_differs_is_named(
    graphs: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    source, _ = graphs["albert"]
    other = shutil.copytree(source, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    (key,) = (key for key in tensors if key.endswith("ffn_output.weight"))
    tensors[key] *= 1.001
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    drift = verify_checkpoints(source, other).drift
    assert drift is not None
    assert drift.first is not None
    assert (drift.first.module, drift.first.call) == (key.removesuffix(".weight"), 0)


def test_what_padding_on_the_left_attends_to_is_no_false_alarm(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    source = tiny.classifier("llama")
    graph = export_onnx(source, tmp_path / "llama", verify=False).path
    checkpoint = open_checkpoint(source)
    ids = np.array([[0, 0, 7, 8], [5, 6, 7, 8]])
    batch = Batch("left padding", {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)})
    drift = draw_drift(checkpoint, open_artifact(graph), batch)
    assert drift.first is None
    assert "model.layers.1.self_attn.o_proj" in {entry.module for entry in drift.compared}


@pytest.mark.parametrize("rows", [1, 3])
def test_a_module_that_returns_several_tensors_is_no_false_alarm(
    rows: int, graphs: dict[str, tuple[Path, Path]]
) -> None:
    source, graph = graphs["bert"]
    checkpoint = open_checkpoint(source)
    batch = next(b for b in build_battery(checkpoint.interface).batches if b.shape == (1, 1))
    batch = Batch("one", {name: np.repeat(value, rows, 0) for name, value in batch.inputs.items()})
    drift = draw_drift(checkpoint, open_artifact(graph), batch)
    assert drift.first is None
    assert {"", "bert"} <= {entry.module for entry in drift.compared}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A mixture of experts and its graph."""
    root = tmp_path_factory.mktemp("mixture")
    write_checkpoint("mixtral", root / "plain")
    return root / "plain", export_onnx(root / "plain", root / "graph", verify=False).path


def graph_that_swaps_experts(graph: Path, out: Path) -> Path:
    """Copy a graph so that each token's two experts come in the other order, with their weights.

    The sum over the experts is the same, and each module inside the mixture returns its rows in
    another order. Without this swap, the order would differ only where two experts' weights differ
    by rounding alone, and that depends on the processor.
    """
    shutil.copytree(graph, out)
    model = onnx.load(out / "model.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 0]), "swapped"))
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.op_type == "TopK":
            for at, name in enumerate(list(node.output)):
                node.output[at] = f"{name}_sorted"
                swap = [f"{name}_sorted", "swapped"]
                nodes.append(onnx.helper.make_node("Gather", swap, [name], axis=-1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, out / "model.onnx")
    return out


def test_experts_that_see_tokens_in_another_order_are_no_false_alarm(
    mixture: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, graph = mixture
    swapped = graph_that_swaps_experts(graph, tmp_path / "swapped")
    result = verify_checkpoints(plain, swapped, drift=True)
    assert result.holds
    assert result.drift is not None
    assert result.drift.first is None
    reasons = {drift.module: drift.reason for drift in result.drift.not_compared}
    assert set(reasons.values()) == {
        "returns another form of the same values, because the module around it agrees"
    }
    inside = ("gate", "experts.act_fn")
    assert set(reasons) == {f"model.layers.{n}.mlp.{name}" for n in (0, 1) for name in inside}


def test_a_weight_inside_a_mixture_that_changed_is_named(
    mixture: tuple[Path, Path], tmp_path: Path
) -> None:
    plain, graph = mixture
    changed = shutil.copytree(plain, tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    key = next(key for key in tensors if "layers.1" in key and "experts" in key)
    tensors[key] *= 1.05
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    result = verify_checkpoints(changed, graph)
    assert result.drift is not None
    assert result.drift.first is not None
    assert result.drift.first.module.startswith("model.layers.1.mlp")
