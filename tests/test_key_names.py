"""Layers whose weights have other names on disk than in the model, or are merged there."""

from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from mixout_export import inject_mixout, load_mixout, save_mixout
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.checkpoint.loading import load_plain
from mixout_export.errors import CheckpointError
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.inspection import inspect_path
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints
from mixout_export.surgery.injection import mixout_layers
from mixout_export.surgery.key_names import disk_keys, merged_keys

QUERY = "nomic_bert.layers.0.self_attn.q_proj.weight"
STORED = "nomic_bert.encoder.layers.0.attn.Wqkv.weight"


def nomic_bert() -> PreTrainedModel:
    """Build a tiny model whose query, key and value are one tensor on disk."""
    with quiet_libraries(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.NomicBertConfig(
            vocab_size=120,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=4,
            head_dim=8,
            intermediate_size=48,
            max_position_embeddings=64,
            pad_token_id=0,
        )
        return transformers.NomicBertForSequenceClassification(config).eval()


def test_keys_on_disk() -> None:
    model = nomic_bert()
    keys = disk_keys(model)
    assert keys["nomic_bert.layers.0.self_attn.o_proj.weight"] == (
        "nomic_bert.encoder.layers.0.attn.out_proj.weight"
    )
    assert QUERY not in keys
    assert merged_keys(model, [QUERY]) == {QUERY: STORED}
    assert disk_keys(nn.Sequential(nn.Linear(2, 2))) == {"0.weight": "0.weight", "0.bias": "0.bias"}


def test_merged_layers_go_the_whole_way(tmp_path: Path) -> None:
    base = nomic_bert()
    base.save_pretrained(tmp_path / "base")
    result = prepare_checkpoint(str(tmp_path / "base"), tmp_path / "prepared")
    assert QUERY.removesuffix(".weight") in result.mixed
    model = load_mixout(tmp_path / "prepared")
    layers = mixout_layers(model)
    weights = base.state_dict()
    for name, layer in layers.items():
        assert torch.equal(layer.pretrained_weight, weights[f"{name}.weight"])

    ids = torch.arange(5, 19).reshape(2, 7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.manual_seed(0)
    model.train()(ids, labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    save_mixout(model, tmp_path / "trained")
    again = mixout_layers(load_mixout(tmp_path / "trained"))
    for name, layer in layers.items():
        assert torch.equal(layer.weight, again[name].weight)
        assert torch.equal(layer.pretrained_weight, again[name].pretrained_weight)

    found = inspect_path(tmp_path / "trained")
    assert len(found.layers) == len(result.mixed) - 2  # three layers, one tensor
    collapse_checkpoint(tmp_path / "trained", tmp_path / "collapsed")
    collapse_checkpoint(tmp_path / "trained", tmp_path / "back", interpolate=0.0)
    moved = load_plain(open_checkpoint(tmp_path / "collapsed")).state_dict()
    assert torch.equal(moved[QUERY], layers[QUERY.removesuffix(".weight")].weight)
    back = load_plain(open_checkpoint(tmp_path / "back")).state_dict()
    assert all(torch.equal(back[key], value) for key, value in weights.items())
    export_onnx(tmp_path / "collapsed", tmp_path / "onnx")
    assert verify_checkpoints(tmp_path / "trained", tmp_path / "onnx").holds


def test_merged_layers_of_a_model_that_was_never_prepared_are_refused(tmp_path: Path) -> None:
    model = nomic_bert()
    inject_mixout(model)
    with pytest.raises(CheckpointError, match="stored on disk in another form"):
        save_mixout(model, tmp_path / "out")
