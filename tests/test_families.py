"""A handful of families go the whole way; `make matrix` takes them all."""

from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import make_model
from transformers import PreTrainedModel

from mixout_export import load_mixout, save_mixout
from mixout_export.checkpoint.quiet import quiet_libraries
from mixout_export.parity.battery import build_battery
from mixout_export.parity.subject import torch_subject
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.onnx_export import export_onnx
from mixout_export.stages.prepare import prepare_checkpoint
from mixout_export.stages.verify import verify_checkpoints

HEAD = "ForSequenceClassification"
COMMON = {"vocab_size": 120, "d_model": 32, "num_labels": 3, "pad_token_id": 0, "eos_token_id": 2}


def _bart() -> PreTrainedModel:
    config = transformers.BartConfig(
        **COMMON,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        decoder_start_token_id=2,
    )
    return transformers.BartForSequenceClassification(config)


def model_of(kind: str) -> PreTrainedModel:
    if kind != "bart":
        return make_model(kind, HEAD, num_labels=3)
    with quiet_libraries(), torch.random.fork_rng():
        torch.manual_seed(0)
        model = _bart()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2", "llama", "bart"])
def test_prepare_step_collapse_onnx_verify(kind: str, tmp_path: Path) -> None:
    with quiet_libraries():
        model_of(kind).save_pretrained(tmp_path / "base")
    prepare_checkpoint(str(tmp_path / "base"), tmp_path / "prepared")
    model = load_mixout(tmp_path / "prepared")
    ids = torch.arange(5, 21).reshape(2, 8)
    ids[:, -1] = 2  # the end that an encoder-decoder's classifier reads
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()(input_ids=ids, labels=torch.tensor([0, 2])).loss.backward()
    optimizer.step()
    assert any((value != before[name]).any() for name, value in model.named_parameters())
    save_mixout(model, tmp_path / "trained")
    collapse_checkpoint(tmp_path / "trained", tmp_path / "collapsed")
    export_onnx(tmp_path / "collapsed", tmp_path / "onnx")

    parity = verify_checkpoints(tmp_path / "trained", tmp_path / "onnx")
    assert parity.holds, parity.reasons()
    assert {"padding", "left padding", "shapes"} <= parity.outputs[0].by_batch.keys()
    assert not verify_checkpoints(tmp_path / "base", tmp_path / "onnx").holds


def test_the_battery_pads_on_both_sides_and_in_several_shapes(tmp_path: Path) -> None:
    with quiet_libraries():
        model_of("llama").save_pretrained(tmp_path / "base")
    battery = build_battery(torch_subject(tmp_path / "base").interface)
    shapes = {batch.shape for batch in battery.batches}
    assert {1, 3} <= {rows for rows, _ in shapes}
    first = {batch.name: batch.inputs["attention_mask"][:, 0] for batch in battery.batches}
    last = {batch.name: batch.inputs["attention_mask"][:, -1] for batch in battery.batches}
    assert (first["left padding"] == 0).any()
    assert (last["left padding"] == 1).all()
    assert (first["padding"] == 1).all()
    assert (last["padding"] == 0).any()
