"""What of a base is not used, or is used in another way than before, and what is said about it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel

from mixout_export import MixoutConfig, inject_mixout
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.prepare import PrepareOptions, PrepareResult, prepare_checkpoint

Tensors = dict[str, Tensor]
NAMES = ("neutral", "positive", "negative")


def prepare(base: Path, out: Path, **options: object) -> PrepareResult:
    return prepare_checkpoint(str(base), out, PrepareOptions(base=BaseOptions(**options)))  # type: ignore[arg-type]


def changed(base: Path, tmp_path: Path, change: Callable[[Tensors], object]) -> Path:
    """Copy a folder and change its tensors."""
    path = shutil.copytree(base, tmp_path / "base")
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def configured(base: Path, tmp_path: Path, **entries: object) -> Path:
    """Copy a folder and change its configuration."""
    path = shutil.copytree(base, tmp_path / "base")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **entries}))
    return path


def labeled(base: Path, tmp_path: Path, names: tuple[str, ...], **entries: object) -> Path:
    ids = {str(index): name for index, name in enumerate(names)}
    return configured(base, tmp_path, **{"id2label": ids, **entries})


def renamed(names: Mapping[str, str]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for before, after in names.items():
            tensors[after] = tensors.pop(before)

    return change


# Labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "given", "said"),
    [
        (
            *(NAMES, "positive,neutral,negative"),
            "output 1 .* means 'positive'.* or give --labels neutral,positive,negative$",
        ),
        (
            *(NAMES, "neutral,NEGATIVE,other"),
            "output 2 .* means 'negative'.* or give --labels neutral,other,NEGATIVE, which renames "
            "positive -> other$",
        ),
        (
            *(("LABEL_0", "LABEL_1", "LABEL_2"), "2,1,0"),
            "output 2 .* means 'LABEL_2'.* or give --labels 0,1,2$",
        ),
    ],
)
def test_names_of_a_trained_head_keep_their_outputs(
    own: tuple[str, ...], given: str, said: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = labeled(tiny.classifier(), tmp_path, own)
    with pytest.raises(ArgumentError, match=said):
        prepare(base, tmp_path / "out", labels=given.split(","))


def test_new_names_of_a_trained_head_are_said(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = labeled(tiny.classifier(), tmp_path, NAMES)
    prepare(base, tmp_path / "out", labels=["Neutral", "good", "bad"])
    assert "are renamed: positive -> good, negative -> bad" in caplog.text


def test_names_for_nameless_outputs_need_no_warning(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(tiny.classifier(), tmp_path / "out", labels=["a", "b", "c"])
    assert not caplog.records


def test_a_fresh_head_may_have_its_labels_in_any_order(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = labeled(tiny.base(), tmp_path, NAMES)
    labels = ["positive", "neutral", "negative"]
    result = prepare(base, tmp_path / "out", task="text-classification", labels=labels)
    assert result.labels == tuple(labels)


def test_another_number_of_labels_names_the_head_that_is_lost(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = labeled(tiny.classifier(), tmp_path, NAMES)
    prepare(base, tmp_path / "out", labels=["negative", "positive"])
    assert "trained head for text-classification (neutral, positive, negative)" in caplog.text
    assert "is replaced by a new one: classifier.bias, classifier.weight" in caplog.text


def test_a_head_that_begins_another_task_is_named(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(tiny.classifier(), tmp_path / "out", task="token-classification", labels=3)
    assert "its head was trained for text-classification" in caplog.text


def test_contradictory_names_in_the_configuration_are_said(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = {name: 2 - index for index, name in enumerate(NAMES)}
    base = labeled(tiny.classifier(), tmp_path, NAMES, label2id=ids)
    assert prepare(base, tmp_path / "out").labels == NAMES
    assert "'neutral', but label2id gives this label to output 2" in caplog.text


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ({"1": "no", "2": "yes", "3": "maybe"}, "numbers the labels 1, 2, 3, expected 0 to 2"),
        ({"0": "no", "1": "yes", "2": "no"}, "gives several outputs the name 'no'"),
    ],
)
def test_labels_that_do_not_name_the_outputs_are_refused(
    ids: dict[str, str], said: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = configured(tiny.classifier(), tmp_path, id2label=ids, label2id={})
    with pytest.raises(CheckpointError, match=said):
        prepare(base, tmp_path / "out")
    assert prepare(base, tmp_path / "out", labels=["a", "b", "c"]).labels == ("a", "b", "c")


# Trained weights under other names ----------------------------------------------------------------


@pytest.mark.parametrize("task", [None, "text-classification"])
@pytest.mark.parametrize(
    "name",
    [
        "classifier.modules_to_save.default.{}",
        "base_model.model.classifier.{}",
        "classifier._orig_mod.{}",
    ],
)
def test_a_head_under_another_tools_keys_is_refused(
    name: str, task: str | None, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    names = {f"classifier.{part}": name.format(part) for part in ("weight", "bias")}
    base = changed(tiny.classifier(), tmp_path, renamed(names))
    with pytest.raises(CheckpointError, match=name.format("bias")):
        prepare(base, tmp_path / "out", task=task)


def test_layers_under_another_tools_keys_are_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    query = "encoder.layer.0.attention.self.query"
    base = changed(
        tiny.base(), tmp_path, renamed({f"{query}.weight": f"{query}.base_layer.weight"})
    )
    with pytest.raises(CheckpointError, match=r"query\.base_layer\.weight, which nothing reads"):
        prepare(base, tmp_path / "out", task="text-classification")


@pytest.mark.parametrize(
    ("prefix", "wrapper"),
    [("module.", "DistributedDataParallel"), ("_orig_mod.", "torch.compile")],
)
def test_weights_of_a_wrapped_model_are_explained(
    prefix: str, wrapper: str, tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    names = load_file(tiny.classifier() / "model.safetensors")
    base = changed(tiny.classifier(), tmp_path, renamed({name: prefix + name for name in names}))
    with pytest.raises(CheckpointError, match=f"which {wrapper} adds, so save the model inside"):
        prepare(base, tmp_path / "out")


def test_weights_that_are_not_numbers_are_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    def diverge(tensors: Tensors) -> None:
        tensors["classifier.weight"][0, 0] = float("nan")

    base = changed(tiny.classifier(), tmp_path, diverge)
    with pytest.raises(CheckpointError, match=r"'classifier\.weight' has values that are not numb"):
        prepare(base, tmp_path / "out")


def test_a_folder_of_checkpoints_names_its_newest(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    for step in (500, 1000):
        shutil.copytree(tiny.classifier(), tmp_path / "run" / f"checkpoint-{step}")
    with pytest.raises(CheckpointError, match=r"checkpoint-1000, so give that folder"):
        prepare(tmp_path / "run", tmp_path / "out")


def test_a_head_that_is_gone_is_not_replaced_unasked(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def behead(tensors: Tensors) -> None:
        del tensors["classifier.weight"], tensors["classifier.bias"]

    base = changed(tiny.classifier(), tmp_path, behead)
    with pytest.raises(CheckpointError, match="give --task text-classification to begin"):
        prepare(base, tmp_path / "out")
    prepare(base, tmp_path / "out", task="text-classification", labels=3)
    assert "the weights lack its head, classifier.bias, classifier.weight" in caplog.text


def test_gaps_in_the_body_are_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    key = "encoder.layer.1.output.dense.weight"
    base = changed(tiny.base(), tmp_path, lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match=f"lacks 1 tensors in the middle.*{key}"):
        prepare(base, tmp_path / "out", task="text-classification")


def test_a_missing_part_of_the_body_is_said(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def without_pooler(tensors: Tensors) -> None:
        for part in ("weight", "bias"):
            del tensors[f"pooler.dense.{part}"]

    base = changed(tiny.base(), tmp_path, without_pooler)
    prepare(base, tmp_path / "out", task="text-classification")
    assert "bert.pooler.dense.weight are missing in the base, so they are new" in caplog.text


def test_the_head_of_another_task_is_named_in_a_note(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = tiny.folder("bert", "ForMaskedLM")
    result = prepare(base, tmp_path / "out", task="text-classification")
    assert any("the head of BertForMaskedLM is not used: cls." in note for note in result.notes)
    assert not caplog.records


def test_tensors_that_nothing_reads_are_named_by_every_reader(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extra = {"adapter.weight": torch.ones(1)}
    base = changed(tiny.classifier(), tmp_path, lambda tensors: tensors.update(extra))
    result = prepare(base, tmp_path / "out")
    assert result.unused == ("adapter.weight",)
    assert "adapter.weight belong to no part of BertForSequenceClassification" in caplog.text
    caplog.clear()
    checkpoint = open_artifact(base).checkpoint
    assert checkpoint is not None
    _ = checkpoint.model
    assert "BertForSequenceClassification has no place for 'adapter.weight'" in caplog.text


def test_weights_that_are_rounded_are_said(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = configured(tiny.classifier(), tmp_path, dtype="float16")
    prepare(base, tmp_path / "out")
    assert "names the dtype float16, and the weights are F32, so they are rounded" in caplog.text


# Tied matrices ------------------------------------------------------------------------------------


def test_matrices_that_differ_are_not_called_tied(
    tiny: TinyCheckpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def untie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"] + 1

    base = changed(tiny.folder("gpt2", "LMHeadModel"), tmp_path, untie)
    prepare(base, tmp_path / "prepared")
    assert "tie_word_embeddings is true, but 'lm_head.weight'" in caplog.text
    collapse_checkpoint(tmp_path / "prepared", tmp_path / "collapsed")
    expected = load_file(base / "model.safetensors")
    for out in ("prepared", "collapsed"):
        config = json.loads((tmp_path / out / "config.json").read_text())
        assert config["tie_word_embeddings"] is False
        written = load_file(tmp_path / out / "model.safetensors")
        for key in ("lm_head.weight", "transformer.wte.weight"):
            assert torch.equal(written[key], expected[key])


def test_a_head_that_should_have_been_tied_is_not_random(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = configured(tiny.folder("gpt2", "LMHeadModel"), tmp_path, tie_word_embeddings=False)
    with pytest.raises(CheckpointError, match=r"lack its head, lm_head\.weight"):
        prepare(base, tmp_path / "out")


def test_a_regression_with_several_outputs_is_refused(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = labeled(tiny.classifier(), tmp_path, NAMES, problem_type="regression")
    with pytest.raises(CheckpointError, match="names 3 outputs for regression, expected 1"):
        prepare(base, tmp_path / "out")


def test_a_head_of_another_size_is_named_when_the_folder_is_opened(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    base = labeled(tiny.classifier(), tmp_path, NAMES[:2])
    with pytest.raises(
        CheckpointError, match=r"'classifier.bias' has shape \(3,\), expected \(2,\)"
    ):
        open_artifact(base).load()


def test_the_state_of_a_module_around_the_model_is_not_collapsed(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(tiny.folder("bert"))
    inject_mixout(model, MixoutConfig(p=0.5))
    model.save_pretrained(tmp_path / "inner")
    collapse_checkpoint(tmp_path / "inner", tmp_path / "plain")
    state = load_file(tmp_path / "inner/model.safetensors")
    around = {f"backbone.{key}": value for key, value in state.items()}
    save_file(around, tmp_path / "inner/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="the state of a module around the model"):
        collapse_checkpoint(tmp_path / "inner", tmp_path / "out")
    assert not (tmp_path / "out").exists()
