"""Mixout in a transformers model inside a plain module, and folders that have only its anchors."""

import json
import logging
from pathlib import Path

import pytest
import torch
from checkpoints import make_model, make_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from mixout_export import MixoutConfig, collapse_mixout, inject_mixout, load_mixout, save_mixout
from mixout_export.artifacts.opening import open_artifact
from mixout_export.checkpoint.base import BaseOptions
from mixout_export.checkpoint.mixed import MixoutCheckpoint
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.quiet import quiet_libraries
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.inspection import inspect_path
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.stages.train import train_checkpoint
from mixout_export.stages.train.data import DataOptions
from mixout_export.surgery.injection import mixout_layers
from mixout_export.training.options import TrainOptions


class Net(nn.Module):
    """The model of many notebooks: a pretrained body and a layer of one's own."""

    def __init__(self, body: PreTrainedModel) -> None:
        super().__init__()
        self.config = body.config
        self.body = body
        self.linear = nn.Linear(body.config.hidden_size, 2)


def trained_net(p: float = 0.3, **options: str) -> tuple[Net, dict[str, Tensor]]:
    """Return a module whose body was mixed and moved, and the body's weights before that."""
    net = Net(make_model("bert", "Model"))
    before = {key: value.clone() for key, value in net.body.state_dict().items()}
    inject_mixout(net, MixoutConfig(p=p, **{"exclude_modules": "linear", **options}))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.01)
    return net, before


def save_plainly(model: PreTrainedModel, path: Path) -> Path:
    """Save a model as other people's programs do."""
    with quiet_libraries():
        model.save_pretrained(path)
        make_tokenizer().save_pretrained(path)
    return path


def save_state(net: Net, path: Path) -> Path:
    """Save the whole module's tensors beside a configuration without a record."""
    path.mkdir()
    config = {k: v for k, v in net.body.config.to_dict().items() if k != "mixout"}
    (path / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    state = {key.replace("body.", "bert."): value for key, value in net.state_dict().items()}
    save_file(state, path / "model.safetensors", {"format": "pt"})
    return path


def check_anchors(path: Path, net: Net, before: dict[str, Tensor]) -> None:
    """Check that a folder loads with the trained weights and the first weights as anchors."""
    model = load_mixout(path)
    layers = mixout_layers(model)
    assert set(layers) == set(mixout_layers(net.body))
    for name, layer in layers.items():
        assert torch.equal(layer.pretrained_weight, before[f"{name}.weight"])
        assert torch.equal(layer.weight, net.body.get_submodule(name).weight)


def test_the_inner_model_keeps_the_record(tmp_path: Path) -> None:
    net, before = trained_net()
    path = save_plainly(net.body, tmp_path / "inner")
    assert open_artifact(path).metadata.config.p == 0.3
    check_anchors(path, net, before)
    collapse_checkpoint(path, tmp_path / "plain")
    with quiet_libraries():
        plain = AutoModel.from_pretrained(tmp_path / "plain").state_dict()
    collapse_mixout(net)
    assert "mixout" not in net.body.config.to_dict()
    assert plain.keys() == net.body.state_dict().keys()
    assert all(torch.equal(plain[k], v) for k, v in net.body.state_dict().items())


def test_anchors_without_a_record_are_recognized(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net, before = trained_net()
    del net.body.config.mixout
    path = save_plainly(net.body, tmp_path / "inner")
    found = open_artifact(path)
    assert isinstance(found, MixoutCheckpoint)
    assert not found.recorded
    assert len(inspect_path(path).layers) == len(mixout_layers(net.body))
    with caplog.at_level(logging.WARNING, "mixout_export"):
        check_anchors(path, net, before)
    assert "does not record p, so p = 0.7" in caplog.text


def test_the_state_of_the_whole_module_is_recognized(tmp_path: Path) -> None:
    net, before = trained_net()
    path = save_state(net, tmp_path / "state")
    check_anchors(path, net, before)
    collapse_checkpoint(path, tmp_path / "plain")
    assert not [k for k in load_file(tmp_path / "plain/model.safetensors") if "pretrained" in k]


@pytest.mark.parametrize("how", ["inner", "without record", "state", "pickle"])
def test_prepare_never_anchors_trained_weights(tmp_path: Path, how: str) -> None:
    net, _ = trained_net()
    if how == "state":
        path = save_state(net, tmp_path / "saved")
    else:
        if how != "inner":
            del net.body.config.mixout
        path = save_plainly(net.body, tmp_path / "saved")
    if how == "pickle":
        torch.save(net.body.state_dict(), path / "pytorch_model.bin")
        (path / "model.safetensors").unlink()
    options = PrepareOptions(BaseOptions("text-classification", 2, allow_pickle=True))
    with pytest.raises(CheckpointError, match=r"already a mixout checkpoint|of mixout, so its"):
        prepare_checkpoint(str(path), tmp_path / "again", options)
    assert not (tmp_path / "again").exists()


def test_a_saved_model_is_not_injected_again(tmp_path: Path) -> None:
    net, _ = trained_net()
    with quiet_libraries():
        again = AutoModel.from_pretrained(save_plainly(net.body, tmp_path / "inner"))
    with pytest.raises(ArgumentError, match=r"'body' was saved with mixout and loaded without"):
        inject_mixout(Net(again))


def test_save_mixout_saves_the_model_inside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net, before = trained_net()
    with caplog.at_level(logging.WARNING, "mixout_export"):
        save_mixout(nn.Sequential(net), tmp_path / "saved")
    assert "saves '0.body'" in caplog.text
    assert "2 parameters outside it are not saved, for example 0.linear.weight" in caplog.text
    assert open_artifact(tmp_path / "saved").metadata.config.p == 0.3
    check_anchors(tmp_path / "saved", net, before)


def test_save_mixout_needs_one_model(tmp_path: Path) -> None:
    pair = nn.ModuleDict({"query": make_model("bert", "Model"), "text": make_model("gpt2")})
    inject_mixout(pair)
    with pytest.raises(ArgumentError, match="several transformers models with mixout, query, text"):
        save_mixout(pair, tmp_path / "out")
    for name, model in pair.items():
        assert load_mixout(save_plainly(model, tmp_path / name)).config.mixout["modules"]


def test_the_head_and_output_of_a_model_inside_are_not_mixed() -> None:
    net = nn.ModuleDict({"model": make_model("bert", "ForSequenceClassification")})
    report = inject_mixout(net)
    assert report.skipped == {"model.classifier": "belongs to the head"}
    assert inject_mixout(make_model("bert", "ForSequenceClassification")).replaced == tuple(
        name.removeprefix("model.") for name in report.replaced
    )


def test_training_needs_p_where_it_is_not_recorded(tmp_path: Path) -> None:
    model = make_model("bert", "ForSequenceClassification")
    inject_mixout(model, MixoutConfig(p=0.3))
    del model.config.mixout
    path = save_plainly(model, tmp_path / "saved")
    (tmp_path / "data.tsv").write_text("text\tlabel\n" + "the dog sleeps\t0\na cat\t1\n" * 4)
    data, options = DataOptions(train_file=tmp_path / "data.tsv"), TrainOptions(max_steps=1)
    with pytest.raises(ArgumentError, match="does not record p; give --p"):
        train_checkpoint(path, tmp_path / "trained", data, options)
    train_checkpoint(path, tmp_path / "trained", data, TrainOptions(max_steps=1, p=0.5))
    assert open_artifact(tmp_path / "trained").metadata.config.p == 0.5


def test_the_state_without_a_configuration_says_what_it_is(tmp_path: Path) -> None:
    net, _ = trained_net()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="load it into that module and write the folder with"):
        load_mixout(tmp_path)


# What save_mixout writes besides the weights ------------------------------------------------------


def test_save_mixout_says_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model("bert", "ForSequenceClassification")
    inject_mixout(model)
    with caplog.at_level(logging.WARNING, "mixout_export"):
        save_mixout(model, tmp_path / "bare")
        assert "of the mixed layers only, so train --decay-toward pretrained" in caplog.text
        assert "holds no tokenizer, which train, predict and bundle need" in caplog.text
        caplog.clear()
        save_mixout(model, tmp_path / "saved", tokenizer=make_tokenizer())
        assert "tokenizer" not in caplog.text
    assert open_artifact(tmp_path / "saved").tokenizer is not None


def test_save_mixout_of_a_prepared_model_misses_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = save_plainly(make_model("bert"), tmp_path / "base")
    options = PrepareOptions(BaseOptions("text-classification", 2))
    prepare_checkpoint(str(base), tmp_path / "prepared", options)
    model = load_mixout(tmp_path / "prepared")
    with caplog.at_level(logging.WARNING, "mixout_export"):
        save_mixout(model, tmp_path / "saved")
        assert not caplog.text
        with quiet_libraries():
            model.resize_token_embeddings(model.config.vocab_size + 1)
        save_mixout(model, tmp_path / "resized")
        assert "has the tokenizer of" in caplog.text
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<url>"])
    save_mixout(model, tmp_path / "whole", tokenizer=tokenizer)
    assert len(open_artifact(tmp_path / "whole").tokenizer) == model.config.vocab_size
    tokenizer.add_tokens(["<user>"])
    with pytest.raises(CheckpointError, match="gives '<user>' the id"):
        save_mixout(model, tmp_path / "out", tokenizer=tokenizer)
