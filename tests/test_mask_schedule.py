"""Masks that are held for several updates, and anchors that follow the weights."""

import copy
from pathlib import Path

import pytest
import torch
from checkpoints import TinyCheckpoints
from torch import nn
from transformers.pytorch_utils import Conv1D

from mixout_export import (
    MaskSchedule,
    MixoutConfig,
    inject_mixout,
    load_mixout,
    save_mixout,
)
from mixout_export.errors import ArgumentError, CheckpointError
from mixout_export.fast_linear.gathering import always_gather
from mixout_export.stages.prepare import PrepareOptions, prepare_checkpoint
from mixout_export.surgery.injection import ORIGIN_ATTRIBUTE, mixout_layers


def network(granularity: str) -> nn.Sequential:
    """Return a mixed embedding and mixed layers, some large enough for packed masks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 6), Conv1D(700, 6), nn.Linear(700, 2))
    inject_mixout(model, MixoutConfig(p=0.5, granularity=granularity, target_modules="0,1,2,3"))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model.train()


X = torch.arange(20).view(4, 5)


@pytest.mark.parametrize("granularity", ["neuron", "element"])
def test_masks_are_held(granularity: str) -> None:
    model = network(granularity)
    schedule = MaskSchedule(model, resample_every=2)
    outputs = []
    for _ in range(4):
        schedule.step()
        outputs.append(model(X))
        assert torch.equal(model(X), outputs[-1])  # a second batch of the same update
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[2], outputs[3])
    assert not torch.allclose(outputs[1], outputs[2])
    schedule.release()
    assert not torch.allclose(model(X), model(X))


@pytest.mark.parametrize("granularity", ["neuron", "element"])
def test_the_plain_path_uses_the_same_mask(granularity: str) -> None:
    model = network(granularity)
    MaskSchedule(model).step()
    with always_gather():
        fast = model(X)
    for layer in mixout_layers(model).values():
        layer.weight.requires_grad_(False)  # which sends a layer down the plain path
    torch.testing.assert_close(model(X), fast)


def test_a_mask_is_the_same_for_equal_ids_in_all_batches() -> None:
    model = network("element")
    MaskSchedule(model).step()
    first, second = model[0](torch.tensor([3, 7])), model[0](torch.tensor([7, 9, 3]))
    assert torch.equal(first[0], second[2])
    assert torch.equal(first[1], second[0])


def test_evaluation_ignores_held_masks() -> None:
    model = network("neuron")
    expected = model.eval()(X)
    MaskSchedule(model.train()).step()
    assert torch.equal(model.eval()(X), expected)


def test_anchors_move_toward_the_weights_at_each_new_mask() -> None:
    model = network("neuron")
    schedule = MaskSchedule(model, resample_every=2, anchor_decay=0.9)
    layer = mixout_layers(model)["1"]
    before = layer.pretrained_weight.clone()
    schedule.step()
    schedule.step()
    assert torch.equal(layer.pretrained_weight, before)
    schedule.step()
    torch.testing.assert_close(layer.pretrained_weight, 0.9 * before + 0.1 * layer.weight)


def test_anchors_with_fewer_rows_move_in_the_rows_that_they_have() -> None:
    model = network("neuron")
    layer = mixout_layers(model)["0"]
    layer.pretrained_weight = layer.pretrained_weight[:40].clone()
    layer.move_anchor(1.0)
    assert torch.equal(layer.pretrained_weight, layer.weight[:40])


@pytest.mark.parametrize("granularity", ["neuron", "element"])
def test_state_restores_masks_and_anchors(granularity: str, tmp_path: Path) -> None:
    model = network(granularity)
    schedule = MaskSchedule(model, resample_every=3, anchor_decay=0.5)
    for _ in range(5):
        schedule.step()
    other = network(granularity)
    again = MaskSchedule(other, resample_every=3, anchor_decay=0.5)
    file = tmp_path / "state.pt"
    torch.save(copy.deepcopy(schedule.state_dict()), file)
    again.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        torch.manual_seed(1)
        assert torch.equal(other(X), model(X))
        for each in (schedule, again):
            torch.manual_seed(2)
            each.step()
    assert again.updates == schedule.updates == 8


def test_restored_anchors_count_as_moved() -> None:
    schedule = MaskSchedule(network("neuron"), anchor_decay=0.5)
    for moved in (False, True):
        schedule.step()
        other = network("neuron")
        MaskSchedule(other).load_state_dict(schedule.state_dict())
        assert all(layer.anchor_moved is moved for layer in mixout_layers(other).values())


def test_state_of_other_layers_is_refused() -> None:
    state = MaskSchedule(network("neuron")).state_dict()
    del state["masks"]["1"]
    with pytest.raises(ArgumentError, match="other layers; '1'"):
        MaskSchedule(network("neuron")).load_state_dict(state)


def test_layers_with_p_0_draw_nothing() -> None:
    model = network("neuron")
    for layer in mixout_layers(model).values():
        layer.p = 0.0
    state = torch.get_rng_state()
    MaskSchedule(model).step()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample_every": 0}, "resample_every: got 0"),
        ({"resample_every": 1.5}, "resample_every: got 1.5"),
        ({"anchor_decay": 1.5}, "anchor_decay: got 1.5"),
    ],
)
def test_wrong_values_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        MaskSchedule(network("neuron"), **options)  # type: ignore[arg-type]


def test_half_precision_anchors_may_not_move() -> None:
    model = network("neuron")
    for layer in mixout_layers(model).values():
        layer.pretrained_weight = layer.pretrained_weight.to(torch.bfloat16)
    with pytest.raises(ArgumentError, match="float32"):
        MaskSchedule(model, anchor_decay=0.9)
    MaskSchedule(model)


def test_moved_anchors_are_never_saved_as_pretrained_weights(
    tiny: TinyCheckpoints, tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    prepare_checkpoint(str(tiny.classifier()), prepared, PrepareOptions())
    model = load_mixout(prepared)
    for layer in mixout_layers(model).values():
        layer.weight.data.add_(1.0)
        layer.move_anchor(0.5)
    save_mixout(model, tmp_path / "trained")
    base, saved = (path / "pretrained.safetensors" for path in (prepared, tmp_path / "trained"))
    assert saved.read_bytes() == base.read_bytes()
    vars(model).pop(ORIGIN_ATTRIBUTE)  # as if it had been made by inject_mixout
    with pytest.raises(CheckpointError, match="has moved away"):
        save_mixout(model, tmp_path / "other")
