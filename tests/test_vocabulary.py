"""Token ids that the model has no row for, and rows that `prepare --resize-embeddings` adds."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TinyCheckpoints, make_tokenizer
from safetensors.torch import load_file
from tiny_models import edit_config
from training_runs import write_tsv

from mixout_export import MixoutConfig, load_mixout
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.data.texts import TextEncoding
from mixout_export.errors import ArgumentError, CheckpointError, DataError
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.prepare import PrepareOptions, PrepareResult, prepare_checkpoint
from mixout_export.stages.train import train_checkpoint
from mixout_export.stages.train.data import DataOptions
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.options import TrainOptions

TABLE = "bert.embeddings.word_embeddings.weight"


def base_with(
    tiny: TinyCheckpoints, path: Path, *tokens: str, kind: str = "bert", head: str = "Model"
) -> Path:
    """Copy a checkpoint and add tokens to its tokenizer only."""
    shutil.copytree(tiny.folder(kind, head), path)
    tokenizer = make_tokenizer(kind)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(path)
    return path


def prepare(base: Path, out: Path, targets: str = "all-linear", **options: Any) -> PrepareResult:
    given = {"task": "text-classification", "labels": 2, "resize_embeddings": True, **options}
    mixout = MixoutConfig(target_modules=targets)
    return prepare_checkpoint(str(base), out, PrepareOptions(BaseOptions(**given), mixout))


def test_ids_without_a_row_are_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = base_with(tiny, tmp_path / "base", "<url>")
    rows = load_file(base / "model.safetensors")["embeddings.word_embeddings.weight"].shape[0]
    said = rf"gives '<url>' the id {rows}, but the model's embedding has {rows} rows.*--resize-emb"
    with pytest.raises(CheckpointError, match=said):
        prepare(base, tmp_path / "out", resize_embeddings=False)
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError, match=said):
        open_artifact(base).interface  # noqa: B018 (onnx, verify and others begin with it)


def test_a_tokenizer_that_grew_later_is_refused_before_training(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    prepare(tiny.folder("bert"), tmp_path / "prepared", resize_embeddings=False)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<url>"])
    tokenizer.save_pretrained(tmp_path / "prepared")
    data = write_tsv(tmp_path / "data.tsv", ("text", "label"), [("a dog", 0), ("a cat", 1)])
    with pytest.raises(CheckpointError, match="gives '<url>' the id"):
        train_checkpoint(
            tmp_path / "prepared", tmp_path / "out", DataOptions(data), TrainOptions(max_steps=1)
        )


def test_ids_of_the_data_are_checked(tiny: TinyCheckpoints) -> None:
    artifact = open_artifact(tiny.folder("bert", "ForSequenceClassification"))
    assert artifact.interface is not None
    assert artifact.tokenizer is not None
    interface = replace(artifact.interface, vocabulary_size=50)
    encoding = TextEncoding(artifact.tokenizer, interface, 16)
    with pytest.raises(DataError, match=r"the id \d+ for '\w+', but the model has ids below 50;"):
        encoding.texts(["the dog sleeps"])
    assert len(encoding.texts(["a"])) == 1


@pytest.mark.parametrize("targets", ["all-linear", "query,word_embeddings"])
def test_added_rows_are_fresh(tiny: TinyCheckpoints, tmp_path: Path, targets: str) -> None:
    base = base_with(tiny, tmp_path / "base", "<url>", "<user>")
    result = prepare(base, tmp_path / "prepared", targets)
    before = load_file(base / "model.safetensors")["embeddings.word_embeddings.weight"]
    rows = len(before)
    assert f"{TABLE} has 2 new rows, {rows + 2} instead of {rows}: they are" in result.notes[0]
    table = load_file(tmp_path / "prepared/model.safetensors")[TABLE]
    anchors = load_file(tmp_path / "prepared/pretrained.safetensors")
    assert table.shape[0] == rows + 2
    assert torch.equal(table[:rows], before)
    assert table[rows:].std() > 0
    assert torch.equal(anchors[TABLE.replace("weight", "pretrained_weight")], before)
    model = load_mixout(tmp_path / "prepared")
    assert model.config.vocab_size == rows + 2
    for layer in mixout_layers(model).values():
        assert torch.equal(layer.weight[:rows], layer.pretrained_weight)
    data = write_tsv(tmp_path / "data.tsv", ("text", "label"), [("<url> dog", 0), ("a cat", 1)] * 2)
    options = TrainOptions(max_steps=2, decay_toward="pretrained")
    train_checkpoint(tmp_path / "prepared", tmp_path / "trained", DataOptions(data), options)
    collapse_checkpoint(tmp_path / "trained", tmp_path / "plain", interpolate=0.0)
    trained = load_file(tmp_path / "trained/model.safetensors")[TABLE]
    plain = load_file(tmp_path / "plain/model.safetensors")[TABLE]
    assert torch.equal(plain, torch.cat([before, trained[rows:]]))
    assert not torch.equal(trained[rows:], table[rows:])


@pytest.mark.parametrize(  # tied to the output layer, and not
    ("kind", "head", "tables"), [("gpt2", "LMHeadModel", 1), ("llama", "ForCausalLM", 2)]
)
def test_output_layers_are_enlarged_too(
    tiny: TinyCheckpoints, tmp_path: Path, kind: str, head: str, tables: int
) -> None:
    base = base_with(tiny, tmp_path / "base", "<url>", kind=kind, head=head)
    prepare(base, tmp_path / "one", task=None, labels=None)
    prepare(base, tmp_path / "two", task=None, labels=None)
    files = ["model.safetensors", "pretrained.safetensors"]
    one, two = ([(tmp_path / name / f).read_bytes() for f in files] for name in ("one", "two"))
    assert one == two
    before, after = (load_file(p / "model.safetensors") for p in (base, tmp_path / "one"))
    longer = {key for key, value in after.items() if value.shape != before[key].shape}
    assert len(longer) == tables
    anchors = load_file(tmp_path / "one/pretrained.safetensors")
    for key, value in before.items():
        assert torch.equal(anchors[".pretrained_".join(key.rsplit(".", 1))], value)


def test_a_padding_id_beyond_the_vocabulary(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = base_with(tiny, tmp_path / "base", kind="llama", head="ForCausalLM")
    rows = len(make_tokenizer("llama"))
    edit_config(base, pad_token_id=rows)
    with pytest.raises(CheckpointError, match=f"pad_token_id is {rows}, but vocab_size is {rows};"):
        prepare(base, tmp_path / "out", resize_embeddings=False)
    with pytest.raises(CheckpointError, match=f"pad_token_id is {rows}, but vocab_size is {rows};"):
        open_artifact(base).interface  # noqa: B018
    prepare(base, tmp_path / "prepared")
    config = load_mixout(tmp_path / "prepared").config
    assert (config.pad_token_id, config.vocab_size) == (rows, rows + 1)


def test_enough_rows_are_left_alone(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    prepare(tiny.folder("bert"), tmp_path / "one")
    prepare(tiny.folder("bert"), tmp_path / "two", resize_embeddings=False)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_the_number_of_rows_needs_a_tokenizer(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    base = base_with(tiny, tmp_path / "base")
    for file in base.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(
        ArgumentError, match=r"resize-embeddings: .* has no tokenizer, or no embedd"
    ):
        prepare(base, tmp_path / "out")
