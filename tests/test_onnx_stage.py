import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from repeats import mostly_repeats
from tiny_models import ARCHITECTURES, POSITIONS, edit_config, make_model, save_checkpoint

from mixout_export.errors import (
    ArgumentError,
    CheckpointError,
    ExportError,
    OutputError,
    ParityError,
)
from mixout_export.export import document
from mixout_export.files.json_files import read_json
from mixout_export.stages import onnx_export
from mixout_export.stages.onnx_export import OnnxResult, export_onnx
from mixout_export.stages.prepare import prepare_checkpoint


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    path = save_checkpoint(make_model("bert"), tmp_path_factory.mktemp("source") / "bert")
    labels = ["no", "yes", "ça dépend"]
    edit_config(
        path, id2label=dict(enumerate(labels)), label2id={n: i for i, n in enumerate(labels)}
    )
    return path


@pytest.fixture(scope="module")
def exported(bert: Path, tmp_path_factory) -> OnnxResult:
    return export_onnx(bert, tmp_path_factory.mktemp("onnx") / "bert")


@pytest.mark.parametrize(
    "kind",
    mostly_repeats((kind for kind in ARCHITECTURES if kind != "bert"), "distilbert", "gpt2"),
)
def test_each_architecture_exports_and_holds(kind: str, tmp_path: Path) -> None:
    source = save_checkpoint(make_model(kind), tmp_path / "source")
    parity = export_onnx(source, tmp_path / "onnx").parity
    assert parity is not None
    assert parity.holds
    assert parity.max_abs < 1e-5
    assert parity.weights.accounted == parity.weights.total > 10
    assert parity.outputs[0].agreement == 1.0
    assert parity.coverage is not None
    assert parity.coverage.positions == POSITIONS


def test_regression_has_no_labels_and_no_decisions(tmp_path: Path) -> None:
    model = make_model("distilbert", num_labels=1, problem_type="regression")
    result = export_onnx(save_checkpoint(model, tmp_path / "source"), tmp_path / "onnx")
    assert result.parity is not None
    assert result.parity.holds
    assert result.parity.outputs[0].agreement is None
    assert metadata(result.graph)["task"] == "regression"


def metadata(graph: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(graph).metadata_props}


def test_folder_holds_graph_configuration_and_tokenizer(bert: Path, exported: OnnxResult) -> None:
    assert {file.name for file in exported.path.iterdir()} == {
        "README.md",
        "model.onnx",
        "config.json",
        "manifest.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert read_json(exported.path / "config.json") == read_json(bert / "config.json")
    assert exported.bytes == exported.graph.stat().st_size
    assert exported.nodes == len(onnx.load(exported.graph).graph.node)
    assert not exported.path.with_name("bert.partial").exists()


def test_graph_records_task_labels_and_source(bert: Path, exported: OnnxResult) -> None:
    found = metadata(exported.graph)
    assert found["task"] == "text-classification"
    assert json.loads(found["labels"]) == ["no", "yes", "ça dépend"]
    digest = hashlib.sha256((bert / "model.safetensors").read_bytes()).hexdigest()
    assert found["source_sha256"] == digest


def test_fixed_padding_is_taken_out_of_the_tokenizer(bert: Path, exported: OnnxResult) -> None:
    before = json.loads((bert / "tokenizer.json").read_text())
    after = json.loads((exported.path / "tokenizer.json").read_text())
    assert before["padding"]["strategy"] == {"Fixed": 8}
    assert before["truncation"]["max_length"] == 8
    assert after["padding"] == {**before["padding"], "strategy": "BatchLongest"}
    assert after["truncation"] == {**before["truncation"], "max_length": POSITIONS}
    assert list(after["model"]["vocab"].items()) == list(before["model"]["vocab"].items())


def test_result_converts_to_json(exported: OnnxResult) -> None:
    plain = json.loads(json.dumps(exported.to_dict(), allow_nan=False))
    assert plain["parity"]["holds"] is True
    assert plain["parity"]["candidate"] == str(exported.path)


def test_mixout_checkpoint_exports_as_its_collapse_would(
    bert: Path, exported: OnnxResult, tmp_path: Path
) -> None:
    prepare_checkpoint(str(bert), tmp_path / "mixout")
    result = export_onnx(tmp_path / "mixout", tmp_path / "onnx")
    config = read_json(result.path / "config.json")
    assert "mixout" not in json.dumps(config)
    assert config["hidden_dropout_prob"] == 0.1
    assert not (result.path / "mixout_config.json").exists()
    ours, theirs = onnx.load(exported.graph).graph, onnx.load(result.graph).graph
    assert ours.SerializeToString() == theirs.SerializeToString()


def test_changed_anchors_are_refused(bert: Path, tmp_path: Path) -> None:
    source = tmp_path / "mixout"
    prepare_checkpoint(str(bert), source)
    anchors = source / "pretrained.safetensors"
    raw = bytearray(anchors.read_bytes())
    raw[-1] ^= 1
    anchors.unlink()
    anchors.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"pretrained\.safetensors: has SHA-256"):
        export_onnx(source, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_wrong_graph_is_exit_code_3_and_leaves_nothing(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_wrong(graph, folder, **options):
        files = document.write_graph(graph, folder, **options)
        model = onnx.load(files[0])
        bias = next(i for i in model.graph.initializer if i.name == "classifier.bias")
        bias.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1e-3), bias.name)
        )
        onnx.save(model, files[0])
        return files

    monkeypatch.setattr(onnx_export, "write_graph", write_wrong)
    with pytest.raises(ParityError, match=r"'classifier\.bias'") as caught:
        export_onnx(bert, tmp_path / "onnx")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_model_that_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    model = make_model("gpt2", pad_token_id=None)
    source = save_checkpoint(model, tmp_path / "source", tokenizer=False)
    with pytest.raises(ExportError, match="pad_token_id"):
        export_onnx(source, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_decoder_takes_the_tokenizers_padding_id(tmp_path: Path) -> None:
    model = make_model("gpt2", pad_token_id=None, n_layer=1)
    source = save_checkpoint(model, tmp_path / "source")
    assert read_json(source / "config.json").get("pad_token_id") is None
    result = export_onnx(source, tmp_path / "onnx")
    assert result.parity is not None
    assert result.parity.holds
    assert read_json(result.path / "config.json")["pad_token_id"] == 0


def test_errors_come_before_anything_is_written(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="opset"):
        export_onnx(bert, tmp_path / "onnx", opset=11)
    with pytest.raises(CheckpointError, match="no such folder"):
        export_onnx(tmp_path / "nowhere", tmp_path / "onnx")
    with pytest.raises(ArgumentError, match="inside the source"):
        export_onnx(bert, bert / "onnx")
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").touch()
    with pytest.raises(OutputError, match="not empty"):
        export_onnx(bert, full)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_graph_as_source_is_refused(exported: OnnxResult, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is an ONNX export"):
        export_onnx(exported.path, tmp_path / "again")
