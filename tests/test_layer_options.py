"""`train --reinit-layers`, `--layer-lr-decay` and `--freeze`."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import TinyCheckpoints, make_model
from cli_runs import Program
from safetensors.torch import load_file
from training_runs import TrainingGround, same_weights, weights

from mixout_export import load_mixout
from mixout_export.checkpoint.folder import open_checkpoint
from mixout_export.errors import ArgumentError, TargetError, TrainingStoppedError
from mixout_export.stages.collapse import collapse_checkpoint
from mixout_export.stages.inspection import inspect_path
from mixout_export.surgery.injection import mixout_layers
from mixout_export.surgery.layer_list import find_layers
from mixout_export.surgery.reinitialize import fresh_model
from mixout_export.training.optimizer import build_optimizer, build_pretrained_decay, lr_factors
from mixout_export.training.options import TrainOptions

CLASSIFIER = "ForSequenceClassification"
TOP, BOTTOM = "bert.encoder.layer.1.", "bert.encoder.layer.0."


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, tiny: TinyCheckpoints) -> TrainingGround:
    return TrainingGround(tmp_path_factory.mktemp("ground"), tiny)


# The list of layers


@pytest.mark.parametrize(
    ("kind", "first", "above"),
    [
        ("bert", "bert.encoder.layer.0", {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}),
        ("roberta", "roberta.encoder.layer.0", set()),
        ("distilbert", "distilbert.transformer.layer.0", set()),
        ("gpt2", "transformer.h.0", {"transformer.ln_f.weight", "transformer.ln_f.bias"}),
        ("llama", "model.layers.0", {"model.norm.weight"}),
        ("opt", "model.decoder.layers.0", None),
        ("bart", "model.encoder.layers.0", set()),
    ],
)
def test_layers_are_found(kind: str, first: str, above: set[str] | None) -> None:
    model = make_model(kind, CLASSIFIER, num_labels=2)
    layers = find_layers(model, option="x")
    assert layers.names[0] == first
    assert len(layers.names) == (4 if kind == "bart" else 2)
    if above is not None:
        assert layers.above == above
    assert any("embed" in name or "wte" in name for name in layers.below)
    inside = {name for name, _ in model.named_parameters() if layers.layer_of(name) is not None}
    body = {
        name for name, _ in model.named_parameters() if name.startswith(first.split(".")[0] + ".")
    }
    assert inside | layers.above | layers.below == body
    assert not inside & (layers.above | layers.below)
    assert not layers.above & layers.below


@pytest.mark.parametrize(
    ("kind", "said"), [("albert", "share their weights"), ("xlm", "no single")]
)
def test_models_without_a_list_of_layers_are_refused(kind: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=f"^reinit-layers: .*{said}"):
        find_layers(make_model(kind, CLASSIFIER, num_labels=2), option="reinit-layers")


# The learning rate of each layer


def test_each_layer_has_its_rate_and_its_own_decay() -> None:
    model = make_model("bert", CLASSIFIER, num_labels=2, num_hidden_layers=3)
    options = TrainOptions(lr=0.1, layer_lr_decay=0.5, weight_decay=0.2, decay_toward="pretrained")
    fresh = frozenset({"classifier.weight", "classifier.bias"})
    factors = {
        "bert.embeddings.word_embeddings.weight": 1 / 8,
        "bert.encoder.layer.0.output.dense.bias": 1 / 4,
        "bert.encoder.layer.1.attention.self.query.weight": 1 / 2,
        "bert.encoder.layer.2.output.LayerNorm.weight": 1.0,
        "bert.pooler.dense.weight": 1.0,
        "classifier.weight": 1.0,
    }
    found = {
        id(parameter): group
        for group in build_optimizer(model, options, fresh=fresh).param_groups
        for parameter in group["params"]
    }
    named = dict(model.named_parameters())
    assert {n: found[id(named[n])]["lr"] / 0.1 for n in factors} == pytest.approx(factors)
    assert found[id(named["classifier.weight"])]["weight_decay"] == 0.2
    assert len(found) == len(named)

    target = {n: torch.full_like(p, 3.0) for n, p in named.items() if n not in fresh}
    before = {name: p.detach().clone() for name, p in named.items()}
    build_pretrained_decay(model, target, options, fresh=fresh).apply(0.05)
    for name, factor in factors.items():
        share = 0.0 if name in fresh else 0.05 * factor * 0.2
        expected = before[name] - share * (before[name] - 3.0)
        torch.testing.assert_close(named[name].detach(), expected)


def test_fresh_parameters_are_trained_at_the_full_rate() -> None:
    model = make_model("bert", CLASSIFIER, num_labels=2)
    fresh = frozenset({BOTTOM + "output.dense.weight", "classifier.weight"})
    factors = lr_factors(model, 0.5, fresh=fresh)
    assert not fresh & factors.keys()
    assert factors[BOTTOM + "output.dense.bias"] == 0.5
    assert lr_factors(model, None, fresh=fresh) == {}


def test_a_lower_layer_moves_less_and_the_log_has_the_rate_of_the_head(
    ground: TrainingGround, tmp_path: Path
) -> None:
    common: dict[str, Any] = {"prepared": ground.plain(), "max_steps": 4, "weight_decay": 0.0}
    for name, decay in (("all", None), ("one", 1.0), ("decayed", 0.1)):
        ground.run(tmp_path / name, layer_lr_decay=decay, **common)
    assert same_weights(tmp_path / "all", tmp_path / "one")
    start, full, less = (
        weights(p) for p in (ground.plain(), tmp_path / "all", tmp_path / "decayed")
    )
    for layer, factor in ((TOP, 1.0), (BOTTOM, 0.1)):
        key = layer + "output.dense.weight"
        moved = (less[key] - start[key]).norm() / (full[key] - start[key]).norm()
        assert moved == pytest.approx(factor, rel=0.2)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("all", "decayed")]
    rates = [[json.loads(line).get("lr") for line in log.splitlines()] for log in logs]
    assert rates[0] == rates[1]


# Layers that start afresh


def test_top_layers_and_pooler_start_as_a_fresh_model_does(
    ground: TrainingGround, tmp_path: Path
) -> None:
    prepared = ground.prepared()
    ground.run(tmp_path / "out", reinit_layers=1, max_steps=1)  # the first step's rate is 0
    base, found = weights(prepared), weights(tmp_path / "out")
    expected = fresh_model(load_mixout(prepared), seed=0).state_dict()
    for key, value in found.items():
        is_fresh = key.startswith((TOP, "bert.pooler."))
        assert torch.equal(value, expected[key] if is_fresh else base[key]), key
        assert is_fresh != torch.equal(value, base[key])
    dense = found[TOP + "output.dense.weight"]
    assert dense.std().item() == pytest.approx(0.02, rel=0.1)  # its initializer_range
    assert torch.equal(found[TOP + "output.LayerNorm.weight"], torch.ones(len(dense)))
    head = found["classifier.weight"].flatten()
    assert not torch.isclose(dense.flatten()[: len(head)], head).any()  # not the head's numbers


def test_the_seed_of_prepare_decides(ground: TrainingGround, tmp_path: Path) -> None:
    key = TOP + "output.dense.weight"
    for seed in (0, 1):
        ground.run(tmp_path / f"s{seed}", reinit_layers=1, max_steps=1, seed=seed)
    assert torch.equal(weights(tmp_path / "s0")[key], weights(tmp_path / "s1")[key])
    model = load_mixout(ground.prepared())
    zero, other = (fresh_model(model, seed=seed).state_dict()[key] for seed in (0, 1))
    assert not torch.equal(zero, other)


def test_they_are_plain_and_the_checkpoint_says_so(
    ground: TrainingGround, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared, out = ground.prepared(), tmp_path / "out"
    ground.run(out, reinit_layers=1, epochs=2, decay_toward="pretrained", weight_decay=0.1)
    metadata = open_checkpoint(out).require_metadata()
    assert metadata.reinitialized.modules == ("bert.encoder.layer.1", "bert.pooler")
    assert {*metadata.reinitialized.keys} == {
        key for key in weights(out) if key.startswith((TOP, "bert.pooler."))
    }
    mixed = mixout_layers(load_mixout(out))
    assert all(name.startswith(BOTTOM) for name in mixed)
    assert {*mixed} == {n for n in mixout_layers(load_mixout(prepared)) if n.startswith(BOTTOM)}
    anchors = (out / "pretrained.safetensors").stat()
    assert anchors.st_ino == (prepared / "pretrained.safetensors").stat().st_ino
    assert {layer.name for layer in inspect_path(out).layers} == {*mixed}
    said = Program(capsys)("inspect", out).done().out
    assert re.search(r"re-initialized +bert\.encoder\.layer\.1, bert\.pooler\n", said)
    assert re.search(r"fresh head +classifier\.bias, classifier\.weight, with", said)
    card = (out / "README.md").read_text("utf-8")
    assert "| re-initialized | bert.encoder.layer.1, bert.pooler |" in card
    Program(capsys)("verify", out, out).done()

    # α = 0 gives the base back, except what is fresh.
    collapse_checkpoint(out, tmp_path / "zero", interpolate=0.0)
    collapse_checkpoint(out, tmp_path / "half", interpolate=0.5)
    collapse_checkpoint(out, tmp_path / "one")
    base, trained = weights(prepared), weights(out)
    for key, value in weights(tmp_path / "zero").items():
        is_fresh = key.startswith((TOP, "bert.pooler.", "classifier"))
        assert torch.equal(value, (trained if is_fresh else base)[key]), key
    half = weights(tmp_path / "half")
    assert torch.equal(half[TOP + "output.dense.weight"], trained[TOP + "output.dense.weight"])
    assert weights(tmp_path / "one").keys() == trained.keys()


def test_training_again_keeps_them_fresh(ground: TrainingGround, tmp_path: Path) -> None:
    ground.run(tmp_path / "once", reinit_layers=1, max_steps=1)
    ground.run(tmp_path / "twice", prepared=tmp_path / "once", max_steps=2)
    first, second = (open_checkpoint(tmp_path / n).require_metadata() for n in ("once", "twice"))
    assert first.reinitialized == second.reinitialized
    assert first.modules == second.modules


def test_layers_that_cannot_start_afresh(ground: TrainingGround, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="reinit-layers: got 2, expected at most 1"):
        ground.run(tmp_path / "out", reinit_layers=2)
    with pytest.raises(ArgumentError, match=r"reinit-layers: .* share their weights"):
        ground.run(tmp_path / "out", prepared=ground.prepared("albert"), reinit_layers=1)


# Frozen modules


def test_what_is_frozen_keeps_its_bits_and_is_not_mixed(
    ground: TrainingGround, tmp_path: Path
) -> None:
    prepared, out = ground.prepared(), tmp_path / "out"
    ground.run(out, freeze="embeddings,layer.0", epochs=2, decay_toward="pretrained")
    before, after = weights(prepared), weights(out)
    frozen = ("bert.embeddings.", BOTTOM)
    for key, value in after.items():
        assert torch.equal(value, before[key]) == key.startswith(frozen), key
    assert (out / "mixout_config.json").read_bytes() == (
        prepared / "mixout_config.json"
    ).read_bytes()
    moved = {layer.name: layer.distance for layer in inspect_path(out).layers}
    assert {name for name, distance in moved.items() if not distance} == {
        name for name in moved if name.startswith(BOTTOM)
    }
    assert "| frozen | embeddings,layer.0 |" in (out / "README.md").read_text("utf-8")


def test_frozen_layers_of_a_trained_checkpoint_compute_with_their_weight(
    ground: TrainingGround, tmp_path: Path
) -> None:
    """w ≠ u there, so a mask would show. With everything mixed frozen, nothing is random."""
    ground.run(tmp_path / "trained", prepared=ground.prepared(head="none"), epochs=1)
    for seed in (1, 2):
        ground.run(
            tmp_path / f"s{seed}",
            prepared=tmp_path / "trained",
            freeze=r"bert(\..*)?",
            epochs=1,
            seed=seed,
            data_seed=0,
        )
    assert same_weights(tmp_path / "s1", tmp_path / "s2")
    assert not same_weights(tmp_path / "s1", tmp_path / "trained")
    assert open_checkpoint(tmp_path / "s1").require_metadata().config.p == 0.7


def test_frozen_embeddings_go_with_gradient_checkpointing(
    ground: TrainingGround, tmp_path: Path
) -> None:
    for name, flag in (("with", True), ("without", False)):
        ground.run(tmp_path / name, freeze="embeddings", gradient_checkpointing=flag, max_steps=3)
    ours, theirs = weights(tmp_path / "with"), weights(tmp_path / "without")
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=0, atol=1e-6)
    assert not torch.equal(
        ours[BOTTOM + "output.dense.weight"],
        weights(ground.prepared())[BOTTOM + "output.dense.weight"],
    )


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("embedings", "freeze: 'embedings' matches no module .* similar names: .*embeddings"),
        ("embeddings,layer.7", "freeze: 'layer.7' matches no module"),
        ("(", "freeze: .* not a valid regular expression"),
        (",", "freeze: ',' is empty"),
        (".*", "freeze: '.*' freezes every parameter"),
    ],
)
def test_patterns_that_cannot_be_frozen(
    ground: TrainingGround, tmp_path: Path, pattern: str, said: str
) -> None:
    with pytest.raises((TargetError, ArgumentError), match=said):
        ground.run(tmp_path / "out", freeze=pattern)


# All of them, interrupted


def test_a_resumed_run_ends_with_the_same_bits(ground: TrainingGround, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "prepared": ground.prepared(dropout=0.05),
        "reinit_layers": 1,
        "layer_lr_decay": 0.7,
        "freeze": "word_embeddings",
        "class_weights": "balanced",
        "label_smoothing": 0.1,
        "decay_toward": "pretrained",
        "epochs": 2,
        "save_every": 4,
    }
    ground.run(tmp_path / "whole", **options)
    stops = iter([False] * 6 + [True])
    with pytest.raises(TrainingStoppedError):
        ground.run(tmp_path / "out", must_stop=lambda: next(stops), **options)
    with pytest.raises(ArgumentError, match="with --reinit-layers 1, got None"):
        ground.run(tmp_path / "out", resume=True, **{**options, "reinit_layers": None})
    ground.run(tmp_path / "out", resume=True, **options)
    assert same_weights(tmp_path / "whole", tmp_path / "out")
    for name in ("metrics.jsonl", "mixout_config.json", "README.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert load_file(tmp_path / "out" / "pretrained.safetensors").keys() >= {
        TOP + "output.dense.pretrained_weight"
    }
