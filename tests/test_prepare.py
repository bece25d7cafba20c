import json
import logging
import os
import pickle
import resource
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import ARCHITECTURES, TinyCheckpoints, make_model, save_checkpoint
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from mixout_export import MixoutConfig, load_mixout
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.keys import anchor_key
from mixout_export.errors import ArgumentError, CheckpointError, OutputError, TargetError
from mixout_export.files.streams import quick_digest
from mixout_export.files.tensors import digest_files
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.prepare import PrepareOptions, PrepareResult, prepare_checkpoint
from mixout_export.surgery.injection import mixout_layers

CLASSIFICATION = BaseOptions(task="text-classification")


def prepare(base: Path, out: Path, **options: Any) -> PrepareResult:
    """Prepare with the options of `BaseOptions` and `PrepareOptions` together."""
    own = {k: options.pop(k) for k in ("dropout", "head", "head_dropout", "mixout") if k in options}
    if isinstance(own.get("mixout"), dict):
        own["mixout"] = MixoutConfig(**own["mixout"])
    return prepare_checkpoint(str(base), out, PrepareOptions(base=BaseOptions(**options), **own))


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


def edit_json(path: Path, **entries: Any) -> None:
    data = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


# What is written ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_headless_base_gets_a_head_and_anchors(
    kind: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base, out = tiny.base(kind), tmp_path / "out"
    result = prepare(base, out, task="text-classification", labels=["no", "yes"])
    trained = load_file(out / "model.safetensors")
    anchors = load_file(out / "pretrained.safetensors")
    original = load_file(base / "model.safetensors")
    prefix = transformers.AutoConfig.from_pretrained(base).model_type
    body = {"gpt2": "transformer.", "llama": "model."}.get(prefix, f"{prefix}.")

    # every parameter of the base that the classifier has is there, and anchored bit for bit
    used = {key for key in original if f"{body}{key}" in trained}
    assert used >= set(original) - {k for k in original if "pooler" in k}
    for key in used:
        assert torch.equal(trained[f"{body}{key}"], original[key])
        assert torch.equal(anchors[anchor_key(f"{body}{key}")], original[key])
    assert set(anchors) == {anchor_key(f"{body}{key}") for key in used}

    # and the rest is the fresh head
    fresh = set(trained) - {f"{body}{key}" for key in used}
    assert fresh
    assert set(result.fresh) == fresh
    metadata = open_artifact(out).metadata
    assert metadata is not None
    assert set(metadata.head.keys) == fresh
    assert not any(key.startswith(body) and key in fresh for key in metadata.head.keys)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_plain_loader_reads_the_folder_key_for_key_without_a_warning(
    kind: str, tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    prepare(tiny.base(kind), out, task="text-classification")
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model, info = AutoModelForSequenceClassification.from_pretrained(
                out, output_loading_info=True
            )
    finally:
        logger.removeHandler(caplog.handler)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert not any(info.values())
    with quiet_libraries():
        model.save_pretrained(tmp_path / "again")
    again, ours = (
        load_file(tmp_path / "again" / "model.safetensors"),
        load_file(out / "model.safetensors"),
    )
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)
    assert json.loads((out / "config.json").read_text()) == json.loads(
        (tmp_path / "again" / "config.json").read_text()
    )


def test_the_folder_holds_just_what_the_contract_lists(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = prepare(tiny.base(), out, task="text-classification", labels=["no", "yes"])
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "manifest.json",
        "mixout_config.json",
        "model.safetensors",
        "pretrained.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (out / "pretrained.safetensors").stat().st_mode & 0o777 == 0o444
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode
    config = json.loads((out / "config.json").read_text())
    assert "mixout" not in config
    assert str(tmp_path) not in (out / "config.json").read_text()
    assert config["id2label"] == {"0": "no", "1": "yes"}
    assert config["problem_type"] == "single_label_classification"
    metadata = json.loads((out / "mixout_config.json").read_text())
    assert (metadata["p"], metadata["granularity"]) == (0.7, "neuron")
    assert metadata["base"]["name"] == "bert"
    assert metadata["base"]["sha256"] == digest_files([tiny.base() / "model.safetensors"])
    assert metadata["pretrained_sha256"] == digest_files([out / "pretrained.safetensors"])
    assert metadata["labels"] == ["no", "yes"]
    assert result.mixed == tuple(module["name"] for module in metadata["modules"])
    assert len(result.mixed) == 13  # six of each of two layers, and the pooler
    assert (result.architecture, result.task) == ("BertForSequenceClassification", result.task)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_loading_gives_mixout_layers_at_their_anchors(
    kind: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    result = prepare(
        tiny.base(kind),
        tmp_path / "out",
        task="text-classification",
        mixout={"p": 0.3, "granularity": "element"},
    )
    layers = mixout_layers(load_mixout(tmp_path / "out"))
    assert tuple(layers) == result.mixed
    for layer in layers.values():
        assert torch.equal(layer.weight, layer.pretrained_weight)
        assert (layer.p, layer.granularity) == (0.3, "element")
    assert result.mixed_parameters == sum(layer.weight.numel() for layer in layers.values())


def test_an_existing_head_is_kept_and_anchored(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = tiny.classifier(labels=3)
    result = prepare(base, tmp_path / "out")
    assert result.task == "text-classification"
    assert result.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert result.fresh == ()
    original, trained = (load_file(p / "model.safetensors") for p in (base, tmp_path / "out"))
    assert original.keys() == trained.keys()
    assert all(torch.equal(original[key], trained[key]) for key in original)
    anchors = load_file(tmp_path / "out" / "pretrained.safetensors")
    assert torch.equal(anchors["classifier.pretrained_weight"], original["classifier.weight"])
    assert "classifier" not in result.mixed


TASKS = [
    ("text-classification", 3, "ForSequenceClassification", "single_label_classification"),
    ("regression", None, "ForSequenceClassification", "regression"),
    ("multi-label", 4, "ForSequenceClassification", "multi_label_classification"),
    ("token-classification", 5, "ForTokenClassification", None),
    ("question-answering", None, "ForQuestionAnswering", None),
    ("multiple-choice", None, "ForMultipleChoice", None),
    ("masked-lm", None, "ForMaskedLM", None),
    ("causal-lm", None, "LMHeadModel", None),
]


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.parametrize(("task", "labels", "suffix", "problem"), TASKS)
def test_every_task(
    kind: str, task: str, labels: int | None, suffix: str, problem: str | None, tiny, tmp_path: Path
) -> None:
    name = {"bert": "Bert", "gpt2": "GPT2"}[kind]
    if not hasattr(transformers, name + suffix):
        with pytest.raises(CheckpointError, match=f"cannot be loaded for {task}"):
            prepare(tiny.base(kind), tmp_path / "out", task=task, labels=labels)
        return
    result = prepare(tiny.base(kind), tmp_path / "out", task=task, labels=labels)
    assert result.architecture == name + suffix
    folder = open_artifact(tmp_path / "out")
    assert folder.task is not None
    assert folder.task.name == result.task == task
    assert folder.config.get("problem_type") == problem
    if labels is not None:
        assert folder.labels == tuple(f"LABEL_{index}" for index in range(labels))
    model = load_mixout(tmp_path / "out")
    assert type(model).__name__ == name + suffix
    shape = (1, 2, 4) if task == "multiple-choice" else (1, 4)
    output = model(torch.full(shape, 7))
    assert torch.isfinite(output[folder.task.outputs[0]]).all()


def test_preparing_twice_gives_the_same_bytes(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    for name, seed in (("1", 0), ("2", 0), ("3", 1)):
        torch.manual_seed(99)
        prepare(tiny.base(), tmp_path / name, task="text-classification", seed=seed)
    one, two, three = (
        {f.name: f.read_bytes() for f in sorted((tmp_path / n).iterdir())} for n in "123"
    )
    assert one == two
    assert {name for name in one if one[name] != three[name]} == {
        "manifest.json",
        "model.safetensors",
        "mixout_config.json",
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bases_dtype_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_checkpoint(make_model("bert").to(dtype), tmp_path / "base")
    prepare(base, tmp_path / "out", task="text-classification")
    for name in ("model", "pretrained"):
        tensors = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}


def test_a_sharded_base(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny.base())
    base = save_checkpoint(model, tmp_path / "base", max_shard_size="20KB")
    assert len(list(base.glob("model-*.safetensors"))) > 2
    prepare(base, tmp_path / "sharded", task="text-classification")
    prepare(tiny.base(), tmp_path / "single", task="text-classification")
    for name in ("model", "pretrained"):
        one, two = (load_file(tmp_path / f / f"{name}.safetensors") for f in ("sharded", "single"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_base_with_extra_tensors(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """Old checkpoints hold `embeddings.position_ids`, which today's models make themselves."""
    base = copy_of(tiny.base(), tmp_path)
    tensors = load_file(base / "model.safetensors")
    tensors["embeddings.position_ids"] = torch.arange(64)[None]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    result = prepare(base, tmp_path / "out", task="text-classification")
    assert not any("position_ids" in key for key in result.fresh)
    for name in ("model", "pretrained"):
        keys = load_file(tmp_path / "out" / f"{name}.safetensors")
        assert not any("position_ids" in key for key in keys)


@pytest.mark.real
def test_the_real_checkpoint(real_checkpoint: Path, tmp_path: Path) -> None:
    result = prepare(real_checkpoint, tmp_path / "out", task="text-classification")
    assert set(result.fresh) == {"classifier.weight", "classifier.bias"}
    original = load_file(real_checkpoint / "model.safetensors")
    anchors = load_file(tmp_path / "out" / "pretrained.safetensors")
    expected = {anchor_key(f"bert.{k}"): v for k, v in original.items() if "position_ids" not in k}
    assert anchors.keys() == expected.keys()
    assert all(torch.equal(anchors[key], expected[key]) for key in anchors)


# Dropout and the head -----------------------------------------------------------------------------


def test_dropout_is_taken_out_of_the_body_and_kept_before_the_head(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = tiny.folder("bert", hidden_dropout_prob=0.2)
    result = prepare(base, tmp_path / "out", task="text-classification")
    model = load_mixout(tmp_path / "out")
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates.pop("dropout") == 0.1
    assert set(rates.values()) == {0.0}
    assert result.config_changes == {
        "hidden_dropout_prob": (0.2, 0.0),
        "attention_probs_dropout_prob": (0.1, 0.0),
        "classifier_dropout": (None, 0.1),
    }


def test_dropout_options(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    prepare(tiny.base(), tmp_path / "1", task="regression", dropout=0.3, head_dropout=0.5)
    model = load_mixout(tmp_path / "1")
    rates = {n: m.p for n, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert rates.pop("dropout") == 0.5
    assert set(rates.values()) == {0.3}
    prepare(tiny.base(), tmp_path / "2", task="regression", head="none")
    model = load_mixout(tmp_path / "2")
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_dropout_that_is_a_number_in_the_attention(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = tiny.folder("llama", attention_dropout=0.25)
    result = prepare(base, tmp_path / "out", task="text-classification")
    assert result.config_changes == {"attention_dropout": (0.25, 0.0)}
    assert load_mixout(tmp_path / "out").model.layers[0].self_attn.attention_dropout == 0.0
    assert result.notes == ("LlamaForSequenceClassification has no dropout before its head",)


@pytest.mark.parametrize(
    ("kind", "head"),
    [("bert", ["classifier"]), ("roberta", ["classifier.dense", "classifier.out_proj"])],
)
def test_head_mixout_anchors_the_fresh_head(kind: str, head: list[str], tiny, tmp_path) -> None:
    result = prepare(tiny.base(kind), tmp_path / "out", task="text-classification", head="mixout")
    assert list(result.mixed[-len(head) :]) == head
    layers = mixout_layers(load_mixout(tmp_path / "out"))
    weights = load_file(tmp_path / "out" / "model.safetensors")
    anchors = load_file(tmp_path / "out" / "pretrained.safetensors")
    for name in head:
        assert torch.equal(layers[name].pretrained_weight, weights[f"{name}.weight"])
        assert torch.equal(anchors[f"{name}.pretrained_weight"], weights[f"{name}.weight"])
        assert f"{name}.pretrained_bias" not in anchors


def test_head_mixout_needs_a_fresh_head(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="the base already has its head"):
        prepare(tiny.classifier(), tmp_path / "out", head="mixout")


def test_fresh_modules_of_the_body_are_not_mixed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = tiny.folder("bert", "ForMaskedLM")  # has no pooler
    result = prepare(base, tmp_path / "out", task="text-classification")
    assert "bert.pooler.dense.weight" in result.fresh
    assert "bert.pooler.dense" not in result.mixed
    assert result.skipped["bert.pooler.dense"] == "has no pretrained weight"
    assert any("bert.pooler.dense" in note for note in result.notes)
    assert all(key.startswith("cls.") for key in result.unused)


def test_tied_weights_stay_tied(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    prepare(tiny.base("gpt2"), tmp_path / "out", task="causal-lm")
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model = load_mixout(tmp_path / "out")
    assert model.lm_head.weight is model.transformer.wte.weight


# Labels -------------------------------------------------------------------------------------------


def test_a_label_count_replaces_an_existing_head(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    result = prepare(tiny.classifier(labels=3), tmp_path / "out", labels=2)
    assert result.fresh == ("classifier.bias", "classifier.weight")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert weights["classifier.weight"].shape == (2, 32)
    assert result.labels == ("LABEL_0", "LABEL_1")


def test_the_same_number_of_labels_keeps_head_and_names(tiny, tmp_path: Path) -> None:
    base = copy_of(tiny.classifier(labels=2), tmp_path)
    edit_json(base / "config.json", id2label={"0": "neg", "1": "pos"}, label2id=...)
    assert prepare(base, tmp_path / "1").labels == ("neg", "pos")
    assert prepare(base, tmp_path / "2", labels=2).labels == ("neg", "pos")
    renamed = prepare(base, tmp_path / "3", labels=["bad", "good"])
    assert renamed.labels == ("bad", "good")
    assert renamed.fresh == ()
    config = json.loads((tmp_path / "3" / "config.json").read_text())
    assert config["label2id"] == {"bad": 0, "good": 1}


def test_another_task_gets_a_head_of_its_own(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    result = prepare(tiny.classifier(labels=3), tmp_path / "out", task="regression")
    assert set(result.fresh) == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "multi-label"}, "the task multi-label needs labels; give --labels"),
        ({"task": "token-classification"}, "the task token-classification needs labels"),
        ({"task": "text-classification", "labels": 1}, "got 1, expected at least 2"),
        ({"task": "text-classification", "labels": 0}, "got 0, expected at least 2"),
        ({"task": "multi-label", "labels": 0}, "got 0, expected at least 1"),
        ({"task": "text-classification", "labels": ["a"]}, "got 1, expected at least 2"),
        ({"task": "text-classification", "labels": ["a", "a"]}, "expected different, non-empty"),
        ({"task": "text-classification", "labels": ["a", " "]}, "expected different, non-empty"),
        ({"task": "text-classification", "labels": ["a\nb", "c"]}, "expected names of one line"),
        ({"task": "regression", "labels": 2}, "regression has one output"),
        ({"task": "masked-lm", "labels": 2}, "the task masked-lm has no labels"),
        ({"task": "translation"}, "task: got 'translation', expected one of"),
        ({}, "has no task head, so its task is unknown; give --task"),
        ({"task": "regression", "dropout": 1.0}, r"dropout: got 1\.0, expected a probability"),
        ({"task": "regression", "head_dropout": -0.1}, r"head-dropout: got -0\.1"),
        ({"task": "regression", "dropout": float("nan")}, "dropout: got nan"),
        ({"task": "regression", "head": "linear"}, "head: got 'linear', expected one of dropout"),
    ],
)
def test_arguments_that_do_not_fit(options: dict, message: str, tiny, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        prepare(tiny.base(), tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_targets_that_select_nothing(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"'querry' matches no module.*similar names: query"):
        prepare(tiny.base(), tmp_path / "o", task="regression", mixout={"target_modules": "querry"})
    assert list(tmp_path.iterdir()) == []


# Bad bases ----------------------------------------------------------------------------------------


def test_no_such_base(tmp_path: Path) -> None:
    for base in (tmp_path / "none", Path("./no such folder")):
        with pytest.raises(CheckpointError, match="no such folder; check the path"):
            prepare(base, tmp_path / "out", task="regression")
    with pytest.raises(CheckpointError, match="no such folder, and the hub cannot be reached"):
        prepare(Path("nobody/nothing-of-the-kind"), tmp_path / "out", task="regression")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="is a file, expected a checkpoint folder"):
        prepare(tmp_path / "file", tmp_path / "out", task="regression")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": ...}, "has no 'model_type'"),
        ({"model_type": "nonesuch"}, r"config\.json: cannot be used \(.*nonesuch"),
        ({"hidden_size": 64}, r"has shape \(32,\), expected \(64,\)"),
        ({"hidden_size": "large"}, r"config\.json: cannot be used \(.*hidden_size.*'large'"),
        ({"num_attention_heads": 5}, r"\(.*5\)"),
    ],
)
@pytest.mark.parametrize("labels", [None, 2])
def test_a_configuration_that_does_not_fit(entries, message, labels, tiny, tmp_path: Path) -> None:
    base = copy_of(tiny.base(), tmp_path)
    edit_json(base / "config.json", **entries)
    with pytest.raises(CheckpointError, match=message) as caught:
        prepare(base, tmp_path / "out", task="text-classification", labels=labels)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_configuration_of_another_head(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.classifier(labels=3), tmp_path)
    edit_json(base / "config.json", id2label={"0": "a", "1": "b"}, label2id={"a": 0, "b": 1})
    with pytest.raises(CheckpointError, match=r"'classifier\.\w+' has shape \(3.*expected \(2"):
        prepare(base, tmp_path / "out")


def test_weights_of_another_model(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.base("gpt2"), tmp_path)
    shutil.copy(tiny.base("bert") / "config.json", base / "config.json")
    with pytest.raises(CheckpointError, match="none of its weights fits"):
        prepare(base, tmp_path / "out", task="text-classification")


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_configuration(text: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.base(), tmp_path)
    (base / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json: "):
        prepare(base, tmp_path / "out", task="regression")


def test_truncated_weights(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.base(), tmp_path)
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: is truncated"):
        prepare(base, tmp_path / "out", task="regression")


def test_missing_weights(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.base(), tmp_path)
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
        prepare(base, tmp_path / "out", task="regression")
    (base / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        prepare(base, tmp_path / "out", task="regression")


def pickled(base: Path, tmp_path: Path, **extra: Any) -> Path:
    folder = copy_of(base, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({**tensors, **extra}, folder / "pytorch_model.bin")
    return folder


def test_a_pickle_is_read_only_when_allowed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = pickled(tiny.base(), tmp_path)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: is a pickle.*--allow-pickle"):
        prepare(base, tmp_path / "out", task="text-classification")
    prepare(base, tmp_path / "out", task="text-classification", allow_pickle=True)
    prepare(tiny.base(), tmp_path / "safe", task="text-classification")
    for name in ("model", "pretrained"):
        one, two = (load_file(tmp_path / f / f"{name}.safetensors") for f in ("out", "safe"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def test_a_pickle_that_holds_code_never_runs_it(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.is_dir()  # the attack works on a plain pickle
    trace.rmdir()
    base = pickled(tiny.base(), tmp_path, evil=Malicious(trace))
    with pytest.raises(CheckpointError, match="holds more than tensors, and was not") as caught:
        prepare(base, tmp_path / "out", task="regression", allow_pickle=True)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not a pickle", b"PK\x03\x04broken"])
def test_a_broken_pickle(content: bytes, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = pickled(tiny.base(), tmp_path)
    (base / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        prepare(base, tmp_path / "out", task="regression", allow_pickle=True)
    assert "\n" not in str(caught.value)


def test_remote_code_is_refused_and_not_run(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.base(), tmp_path)
    edit_json(
        base / "config.json", model_type="own", auto_map={"AutoConfig": "configuration_own.Own"}
    )
    trace = tmp_path / "trace"
    (base / "configuration_own.py").write_text(f"import os; os.mkdir({str(trace)!r})")
    with pytest.raises(CheckpointError, match="needs Python code that comes with the checkpoint"):
        prepare(base, tmp_path / "out", task="regression")
    assert not trace.exists()


# OUT ----------------------------------------------------------------------------------------------


def test_out_is_protected(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.base(), tmp_path)
    with pytest.raises(ArgumentError, match="is the source itself"):
        prepare(base, base, task="regression")
    with pytest.raises(ArgumentError, match="lies inside the source"):
        prepare(base, base / "out", task="regression")
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_text("precious")
    with pytest.raises(OutputError, match="is not empty"):
        prepare(base, out, task="regression")
    options = PrepareOptions(base=BaseOptions(task="nonesuch"))
    with pytest.raises(ArgumentError, match="task"):
        prepare_checkpoint(str(base), out, options, overwrite=True)
    assert (out / "file").read_text() == "precious"
    prepare_checkpoint(str(base), out, PrepareOptions(base=CLASSIFICATION), overwrite=True)
    assert not (out / "file").exists()


def test_a_disk_that_is_full_is_one_sentence(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """A limit on a file's size makes the system refuse to write on, as a full disk does."""
    base = tiny.base()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written") as caught:
            prepare(base, tmp_path / "out", task="regression")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_base_is_never_changed(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = copy_of(tiny.base(), tmp_path)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    prepare(base, tmp_path / "out", task="regression")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert AutoConfig.from_pretrained(base).model_type == "bert"


def test_a_mixout_checkpoint_is_no_base(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """A second snapshot would move the anchors to wherever training had got."""
    prepare(tiny.base(), tmp_path / "prepared", task="regression")
    foreign = tmp_path / "foreign"
    load_mixout(tmp_path / "prepared").save_pretrained(foreign)
    for source in (tmp_path / "prepared", foreign):
        with pytest.raises(CheckpointError, match="is already a mixout checkpoint; train it"):
            prepare(source, tmp_path / "again", task="regression")
        assert not (tmp_path / "again").exists()


def test_a_quick_digest_of_the_anchors_is_recorded(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(tiny.base(), out, task="text-classification")
    metadata = json.loads((out / "mixout_config.json").read_text())
    assert metadata["pretrained_xxh3"] == quick_digest([out / "pretrained.safetensors"])
    assert metadata["pretrained_xxh3"] != quick_digest([out / "model.safetensors"])
