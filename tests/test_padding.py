"""A text gets the same answer alone, padded on either side, and in a batch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import TinyCheckpoints, make_model, make_tokenizer
from training_runs import TrainingGround

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.interface import describe_interface
from mixout_export.checkpoint.loading import load_plain
from mixout_export.checkpoint.padding import answers_alike, settle_padding
from mixout_export.checkpoint.tokenizer_file import set_padding_side
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.tasks import get_task

CLASSIFIER = "ForSequenceClassification"
TASK = get_task("text-classification")


def save(kind: str, path: Path, head: str = CLASSIFIER, side: str = "left") -> Path:
    """Save a model with a tokenizer that pads on one side."""
    make_model(kind, head).save_pretrained(path)
    make_tokenizer(kind).save_pretrained(path)
    set_padding_side(path, side)
    return path


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


@pytest.mark.parametrize(
    ("kind", "sides"),
    [("bert", {"right"}), ("gpt2", {"right"}), ("llama", {"right", "left"}), ("t5", {"right"})],
)
def test_transformers_alone_depends_on_the_side(kind: str, sides: set[str], tmp_path: Path) -> None:
    model = load_plain(open_checkpoint(save(kind, tmp_path / kind)), dtype=torch.float32)
    described = describe_interface(model, TASK, make_tokenizer(kind))
    runner = open_checkpoint(tmp_path / kind).runner(described.inputs)
    runner._model = model  # type: ignore[attr-defined]  # without what the folder adds to it
    assert {side for side in ("right", "left") if answers_alike(runner, described, side)} == sides


@pytest.mark.parametrize(
    ("kind", "head", "side", "expected"),
    [
        ("gpt2", CLASSIFIER, "left", True),
        ("bert", CLASSIFIER, "left", True),
        ("gpt2", CLASSIFIER, "right", False),
        ("llama", CLASSIFIER, "left", False),
        ("gpt2", "LMHeadModel", "left", False),  # generates
        ("gpt2", "Model", "left", True),
    ],
)
def test_a_plain_folder_that_pads_on_the_wrong_side_is_named(
    kind: str,
    head: str,
    side: str,
    expected: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    open_checkpoint(save(kind, tmp_path / "plain", head, side)).load()
    assert ("plain: the tokenizer pads on the left" in caplog.text) is expected
    assert ('set "padding_side": "right" in tokenizer_config.json' in caplog.text) is expected


@pytest.mark.parametrize(("kind", "left"), [("bert", False), ("gpt2", True), ("llama", True)])
def test_graph_and_folder_take_padding_where_they_say(
    kind: str, left: bool, tmp_path: Path
) -> None:
    source = save(kind, tmp_path / "plain")
    graph = export_onnx(source, tmp_path / "onnx", verify=False).path
    for path in (source, graph):
        artifact = open_artifact(path)
        interface = artifact.described_by(None)
        assert interface.left_padding is left
        runner = artifact.runner(interface.inputs)
        assert answers_alike(runner, interface, "right")
        assert answers_alike(runner, interface, "left") is left
    said = json.loads((graph / "tokenizer_config.json").read_text())
    assert said.get("padding_side") == ("left" if left else "right")


def test_prepare_moves_the_padding_of_a_classifier(tmp_path: Path) -> None:
    base = save("gpt2", tmp_path / "base", "LMHeadModel")
    made = prepare_checkpoint(
        str(base), tmp_path / "out", PrepareOptions(base=BaseOptions(task=TASK.name, labels=2))
    )
    assert any("pads on the left" in note for note in made.notes)
    assert open_checkpoint(made.out).tokenizer.padding_side == "right"
    kept = prepare_checkpoint(
        str(base), tmp_path / "generates", PrepareOptions(base=BaseOptions(task="causal-lm"))
    )
    assert open_checkpoint(kept.out).tokenizer.padding_side == "left"


@pytest.mark.parametrize("size", [1, 16])
def test_training_scores_a_text_whatever_its_batch(
    size: int, ground: TrainingGround, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = tmp_path / "prepared"
    options = PrepareOptions(base=BaseOptions(task=TASK.name, labels=2))
    prepare_checkpoint(str(save("gpt2", tmp_path / "base", "Model", "right")), prepared, options)
    set_padding_side(prepared, "left")  # as in a folder of an earlier version
    out = tmp_path / "out"
    ground.run(out, prepared=prepared, max_steps=1, batch_size=size, lr=1e-30)
    assert "texts are padded on the right" in caplog.text
    model, tokenizer = load_plain(open_checkpoint(out)), open_checkpoint(out).tokenizer
    data = ground.data().eval_file
    assert tokenizer is not None
    assert data is not None
    rows = [line.split("\t") for line in data.read_text().splitlines()[1:]]
    with torch.inference_mode():
        losses = [
            model(**tokenizer(text, return_tensors="pt"), labels=torch.tensor([int(label)])).loss
            for text, label in rows
        ]
    first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])
    np.testing.assert_allclose(first["eval_loss"], np.mean(losses), rtol=1e-5)


def test_a_model_without_padding_on_the_left_says_so(tmp_path: Path) -> None:
    model = make_model("bert", CLASSIFIER)
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "left"
    described = describe_interface(model, TASK, tokenizer)
    assert described.left_padding
    assert not settle_padding(model, described).left_padding
