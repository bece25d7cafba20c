import shutil
from pathlib import Path

import onnx
import pytest
from repeats import mostly_repeats
from tiny_models import edit_config, make_model, save_checkpoint

from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.verify import verify_checkpoints


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return save_checkpoint(make_model("bert"), tmp_path_factory.mktemp("plain") / "bert")


@pytest.fixture(scope="module")
def graph(plain: Path, tmp_path_factory) -> Path:
    return export_onnx(plain, tmp_path_factory.mktemp("graph") / "bert", verify=False).path


def with_epsilon(graph: Path, out: Path, module: int, epsilon: float) -> Path:
    """Copy a graph whose n-th normalization has another epsilon."""
    shutil.copytree(graph, out)
    model = onnx.load(out / "model.onnx")
    nodes = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    (attribute,) = (a for a in nodes[module].attribute if a.name == "epsilon")
    attribute.f = epsilon
    onnx.save(model, out / "model.onnx")
    return out


def test_epsilon_that_no_output_shows_is_named_in_a_graph(
    plain: Path, graph: Path, tmp_path: Path
) -> None:
    broken = with_epsilon(graph, tmp_path / "broken", 2, 1e-7)
    (broken / "manifest.json").unlink(missing_ok=True)  # it would say so first
    for reference in (plain, graph):
        result = verify_checkpoints(reference, broken)
        assert result.settings == (
            "epsilon of 'bert.encoder.layer.0.output.LayerNorm': got 1e-07, expected 1e-12",
        )
        assert all(output.holds for output in result.outputs)
        assert not result.holds
        assert result.reasons() == result.settings
    assert verify_checkpoints(plain, graph).settings == ()


def test_epsilon_that_no_output_shows_is_named_in_a_folder(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path / "broken")
    edit_config(tmp_path / "broken", layer_norm_eps=1e-7)
    result = verify_checkpoints(plain, tmp_path / "broken")
    assert result.settings == (
        "epsilon of 'bert.embeddings.LayerNorm': got 1e-07, expected 1e-12 (and 4 more)",
    )
    assert not result.holds
    assert result.to_dict()["settings"] == list(result.settings)


def test_given_tolerance_leaves_epsilons_to_the_outputs(
    plain: Path, graph: Path, tmp_path: Path
) -> None:
    broken = with_epsilon(graph, tmp_path / "broken", 2, 1e-7)
    assert verify_checkpoints(plain, broken, atol=1e-5).holds


def test_base_is_compared_with_the_body_of_a_model_with_a_head(tmp_path: Path) -> None:
    base = save_checkpoint(make_model("bert", "Model"), tmp_path / "base")
    whole = save_checkpoint(make_model("bert", layer_norm_eps=1e-6), tmp_path / "whole")
    (found,) = verify_checkpoints(base, whole).settings
    assert found.startswith("epsilon of 'embeddings.LayerNorm': got 1e-06, expected 1e-12")


@pytest.mark.parametrize(
    "kind",
    mostly_repeats(("llama", "gpt2", "albert", "distilbert", "roberta"), "llama", "distilbert"),
)
def test_no_false_alarm(kind: str, tmp_path: Path) -> None:
    source = save_checkpoint(make_model(kind), tmp_path / "source")
    candidate = export_onnx(source, tmp_path / "graph", verify=False).path
    result = verify_checkpoints(source, candidate)
    assert result.settings == ()
    assert result.holds


def test_graph_by_another_tool_is_left_to_the_outputs(
    plain: Path, graph: Path, tmp_path: Path
) -> None:
    broken = with_epsilon(graph, tmp_path / "broken", 2, 1e-7)
    model = onnx.load(broken / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    result = verify_checkpoints(plain, tmp_path / "foreign.onnx")
    assert result.settings == ()
    assert result.holds
