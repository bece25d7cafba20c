import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import ARCHITECTURES, TinyCheckpoints, make_model, save_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from mixout_export import (
    MixoutConfig,
    collapse_mixout,
    inject_mixout,
    load_mixout,
    save_mixout,
)
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint import saving
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.loading import load_plain, load_weights
from mixout_export.checkpoint.model_state import plain_state
from mixout_export.checkpoint.saving import write_anchors, write_mixout
from mixout_export.checkpoint.tokenizer import load_tokenizer
from mixout_export.errors import ArgumentError, CheckpointError, OutputError
from mixout_export.files.tensors import digest_files, read_tensors
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.surgery.injection import mixout_layers


def prepare(base: Path, out: Path, **options: object) -> Path:
    prepare_checkpoint(
        str(base), out, PrepareOptions(base=BaseOptions(task="text-classification"), **options)
    )
    return out


@pytest.fixture
def prepared(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    return prepare(tiny.base(), tmp_path / "prepared", head_dropout=0.2)


def move(model: nn.Module, seed: int = 1) -> nn.Module:
    """Move every parameter, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.1, generator=generator))
    return model


def foreign(model, path: Path) -> Path:
    """Save as other people's trainers do."""
    with quiet_libraries():
        model.save_pretrained(path)
    return path


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[key].dtype == two[key].dtype and torch.equal(one[key], two[key]) for key in one
    )


IDS = torch.tensor([[2, 9, 30, 77, 3], [2, 100, 4, 3, 0]])


# Round trips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_save_and_load(kind: str, tiny: TinyCheckpoints, tmp_path: Path) -> None:
    prepared = prepare(tiny.base(kind), tmp_path / "prepared", mixout=MixoutConfig(p=0.4))
    model = move(load_mixout(prepared))
    save_mixout(model, tmp_path / "trained")
    again = load_mixout(tmp_path / "trained")
    assert same(again.state_dict(), model.state_dict())
    assert not again.training
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    layers = mixout_layers(again)
    assert {layer.p for layer in layers.values()} == {0.4}
    assert not any(torch.equal(m.weight, m.pretrained_weight) for m in layers.values())
    assert torch.equal(
        load_plain(open_checkpoint(tmp_path / "trained"))(IDS).logits, model(IDS).logits
    )


def test_anchors_are_linked_and_everything_recorded_is_kept(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "trained"
    model = move(load_mixout(prepared))
    for layer in mixout_layers(model).values():
        layer.p = 0.25
    save_mixout(model, out)
    ours, theirs = out / "pretrained.safetensors", prepared / "pretrained.safetensors"
    assert ours.stat().st_ino == theirs.stat().st_ino
    assert ours.stat().st_mode & 0o777 == 0o444
    one, two = (json.loads((p / "mixout_config.json").read_text()) for p in (prepared, out))
    assert two == {**one, "p": 0.25}
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (prepared / name).read_bytes()
    keys = load_file(out / "model.safetensors").keys()
    assert keys == load_file(prepared / "model.safetensors").keys()


def test_anchors_are_copied_where_links_do_not_work(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError("not supported")

    monkeypatch.setattr(os, "link", no_links)
    save_mixout(load_mixout(prepared), tmp_path / "trained")
    copied = tmp_path / "trained" / "pretrained.safetensors"
    assert copied.read_bytes() == (prepared / "pretrained.safetensors").read_bytes()
    assert copied.stat().st_mode & 0o777 == 0o444


def test_dropout_of_body_and_head_survives(prepared: Path, tmp_path: Path) -> None:
    save_mixout(load_mixout(prepared), tmp_path / "again")
    for path in (prepared, tmp_path / "again"):
        model = load_mixout(path)
        rates = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
        assert rates.pop("dropout") == 0.2
        assert set(rates.values()) == {0.0}


def test_a_head_whose_dropout_is_the_bodys_entry(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    """MPNet's head reads `hidden_dropout_prob` too, so the configuration cannot tell them apart."""
    prepared = prepare(tiny.folder("mpnet"), tmp_path / "prepared", head_dropout=0.2)
    model = load_mixout(prepared)
    assert model.classifier.dropout.p == 0.2
    assert model.mpnet.embeddings.dropout.p == 0.0
    again = load_mixout(foreign(model, tmp_path / "foreign"))
    assert again.classifier.dropout.p == 0.2


def test_unknown_entries_survive_and_newer_formats_are_refused(
    prepared: Path, tmp_path: Path
) -> None:
    path = prepared / "mixout_config.json"
    data = {**json.loads(path.read_text()), "future": {"a": [1]}}
    data["modules"][0]["color"] = "red"
    path.write_text(json.dumps(data))
    save_mixout(load_mixout(prepared), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "mixout_config.json").read_text()) == data
    path.write_text(json.dumps({**data, "format_version": 2}))
    with pytest.raises(CheckpointError, match="has format version 2"):
        load_mixout(prepared)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_model_injected_by_hand(kind: str, tmp_path: Path) -> None:
    model = make_model(kind, "ForSequenceClassification", num_labels=3)
    config = MixoutConfig(0.3, "element", exclude_modules=".*(query|q_lin|q_proj|c_attn)")
    inject_mixout(model, config)
    move(model)
    save_mixout(model, tmp_path / "out")
    again = load_mixout(tmp_path / "out")
    assert same(again.state_dict(), model.state_dict())
    metadata = open_artifact(tmp_path / "out").metadata
    assert metadata is not None
    assert metadata.config == config
    assert metadata.task == "text-classification"
    assert metadata.pretrained_sha256 == digest_files([tmp_path / "out" / "pretrained.safetensors"])
    assert "mixout" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_sharded_weights_and_anchors(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_SHARD_SIZE", "20KB")
    model = move(load_mixout(prepared))
    out = tmp_path / "out"
    save_mixout(model, out)
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 2
    assert not (out / "model.safetensors").exists()
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert not any("pretrained" in key for key in index["weight_map"])
    assert same(load_mixout(out).state_dict(), model.state_dict())

    anchors = list(read_tensors(prepared / "pretrained.safetensors").values())
    (out / "pretrained.safetensors").unlink()
    digest = write_anchors(out, anchors, limit=30_000)
    shards = sorted(out.glob("pretrained-*-of-*.safetensors"))
    assert len(shards) > 2
    assert all(shard.stat().st_mode & 0o777 == 0o444 for shard in shards)
    assert all(shard.stat().st_size < 34_000 for shard in shards)
    metadata = json.loads((out / "mixout_config.json").read_text())
    metadata["pretrained_sha256"] = digest
    (out / "mixout_config.json").write_text(json.dumps(metadata))
    loaded = load_mixout(out)
    assert same(loaded.state_dict(), model.state_dict())
    save_mixout(loaded, tmp_path / "again")
    assert same(load_mixout(tmp_path / "again").state_dict(), model.state_dict())
    linked = sorted((tmp_path / "again").glob("pretrained-*.safetensors"))
    assert [f.stat().st_ino for f in linked] == [f.stat().st_ino for f in shards]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    base = save_checkpoint(make_model("bert").to(dtype), tmp_path / "base")
    model = load_mixout(prepare(base, tmp_path / "prepared"))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {m.pretrained_weight.dtype for m in mixout_layers(model).values()} == {dtype}
    save_mixout(model, tmp_path / "again")
    assert same(load_mixout(tmp_path / "again").state_dict(), model.state_dict())


def test_weights_lie_in_memory_of_their_own(prepared: Path) -> None:
    model = load_plain(open_checkpoint(prepared))
    assert all(p.data_ptr() % 64 == 0 for p in model.parameters())
    (prepared / "model.safetensors").write_bytes(b"")
    assert torch.isfinite(model(IDS).logits).all()


def test_plain_models_in_another_dtype(prepared: Path) -> None:
    model = load_plain(open_checkpoint(prepared), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not mixout_layers(model)
    assert not hasattr(model.config, "mixout")


def test_tokenizer(prepared: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(prepared)
    assert tokenizer is not None
    assert tokenizer("the dog").input_ids[0] == 2
    assert load_tokenizer(tmp_path) is None
    (prepared / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="the tokenizer cannot be loaded"):
        load_tokenizer(prepared)


# Folders that other people's trainers save --------------------------------------------------------


def test_a_foreign_folder_of_an_injected_model(tmp_path: Path) -> None:
    model = make_model("bert", "ForSequenceClassification")
    inject_mixout(model, MixoutConfig(p=0.3))
    move(model)
    path = foreign(model, tmp_path / "foreign")
    assert not (path / "mixout_config.json").exists()
    again = load_mixout(path)
    assert same(again.state_dict(), model.state_dict())
    assert {m.p for m in mixout_layers(again).values()} == {0.3}
    save_mixout(again, tmp_path / "native")
    assert same(load_mixout(tmp_path / "native").state_dict(), model.state_dict())
    keys = load_file(tmp_path / "native" / "model.safetensors").keys()
    assert not any("pretrained" in key for key in keys)


def test_a_foreign_folder_of_a_loaded_checkpoint_keeps_its_history(
    prepared: Path, tmp_path: Path
) -> None:
    model = move(load_mixout(prepared))
    path = foreign(model, tmp_path / "foreign")
    again = load_mixout(path)
    assert same(again.state_dict(), model.state_dict())
    rates = {n: m.p for n, m in again.named_modules() if isinstance(m, nn.Dropout)}
    assert rates.pop("dropout") == 0.2
    assert set(rates.values()) == {0.0}
    save_mixout(again, tmp_path / "native")
    one, two = (open_artifact(p).metadata for p in (prepared, tmp_path / "native"))
    assert one is not None
    assert two is not None
    for name in ("config", "modules", "base", "task", "labels", "head", "dropout", "seed"):
        assert getattr(one, name) == getattr(two, name)
    assert one.config_changes == two.config_changes
    assert same(load_mixout(tmp_path / "native").state_dict(), model.state_dict())


def test_a_foreign_save_onto_a_checkpoint(prepared: Path) -> None:
    """Anchors then lie in both files, byte for byte the same."""
    model = move(load_mixout(prepared))
    foreign(model, prepared)
    assert "bert.pooler.dense.pretrained_weight" in load_file(prepared / "model.safetensors")
    assert same(load_mixout(prepared).state_dict(), model.state_dict())


# Injection after collapse -------------------------------------------------------------------------


def test_a_new_injection_has_anchors_of_its_own(prepared: Path, tmp_path: Path) -> None:
    """The folder a collapsed model came from must not lend its anchors to the next injection."""
    model = move(load_mixout(prepared))
    collapse_mixout(model)
    assert not any("mixout" in name for name in vars(model))
    inject_mixout(model, MixoutConfig(target_modules="query"))
    expected = {n: m.pretrained_weight.clone() for n, m in mixout_layers(model).items()}
    move(model, seed=2)
    save_mixout(model, tmp_path / "again")
    layers = mixout_layers(load_mixout(tmp_path / "again"))
    assert layers.keys() == expected.keys()
    assert all(torch.equal(layers[n].pretrained_weight, expected[n]) for n in layers)


# Parts that training uses -------------------------------------------------------------------------


def test_weights_into_a_model(prepared: Path, tmp_path: Path) -> None:
    model = load_mixout(prepared)
    moved = move(copy.deepcopy(model))
    save_mixout(moved, tmp_path / "moved")
    load_weights(model, tmp_path / "moved")
    assert same(model.state_dict(), moved.state_dict())
    other = make_model("gpt2", "ForSequenceClassification")
    with pytest.raises(CheckpointError, match="holds other tensors than GPT2"):
        load_weights(other, tmp_path / "moved")


def test_state_without_anchors(prepared: Path) -> None:
    model = load_mixout(prepared)
    assert plain_state(model).keys() == load_plain(open_checkpoint(prepared)).state_dict().keys()
    assert all("pretrained_" not in key for key in plain_state(model))


def test_p_to_record(prepared: Path, tmp_path: Path) -> None:
    model = load_mixout(prepared)
    (tmp_path / "out").mkdir()
    origin = open_artifact(prepared)
    given = origin.metadata.with_p(0.1)
    metadata = write_mixout(model, tmp_path / "out", origin=origin, metadata=given)
    assert metadata.config.p == 0.1
    assert {m.p for m in mixout_layers(load_mixout(tmp_path / "out")).values()} == {0.1}


# Refusals -----------------------------------------------------------------------------------------


def test_changed_anchors_are_refused(prepared: Path) -> None:
    path = prepared / "pretrained.safetensors"
    anchors = load_file(path)
    anchors["bert.pooler.dense.pretrained_weight"][0, 0] += 1.0
    path.unlink()
    save_file(anchors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has SHA-256 \w{64}, expected \w{64} as recorded"):
        load_mixout(prepared)


def test_missing_anchors_are_refused(prepared: Path) -> None:
    (prepared / "pretrained.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is missing; restore the folder's pretrained"):
        load_mixout(prepared)


def test_metadata_that_does_not_fit_is_refused(prepared: Path) -> None:
    path = prepared / "mixout_config.json"
    data = json.loads(path.read_text())
    data["modules"][0]["name"] = "bert.nonesuch"
    path.write_text(json.dumps(data))
    with pytest.raises(
        CheckpointError, match=r"the mixout metadata does not fit the model, .*nonesuch"
    ):
        load_mixout(prepared)


def test_a_missing_or_misshapen_weight_is_refused(prepared: Path) -> None:
    weights = load_file(prepared / "model.safetensors")
    bias = weights.pop("bert.pooler.dense.bias")
    save_file(weights, prepared / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*'bert\.pooler\.dense\.bias'"):
        load_plain(open_checkpoint(prepared))
    weights["bert.pooler.dense.bias"] = bias[:5].clone()
    save_file(weights, prepared / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"bert\.pooler\.dense\.bias|sizes") as caught:
        load_plain(open_checkpoint(prepared))
    assert "\n" not in str(caught.value)


def test_truncated_files_are_named(prepared: Path) -> None:
    for name in ("pretrained.safetensors", "model.safetensors"):
        copied = shutil.copytree(prepared, prepared.with_name(f"no-{name}"))
        path = copied / name
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=rf"{name}: is truncated"):
            load_mixout(copied)


def test_other_folders_are_refused(tiny: TinyCheckpoints, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a plain checkpoint, expected a mixout"):
        load_mixout(tiny.classifier())
    with pytest.raises(CheckpointError, match="no such folder"):
        load_mixout(str(tmp_path / "none"))
    folder = shutil.copytree(tiny.classifier(), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NoSuchModel"]}))
    with pytest.raises(CheckpointError, match="'NoSuchModel' cannot be loaded, transformers does"):
        load_plain(open_checkpoint(folder))


def test_only_transformers_models_with_mixout_are_saved(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="got Linear, expected a transformers model"):
        save_mixout(nn.Linear(2, 2), tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="holds no mixout layer; inject_mixout"):
        save_mixout(make_model("bert"), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_saving_over_a_folder(prepared: Path) -> None:
    model = move(load_mixout(prepared))
    with pytest.raises(OutputError, match="is not empty"):
        save_mixout(model, prepared)
    save_mixout(model, prepared, overwrite=True)
    assert same(load_mixout(prepared).state_dict(), model.state_dict())
    assert [path.name for path in prepared.parent.iterdir()] == ["prepared"]


def test_a_full_disk_leaves_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("bert", "ForSequenceClassification")
    inject_mixout(model)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"No space left on device"):
        save_mixout(model, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["prepared"]


def test_loading_leaves_the_process_as_it_was(prepared: Path, tmp_path: Path) -> None:
    """No environment variable, logging level or warning filter of the user's changes."""
    script = """
import logging, os, sys, warnings
import transformers
names = ("", "transformers", "torch.onnx", "accelerate", "mixout_export")
def now():
    loggers = [logging.getLogger(name) for name in names]
    levels = [(logger.level, list(logger.handlers), logger.propagate) for logger in loggers]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    return dict(os.environ), levels, list(warnings.filters), bars
from mixout_export import load_mixout, save_mixout
before = now()
model = load_mixout(sys.argv[1])
save_mixout(model, sys.argv[2])
after = now()
print([i for i, (a, b) in enumerate(zip(before, after)) if a != b])
"""
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-c", script, str(prepared), str(tmp_path / "again")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.strip() == "[]"
