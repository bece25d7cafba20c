"""PEFT adapters beside weights, or instead of them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints
from safetensors.torch import load_file, save_file

from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.stages.prepare import PrepareOptions, PrepareResult, prepare_checkpoint

WEIGHT = "bert.encoder.layer.0.attention.self.query.weight"
SCALE = 8 / 4  # lora_alpha / r


def write_adapter(path: Path, base: str, *, task: str = "SEQ_CLS", **tensors: torch.Tensor) -> Path:
    """Write a LoRA adapter for the first query."""
    path.mkdir(exist_ok=True)
    name = f"base_model.model.{WEIGHT.removesuffix('.weight')}"
    size = load_file(Path(base) / "model.safetensors")[WEIGHT].shape[0] if not tensors else 0
    generator = torch.Generator().manual_seed(0)
    tensors = tensors or {
        f"{name}.lora_A.weight": torch.randn(4, size, generator=generator),
        f"{name}.lora_B.weight": torch.randn(size, 4, generator=generator),
    }
    save_file(tensors, path / "adapter_model.safetensors", {"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["layer.0.attention.self.query"],
    }
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def merged(base: Path, adapter: Path) -> torch.Tensor:
    """Return what the weight is after the adapter was applied once."""
    a, b = (v for _, v in sorted(load_file(adapter / "adapter_model.safetensors").items()))
    return load_file(base / "model.safetensors")[WEIGHT] + SCALE * b @ a


def prepare(base: Path, out: Path, *, merge: bool = True) -> PrepareResult:
    return prepare_checkpoint(str(base), out, PrepareOptions(BaseOptions(merge_adapter=merge)))


@pytest.fixture
def base(tiny: TinyCheckpoints, tmp_path: Path) -> Path:
    folder = tiny.folder("bert", "ForSequenceClassification")
    return Path(shutil.copytree(folder, tmp_path / "base"))


def test_a_folder_with_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    alone = write_adapter(tmp_path / "alone", str(base))
    beside = write_adapter(base, str(base))
    for path, said in ((alone, "and no weights; run prepare"), (beside, "beside its weights, so")):
        with pytest.raises(CheckpointError, match=said):
            prepare(path, tmp_path / "out", merge=False)
        with pytest.raises(CheckpointError, match=said):
            open_artifact(path).load()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["alone", "base"])
def test_an_adapter_is_merged_once(base: Path, tmp_path: Path, where: str) -> None:
    pytest.importorskip("peft")
    adapter = write_adapter(tmp_path / where, str(base))
    result = prepare(adapter, tmp_path / "out")
    assert not result.fresh
    found = load_file(tmp_path / "out/model.safetensors")
    anchors = load_file(tmp_path / "out/pretrained.safetensors")
    torch.testing.assert_close(found[WEIGHT], merged(base, adapter), atol=1e-5, rtol=1e-5)
    assert torch.equal(anchors[WEIGHT.replace("weight", "pretrained_weight")], found[WEIGHT])
    for key, value in load_file(base / "model.safetensors").items():
        assert key == WEIGHT or torch.equal(found[key], value)
    assert not [file.name for file in (tmp_path / "out").iterdir() if "adapter" in file.name]
    assert open_artifact(tmp_path / "out").metadata.base.name == where
    assert open_artifact(tmp_path / "out").tokenizer is not None


def test_merged_weights_are_not_merged_again(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = Path(shutil.copytree(base, tmp_path / "both"))
    write_adapter(folder, str(base))
    weights = load_file(folder / "model.safetensors") | {WEIGHT: merged(base, folder)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="is probably merged into these weights already"):
        prepare(folder, tmp_path / "out")


def test_an_adapter_of_another_model(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    other = {"base_model.model.bert.encoder.layer.7.query.lora_A.weight": torch.zeros(4, 4)}
    adapter = write_adapter(tmp_path / "alone", str(base), **other)
    with pytest.raises(CheckpointError, match=r"alone: (the adapter does not fit|PEFT cannot)"):
        prepare(adapter, tmp_path / "out")


def test_a_head_that_nobody_has(tiny: TinyCheckpoints, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    adapter = write_adapter(tmp_path / "alone", str(base))
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tiny.folder("bert"))
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has 'classifier\.bias', which would be random"):
        prepare(adapter, tmp_path / "out")


def test_there_must_be_an_adapter(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"holds no adapter_config\.json; leave it out"):
        prepare(base, tmp_path / "out")
