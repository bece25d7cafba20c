import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints
from safetensors.torch import load_file, save_file

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.keys import anchor_key, is_anchor, weight_key
from mixout_export.errors import CheckpointError
from mixout_export.files.json_files import read_json, write_json
from mixout_export.tasks import TASKS, get_task, task_of_config


def make(path: Path, config: dict | str | None = None, **files: dict[str, torch.Tensor]) -> Path:
    """Write a folder: `config.json`, and a safetensors file for each keyword."""
    path.mkdir(exist_ok=True)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config)
        (path / "config.json").write_text(text)
    for name, tensors in files.items():
        save_file(tensors, path / f"{name}.safetensors")
    return path


def record(**entries: object) -> dict:
    plain = {
        "format_version": 1,
        "p": 0.7,
        "granularity": "neuron",
        "target_modules": "all-linear",
        "exclude_modules": None,
        "modules": ["a"],
    }
    return {"model_type": "bert", "mixout": {**plain, **entries}}


def index_of(path: Path, weight_map: object, name: str = "model") -> None:
    text = json.dumps({"metadata": {}, "weight_map": weight_map})
    (path / f"{name}.safetensors.index.json").write_text(text)


# Opening ------------------------------------------------------------------------------------------


def test_a_plain_checkpoint(tiny: TinyCheckpoints) -> None:
    folder = open_artifact(tiny.classifier("bert", labels=3))
    assert (folder.kind, folder.metadata) == ("huggingface", None)
    assert folder.config["model_type"] == "bert"
    assert folder.task is TASKS["text-classification"]
    assert folder.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert folder.tensors.keys() == load_file(folder.path / "model.safetensors").keys()
    assert folder.anchors == {}
    with pytest.raises(CheckpointError, match="is a plain checkpoint, expected a mixout"):
        folder.require_metadata()


def test_a_headless_base_has_no_task(tiny: TinyCheckpoints) -> None:
    folder = open_artifact(tiny.base())
    assert (folder.task, folder.labels) == (None, None)
    with pytest.raises(CheckpointError, match="has no head, expected one"):
        folder.require_task()


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda path: path, "no such file or folder; check the path"),
        (lambda path: make(path), "holds no config.json"),
        (lambda path: path.write_text("x"), "is a file, expected a checkpoint folder"),
        (lambda path: make(path, "{"), r"config\.json: is not valid JSON"),
        (lambda path: make(path, "[1]"), r"config\.json: holds a JSON list, expected an object"),
        (lambda path: make(path).joinpath("config.json").mkdir(), r"config\.json: cannot be read"),
        (
            lambda path: make(path).joinpath("config.json").write_bytes(b'{"a": "\xff"}'),
            r"config\.json: is not valid JSON",
        ),
        (
            lambda path: make(path, "{}").joinpath("mixout_config.json").write_text("{}"),
            r"mixout_config\.json: has format version None",
        ),
        (
            lambda path: make(path, "{}").joinpath("mixout_config.json").write_text("null"),
            r"mixout_config\.json: holds a JSON NoneType",
        ),
        (lambda path: make(path, record(p=2)), r"config\.json: .*mixout.* malformed: p: got 2"),
        (lambda path: make(path, {"mixout": {}}), "the entry 'mixout' is malformed"),
        (lambda path: make(path, record(modules=3)), "the entry 'mixout' is malformed"),
    ],
)
def test_what_is_no_checkpoint_is_refused(make_it, message: str, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    make_it(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_artifact(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_onnx_file_and_folder(tmp_path: Path) -> None:
    make(tmp_path, {"model_type": "bert"})
    (tmp_path / "model.onnx").write_bytes(b"")
    assert open_artifact(tmp_path).kind == "onnx"
    assert open_artifact(tmp_path / "model.onnx").config == {"model_type": "bert"}


def test_missing_weights_are_named(tmp_path: Path) -> None:
    folder = open_artifact(make(tmp_path, {}))
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        folder.require_weights()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"only as a pickle \(pytorch_model\.bin\)"):
        open_artifact(tmp_path).require_weights()


# Tensors ------------------------------------------------------------------------------------------


def test_other_files_are_ignored(tmp_path: Path) -> None:
    one = {"a.weight": torch.ones(2)}
    path = make(tmp_path, {}, model=one, other={"b": torch.ones(2)}, optimizer=one)
    assert open_artifact(path).tensors.keys() == {"a.weight"}
    make(tmp_path, {}, pretrained={"a.pretrained_weight": torch.ones(2)})
    assert open_artifact(path).tensors.keys() == {"a.weight"}  # a plain folder has no anchors


def test_an_index_decides_which_files_count(tmp_path: Path) -> None:
    path = make(
        tmp_path,
        {},
        shard1={"a": torch.zeros(2)},
        shard2={"b": torch.zeros(3)},
        shard3={"c": torch.zeros(3)},
    )
    index_of(path, {"a": "shard1.safetensors", "b": "shard2.safetensors"})
    folder = open_artifact(path)
    assert {k: e.file.name for k, e in folder.tensors.items()} == {
        "a": "shard1.safetensors",
        "b": "shard2.safetensors",
    }


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 3}, {"a": None}])
def test_an_index_without_a_usable_map_is_refused(weight_map: object, tmp_path: Path) -> None:
    index_of(make(tmp_path, {}), weight_map)
    with pytest.raises(CheckpointError, match=r"index\.json: has no usable weight_map"):
        _ = open_artifact(tmp_path).tensors


@pytest.mark.parametrize("name", ["gone.safetensors", "../outside.safetensors", "/etc/passwd"])
def test_an_index_that_lists_a_file_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    make(tmp_path, outside={"a": torch.zeros(1)})
    path = make(tmp_path / "folder", {})
    index_of(path, {"a": name})
    with pytest.raises(CheckpointError, match="which is missing"):
        _ = open_artifact(path).tensors


def test_an_index_that_lists_a_tensor_nobody_holds_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path, {}, shard={"a": torch.zeros(1)})
    index_of(path, {"a": "shard.safetensors", "b": "shard.safetensors"})
    with pytest.raises(CheckpointError, match=r"lists 'b' in shard\.safetensors, which does not"):
        _ = open_artifact(path).tensors


def test_anchors_come_from_either_file(tmp_path: Path) -> None:
    weights = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2)}
    anchor = {"a.pretrained_weight": torch.zeros(2, 2)}
    inside = open_artifact(make(tmp_path / "1", record(), model={**weights, **anchor}))
    assert inside.tensors.keys() == weights.keys()
    assert inside.anchors.keys() == anchor.keys()
    assert not inside.native
    beside = open_artifact(make(tmp_path / "2", record(), model=weights, pretrained=anchor))
    assert beside.anchors.keys() == anchor.keys()


def test_a_key_in_two_files_must_be_byte_equal(tmp_path: Path) -> None:
    weights, anchor = {"a.weight": torch.ones(2, 2)}, {"a.pretrained_weight": torch.zeros(2, 2)}
    both = {"model": {**weights, **anchor}, "pretrained": anchor}
    assert open_artifact(make(tmp_path / "1", record(), **both)).anchors.keys() == anchor.keys()
    for other in (
        torch.tensor([[0.0, 0.0], [0.0, -0.0]]),
        torch.zeros(4),
        torch.zeros(2, 2).half(),
    ):
        both["pretrained"] = {"a.pretrained_weight": other}
        folder = open_artifact(make(tmp_path / "2", record(), **both))
        with pytest.raises(CheckpointError, match=r"differs from the one in model\.safetensors"):
            _ = folder.anchors
        shutil.rmtree(tmp_path / "2")


def test_sharded_anchors(tmp_path: Path) -> None:
    path = make(
        tmp_path,
        record(modules=["a", "b"]),
        model={"a.weight": torch.ones(1), "b.weight": torch.ones(1)},
        p1={"a.pretrained_weight": torch.zeros(1)},
        p2={"b.pretrained_weight": torch.zeros(1)},
    )
    index_of(
        path,
        {"a.pretrained_weight": "p1.safetensors", "b.pretrained_weight": "p2.safetensors"},
        name="pretrained",
    )
    assert open_artifact(path).anchors.keys() == {"a.pretrained_weight", "b.pretrained_weight"}


def test_a_missing_anchor_is_named(tmp_path: Path) -> None:
    folder = open_artifact(make(tmp_path, record(), model={"a.weight": torch.ones(1)}))
    with pytest.raises(CheckpointError, match=r"'a\.pretrained_weight' is missing"):
        folder.check_anchors()


def test_names_of_anchors() -> None:
    for key, anchor in (
        ("a.b.weight", "a.b.pretrained_weight"),
        ("weight", "pretrained_weight"),
        ("a.bias", "a.pretrained_bias"),
    ):
        assert anchor_key(key) == anchor
        assert weight_key(anchor) == key
        assert is_anchor(anchor)
        assert not is_anchor(key)
    assert not is_anchor("pretrained_model.weight")


# Configuration ------------------------------------------------------------------------------------


def change(key: str, before: object, after: object, present: bool) -> dict:
    return {"key": key, "before": before, "after": after, "present": present}


def test_collapsing_the_configuration_undoes_the_recorded_changes(tmp_path: Path) -> None:
    changes = [
        change("hidden_dropout_prob", 0.1, 0.0, True),
        change("classifier_dropout", None, 0.1, False),
        change("set_by_someone", 0.1, 0.0, True),
        change("attention_dropout", 0.2, None, True),
    ]
    entries = {"base": {}, "config_changes": changes, "modules": []}
    config = {
        **record(**entries),
        "hidden_dropout_prob": 0.0,
        "classifier_dropout": 0.1,
        "set_by_someone": 0.3,
        "other": 1,
    }
    assert open_artifact(make(tmp_path, config)).collapsed_config() == {
        "model_type": "bert",
        "hidden_dropout_prob": 0.1,
        "set_by_someone": 0.3,
        "attention_dropout": 0.2,
        "other": 1,
    }


def test_labels_are_in_the_order_of_the_outputs(tmp_path: Path) -> None:
    config = {"architectures": ["BertForSequenceClassification"]}
    names = {str(index): f"name{index}" for index in (10, *range(10))}
    assert open_artifact(make(tmp_path, {**config, "id2label": names})).labels == tuple(
        f"name{index}" for index in range(11)
    )
    assert open_artifact(make(tmp_path, config)).labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({}, None),
        ({"architectures": None}, None),
        ({"architectures": []}, None),
        ({"architectures": ["BertModel"]}, None),
        ({"architectures": ["BertForPreTraining"]}, None),
        ({"architectures": ["BertForMaskedLM"]}, "masked-lm"),
        ({"architectures": ["GPT2LMHeadModel"]}, "causal-lm"),
        ({"architectures": ["LlamaForCausalLM"]}, "causal-lm"),
        ({"architectures": ["BertForTokenClassification"]}, "token-classification"),
        ({"architectures": ["BertForQuestionAnswering"]}, "question-answering"),
        ({"architectures": ["BertForMultipleChoice"]}, "multiple-choice"),
        ({"architectures": ["BertForSequenceClassification"]}, "text-classification"),
        (
            {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "a"}},
            "regression",
        ),
        (
            {
                "architectures": ["BertForSequenceClassification"],
                "problem_type": "multi_label_classification",
            },
            "multi-label",
        ),
    ],
)
def test_task_of_an_architecture(config: dict, task: str | None) -> None:
    found = task_of_config(config)
    assert (None if found is None else found.name) == task


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architectures": ["BertForNextSentencePrediction"]}, "a head for none of the known"),
        (
            {"architectures": ["BertForSequenceClassification"], "problem_type": "ranking"},
            "unknown problem_type 'ranking', expected one of single_label_classification",
        ),
    ],
)
def test_an_unknown_head_is_refused(config: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        task_of_config(config)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match="task: got 'translation', expected one of text-class"):
        get_task("translation")


# JSON ---------------------------------------------------------------------------------------------


def test_json_round_trip_is_sorted_and_keeps_text(tmp_path: Path) -> None:
    data = {"b": "größer", "a": [1, None, 0.1]}
    write_json(tmp_path / "a.json", data)
    text = (tmp_path / "a.json").read_text("utf-8")
    assert text.index('"a"') < text.index('"b"')
    assert "größer" in text
    assert read_json(tmp_path / "a.json") == data
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
